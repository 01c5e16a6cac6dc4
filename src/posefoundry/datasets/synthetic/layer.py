"""Outlined shapes on a transparent layer that remembers which part lies on top of each pixel."""

import math

import cv2
import numpy as np

Colour = tuple[float, float, float]  # blue, green, red, 0..255
Radii = tuple[float, float]

# OpenCV takes polygon corners as integers; this many of their bits stand for the fraction of a pixel.
_FIXED_POINT_BITS = 8
_ARC = np.linspace(-1.0, 1.0, 9)
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24)), np.sin(np.linspace(0, 2 * np.pi, 24))], 1)


def shade(colour: Colour, factor: float) -> Colour:
    """Returns a darker (factor < 1) or lighter (> 1) colour."""
    blue, green, red = colour
    return min(blue * factor, 255.0), min(green * factor, 255.0), min(red * factor, 255.0)


def capsule(start: np.ndarray, end: np.ndarray, radii: Radii) -> np.ndarray:
    """Returns the polygon (18, 2) of a tapered limb: circles about both ends and their outer tangents.

    Args:
        start: (2,) centre of the first circle.
        end: (2,) centre of the second circle.
        radii: Of the first and the second circle.
    """
    return outlined_capsule(start, end, radii, 0.0)[1]


def outlined_capsule(start: np.ndarray, end: np.ndarray, radii: Radii, outline: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the polygons (18, 2) of a tapered limb with and without an outline of the given width around it."""
    dx, dy = float(end[0] - start[0]), float(end[1] - start[1])
    heading = math.atan2(dy, dx)
    # Where the tangents touch, as an angle from the heading; nearly equal centres would leave no tangent.
    touch = math.acos(min(max((radii[0] - radii[1]) / max(math.hypot(dx, dy), 1e-6), -0.99), 0.99))
    angles = np.concatenate([heading + touch * _ARC, heading + math.pi + (math.pi - touch) * _ARC])
    normals = np.empty((18, 2))
    np.cos(angles, out=normals[:, 0])
    np.sin(angles, out=normals[:, 1])
    inner = np.concatenate([end + radii[1] * normals[:9], start + radii[0] * normals[9:]])
    return inner + outline * normals, inner


def ellipse(centre: np.ndarray, half_axes: tuple[float, float], turn_rad: float = 0.0) -> np.ndarray:
    """Returns the polygon (24, 2) of an ellipse, turned clockwise in the image."""
    cosine, sine = math.cos(turn_rad), math.sin(turn_rad)
    width, height = half_axes
    return centre + _CIRCLE @ np.array([[width * cosine, width * sine], [-height * sine, height * cosine]])


class Layer:
    """A transparent picture of one person or thing.

    Attributes:
        bgra: (H, W, 4) uint8, colours already multiplied by alpha.
        parts: (H, W) uint8, the number of the part on top; 0 where there is nothing.
    """

    def __init__(self, size_px: int) -> None:
        self.bgra = np.zeros((size_px, size_px, 4), np.uint8)
        self.parts = np.zeros((size_px, size_px), np.uint8)
        self._part = 0

    def begin_part(self) -> int:
        """Begins the next part and returns its number, counted from 1."""
        self._part += 1
        return self._part

    def fill(self, polygon_xy: np.ndarray, colour: Colour, *, is_decoration: bool = False) -> None:
        """Fills a convex polygon (N, 2), in px where pixel i spans i to i + 1.

        Decoration lies within what its part has filled already, and so does not change `parts`.
        """
        corners = ((polygon_xy - 0.5) * (1 << _FIXED_POINT_BITS)).round().astype(np.int32)
        cv2.fillConvexPoly(self.bgra, corners, (*colour, 255.0), cv2.LINE_AA, _FIXED_POINT_BITS)
        if not is_decoration:
            cv2.fillConvexPoly(self.parts, corners, self._part, cv2.LINE_8, _FIXED_POINT_BITS)

    @property
    def silhouette(self) -> np.ndarray:
        """(H, W) bool, where there is something."""
        return self.parts > 0

    def blend_onto(self, picture: np.ndarray) -> None:
        """Lays this layer over a picture (H, W, 3) uint8, in place."""
        x, y, width, height = cv2.boundingRect(self.bgra[..., 3])
        if width == 0:  # all of it lies outside the picture
            return
        window = np.s_[y : y + height, x : x + width]
        patch = self.bgra[window]
        transparency = cv2.cvtColor(255 - patch[..., 3], cv2.COLOR_GRAY2BGR)
        behind = cv2.multiply(picture[window], transparency, scale=1 / 255)
        picture[window] = cv2.add(behind, cv2.cvtColor(patch, cv2.COLOR_BGRA2BGR))
