"""How a figure is painted: clothes, skin and hair as outlined shapes on a transparent layer of its own."""

from dataclasses import dataclass

import cv2
import numpy as np

from posefoundry.datasets.synthetic.figure import HEAD_HALF_HEIGHT, HEAD_HALF_WIDTH, Figure

Colour = tuple[float, float, float]  # blue, green, red, 0..255

NOSE, LEFT_EYE, LEFT_EAR, LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 0, 1, 3, 5, 7, 9
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 13, 15

# Radii of the limbs at both ends, as fractions of standing height.
UPPER_ARM_RADII, FOREARM_RADII, HAND_RADII = (0.046, 0.038), (0.036, 0.027), (0.024, 0.026)
THIGH_RADII, SHIN_RADII, SHOE_RADII = (0.066, 0.050), (0.047, 0.033), (0.036, 0.026)
TORSO_RADIUS, PELVIS_RADIUS, NECK_RADII = 0.042, 0.064, (0.042, 0.036)
OUTLINE = 0.008

_SKIN_TONES_BGR = ((189, 208, 240), (150, 180, 225), (110, 145, 200), (75, 105, 160), (50, 72, 115), (36, 50, 82))
_HAIR_BGR = ((25, 25, 30), (30, 45, 75), (45, 75, 120), (95, 165, 215), (50, 70, 165), (150, 150, 155), (140, 60, 90))
_FIXED_POINT_BITS = 8
_ARC_STEPS = np.linspace(-1.0, 1.0, 9)


@dataclass(frozen=True)
class Outfit:
    """What tells persons apart, and, on each of them, left from right: everything on the left side is darker."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    accent: Colour
    sleeves_long: bool
    trousers_long: bool
    hair_long: bool
    striped: bool


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Draws clothes, skin and hair."""
    skin = np.array(_SKIN_TONES_BGR[rng.integers(len(_SKIN_TONES_BGR))]) * rng.uniform(0.92, 1.06)
    hair = np.array(_HAIR_BGR[rng.integers(len(_HAIR_BGR))]) * rng.uniform(0.85, 1.15)
    return Outfit(
        skin=_colour(skin),
        hair=_colour(hair),
        shirt=_sample_cloth(rng),
        trousers=_sample_cloth(rng),
        shoes=_sample_cloth(rng),
        accent=_sample_cloth(rng),
        sleeves_long=bool(rng.random() < 0.55),
        trousers_long=bool(rng.random() < 0.7),
        hair_long=bool(rng.random() < 0.35),
        striped=bool(rng.random() < 0.25),
    )


def _sample_cloth(rng: np.random.Generator) -> Colour:
    """Draws a colour that is light enough for its darker half to differ."""
    hue, saturation, value = rng.uniform(0, 180), rng.uniform(30, 220), rng.uniform(140, 245)
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return _colour(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(float))


def _colour(bgr: np.ndarray) -> Colour:
    blue, green, red = (float(channel) for channel in np.clip(bgr, 0, 255))
    return blue, green, red


def shade(colour: Colour, factor: float) -> Colour:
    """Returns a darker (< 1) or lighter (> 1) colour."""
    return _colour(np.array(colour) * factor)


class Layer:
    """A transparent picture of one person, and for each pixel the number of the part that lies on top there.

    Attributes:
        bgra: (H, W, 4) uint8, colours multiplied by alpha.
        parts: (H, W) uint8; 0 outside the person.
    """

    def __init__(self, size_px: int):
        self.bgra = np.zeros((size_px, size_px, 4), np.uint8)
        self.parts = np.zeros((size_px, size_px), np.uint8)
        self.n_parts = 0

    def new_part(self) -> int:
        """Begins the next part and returns its number, counted from 1."""
        self.n_parts += 1
        return self.n_parts

    def fill(self, polygon_xy: np.ndarray, colour: Colour, *, counts: bool = True, convex: bool = True) -> None:
        """Fills a polygon (N, 2) in px, where pixel i spans i to i + 1. Decoration does not count as a part."""
        points = np.round((polygon_xy - 0.5) * (1 << _FIXED_POINT_BITS)).astype(np.int32)
        if convex:
            cv2.fillConvexPoly(self.bgra, points, (*colour, 255.0), cv2.LINE_AA, _FIXED_POINT_BITS)
            if counts:
                cv2.fillConvexPoly(self.parts, points, self.n_parts, cv2.LINE_8, _FIXED_POINT_BITS)
        else:
            cv2.fillPoly(self.bgra, [points], (*colour, 255.0), cv2.LINE_AA, _FIXED_POINT_BITS)
            if counts:
                cv2.fillPoly(self.parts, [points], self.n_parts, cv2.LINE_8, _FIXED_POINT_BITS)


def capsule(start: np.ndarray, end: np.ndarray, radii: tuple[float, float]) -> np.ndarray:
    """Returns the outline (18, 2) of a tapered limb: two circles and their outer tangents."""
    along = end - start
    length = max(float(np.hypot(*along)), 1e-6)
    heading = np.arctan2(along[1], along[0])
    spread = np.arccos(np.clip((radii[0] - radii[1]) / length, -0.999, 0.999))
    far = heading + spread * _ARC_STEPS
    near = heading + np.pi + (np.pi - spread) * _ARC_STEPS
    arc_far = end + radii[1] * np.stack([np.cos(far), np.sin(far)], 1)
    arc_near = start + radii[0] * np.stack([np.cos(near), np.sin(near)], 1)
    return np.concatenate([arc_far, arc_near])


def ellipse(
    centre: np.ndarray, half_axes: tuple[float, float], turn: float = 0.0, span: tuple = (0.0, 1.0)
) -> np.ndarray:
    """Returns points (24, 2) of an ellipse; `span` takes a part of it, in turns from its right end clockwise."""
    angles = 2 * np.pi * np.linspace(*span, 24)
    local = np.stack([half_axes[0] * np.cos(angles), half_axes[1] * np.sin(angles)], 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    return centre + local @ np.array([[cosine, sine], [-sine, cosine]])


@dataclass(frozen=True)
class PaintedPerson:
    """A person on a layer.

    Attributes:
        layer: The picture.
        keypoints_xy: (17, 2) in px.
        hidden_by_self: (17,) bool: another part of the own body lies over the joint. Of a person seen from behind
            nose and eyes are hidden by the head.
    """

    layer: Layer
    keypoints_xy: np.ndarray
    hidden_by_self: np.ndarray


class PersonPainter:
    """Paints one person part by part, from back to front."""

    def __init__(self, figure: Figure, outfit: Outfit, origin_xy: np.ndarray, height_px: float, size_px: int):
        self.figure, self.outfit = figure, outfit
        self.origin_xy, self.height_px = origin_xy, height_px
        self.layer = Layer(size_px)
        self.joints = figure.keypoints_xy
        self.part_of_joint: dict[int, set[int]] = {joint: set() for joint in range(17)}

    def paint(self) -> PaintedPerson:
        """Paints everything and finds out which joints stay in view."""
        figure = self.figure
        if self.outfit.hair_long and not figure.from_behind:
            self._long_hair()
        for side in (0, 1):
            if figure.arms_behind[side]:
                self._arm(side)
        self._pelvis()
        for side in (1 - figure.near_leg, figure.near_leg):
            self._leg(side)
        self._torso()
        self._head()
        for side in (0, 1):
            if not figure.arms_behind[side]:
                self._arm(side)
        return PaintedPerson(self.layer, self._to_px(self.joints), self._hidden_by_self())

    def _to_px(self, points: np.ndarray) -> np.ndarray:
        return self.origin_xy + self.height_px * points

    def _shape(self, polygon: np.ndarray, colour: Colour, **options: bool) -> None:
        self.layer.fill(self._to_px(polygon), colour, **options)

    def _limb(
        self,
        start: np.ndarray,
        end: np.ndarray,
        radii: tuple[float, float],
        colour: Colour,
        joints: tuple[int, ...] = (),
    ) -> None:
        self._begin_part(joints)
        self._shape(capsule(start, end, (radii[0] + OUTLINE, radii[1] + OUTLINE)), shade(colour, 0.5))
        self._shape(capsule(start, end, radii), colour, counts=False)

    def _begin_part(self, joints: tuple[int, ...]) -> None:
        part = self.layer.new_part()
        for joint in joints:
            self.part_of_joint[joint].add(part)

    def _side_shade(self, side: int) -> float:
        return 0.5 if side == 0 else 1.08

    def _arm(self, side: int) -> None:
        outfit, dark = self.outfit, self._side_shade(side)
        shoulder, elbow, wrist = (self.joints[j + side] for j in (LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST))
        elbow_joint, wrist_joint = LEFT_ELBOW + side, LEFT_WRIST + side
        skin = shade(outfit.skin, 0.86 if side == 0 else 1.0)
        sleeve = shade(outfit.shirt, dark)
        self._limb(wrist, self.figure.hands_xy[side], HAND_RADII, skin, (wrist_joint,))
        forearm = shade(sleeve, 0.9) if outfit.sleeves_long else skin
        self._limb(elbow, wrist, FOREARM_RADII, forearm, (elbow_joint, wrist_joint))
        across = (wrist - elbow)[::-1] * np.array([-1.0, 1.0])
        across *= 0.75 * FOREARM_RADII[1] / max(float(np.hypot(*across)), 1e-6)
        self._limb(wrist - across, wrist + across, (0.011, 0.011), shade(outfit.accent, dark), (wrist_joint,))
        self._limb(shoulder, elbow, UPPER_ARM_RADII, sleeve, (LEFT_SHOULDER + side, elbow_joint))

    def _leg(self, side: int) -> None:
        outfit, dark = self.outfit, self._side_shade(side)
        hip, knee, ankle = (self.joints[j + side] for j in (LEFT_HIP, LEFT_KNEE, LEFT_ANKLE))
        cloth = shade(outfit.trousers, dark)
        shin = shade(cloth, 0.88) if outfit.trousers_long else shade(outfit.skin, 0.86 if side == 0 else 1.0)
        self._limb(knee, ankle, SHIN_RADII, shin, (LEFT_KNEE + side, LEFT_ANKLE + side))
        self._limb(ankle, self.figure.toes_xy[side], SHOE_RADII, shade(outfit.shoes, dark), (LEFT_ANKLE + side,))
        self._limb(hip, knee, THIGH_RADII, cloth, (LEFT_HIP + side, LEFT_KNEE + side))

    def _pelvis(self) -> None:
        left, right = self.joints[LEFT_HIP], self.joints[LEFT_HIP + 1]
        self._limb(left, right, (PELVIS_RADIUS, PELVIS_RADIUS), self.outfit.trousers, (LEFT_HIP, LEFT_HIP + 1))

    def _torso(self) -> None:
        left, right, left_hip, right_hip = (self.joints[j] for j in (5, 6, 11, 12))
        self._begin_part((5, 6, 11, 12))
        widen = (left_hip - right_hip) / max(float(np.hypot(*(left_hip - right_hip))), 1e-6)
        for grow, colour, counts in ((OUTLINE, shade(self.outfit.shirt, 0.5), True), (0.0, self.outfit.shirt, False)):
            radius, hem = TORSO_RADIUS + grow, (PELVIS_RADIUS + grow) * widen
            corners = np.concatenate([ellipse(left, (radius, radius)), ellipse(right, (radius, radius))])
            hull = cv2.convexHull(np.concatenate([corners, [left_hip + hem, right_hip - hem]]).astype(np.float32))
            self._shape(hull[:, 0].astype(float), colour, counts=counts)
        if self.outfit.striped:
            for depth in (0.3, 0.5, 0.7):
                a, b = left + depth * (left_hip - left), right + depth * (right_hip - right)
                self._shape(capsule(a, b, (0.014, 0.014)), self.outfit.accent, counts=False)
        belt = capsule(left_hip + 0.8 * PELVIS_RADIUS * widen, right_hip - 0.8 * PELVIS_RADIUS * widen, (0.012, 0.012))
        self._shape(belt, shade(self.outfit.shoes, 0.35))

    def _head(self) -> None:
        figure, outfit, joints = self.figure, self.outfit, self.joints
        centre, turn = figure.head_xy, figure.head_turn_rad
        self._limb(figure.neck_xy, centre, NECK_RADII, shade(outfit.skin, 0.9))
        for ear in (LEFT_EAR, LEFT_EAR + 1):
            self._begin_part((ear,))
            self._shape(ellipse(joints[ear], (0.030, 0.036), turn), shade(outfit.skin, 0.5))
            self._shape(ellipse(joints[ear], (0.022, 0.028), turn), shade(outfit.skin, 0.95), counts=False)
        size = (HEAD_HALF_WIDTH, HEAD_HALF_HEIGHT)
        self._begin_part(() if figure.from_behind else (0, 1, 2))
        skin = outfit.hair if figure.from_behind else outfit.skin
        self._shape(ellipse(centre, (size[0] + OUTLINE, size[1] + OUTLINE), turn), shade(skin, 0.5))
        self._shape(ellipse(centre, size, turn), skin, counts=False)
        if figure.from_behind:
            if outfit.hair_long:
                self._long_hair()
            return
        hair = ellipse(centre, (size[0] + 1.5 * OUTLINE, size[1] + 1.5 * OUTLINE), turn, (0.53, 0.97))
        self._shape(hair, outfit.hair, convex=False)
        self._face(turn)

    def _long_hair(self) -> None:
        centre, neck = self.figure.head_xy, self.figure.neck_xy
        self._begin_part(())
        tip = neck + 0.35 * (neck - centre)
        self._shape(capsule(centre, tip, (0.112, 0.085)), shade(self.outfit.hair, 0.75))

    def _face(self, turn: float) -> None:
        nose, eyes = self.joints[NOSE], self.joints[1:3]
        for eye in eyes:
            self._shape(ellipse(eye, (0.023, 0.019), turn), (245.0, 245.0, 245.0))
            self._shape(ellipse(eye, (0.013, 0.015), turn), (30.0, 25.0, 20.0))
        self._shape(ellipse(nose, (0.013, 0.019), turn), shade(self.outfit.skin, 0.62))
        mouth = nose + 0.038 * np.array([-np.sin(turn), np.cos(turn)])
        self._shape(ellipse(mouth, (0.030, 0.008), turn), (60.0, 50.0, 130.0))

    def _hidden_by_self(self) -> np.ndarray:
        size_px = len(self.layer.parts)
        hidden = np.zeros(17, bool)
        for joint, (x, y) in enumerate(np.floor(self._to_px(self.joints)).astype(int)):
            if 0 <= x < size_px and 0 <= y < size_px:
                hidden[joint] = self.layer.parts[y, x] not in self.part_of_joint[joint]
        return hidden
