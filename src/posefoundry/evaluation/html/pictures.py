"""Photographs as small JPEGs inside the page, and the persons on them as lines that stay sharp at any size."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from posefoundry.errors import PosefoundryError
from posefoundry.inference.images import read_image_bgr
from posefoundry.skeleton import Skeleton

if TYPE_CHECKING:
    from markupsafe import Markup

# Long side and JPEG quality, tried in this order until all photographs of a page fit.
STEPS = ((560, 76), (480, 68), (400, 62), (320, 55))
BUDGET_BYTES = 4_000_000  # of the page, so after base64
MIN_KEYPOINT_CONFIDENCE = 0.5  # below, a detection's keypoint is not drawn; `draw_poses` has the same default


@dataclass(frozen=True)
class Photo:
    """A photograph as the page shows it.

    Attributes:
        width: Its width in the page's units.
        height: Its height.
        scale: Page units per pixel of the source image.
        uri: The JPEG as a data URI; empty if it is not shown.
        fault: Why it is not shown; empty if it is.
    """

    width: int
    height: int
    scale: float
    uri: str
    fault: str = ""


def load_photos(paths: Mapping[int, Path], budget_bytes: int = BUDGET_BYTES) -> dict[int, Photo]:
    """Makes photographs small, all alike, until they fit.

    Args:
        paths: Path of each image, by image id, the most important first: what does not fit at the smallest size is
            left out from the end.
        budget_bytes: How many bytes of the page they may take.
    """
    photos: dict[int, Photo] = {}
    for step in STEPS:
        photos = {image_id: _photo(path, *step) for image_id, path in paths.items()}
        if sum(len(photo.uri) for photo in photos.values()) <= budget_bytes:
            return photos
    spent = 0
    for image_id, photo in photos.items():
        spent += len(photo.uri)
        if spent > budget_bytes:
            photos[image_id] = replace(photo, uri="", fault="The picture is left out to keep this page small.")
    return photos


def person(
    entry: Mapping[str, Any], skeleton: Skeleton, scale: float, *, label: str = "", style: str = "", boxed: bool = False
) -> "Markup":
    """Draws an annotation or a detection.

    Args:
        entry: Its `bbox`, and `keypoints` where it has any. The third number of a keypoint is the visibility of an
            annotation (0 not labelled, 1 occluded, 2 visible), or the confidence of a detection, which has a `score`.
        skeleton: Its edges become limbs.
        scale: Page units per pixel.
        label: A word at the box's upper edge.
        style: A CSS class of its own.
        boxed: Whether the box is drawn.
    """
    from markupsafe import Markup, escape

    is_detection = "score" in entry
    points = np.asarray(entry.get("keypoints") or [], np.float64).reshape(-1, 3) * [scale, scale, 1]
    shown = points[:, 2] >= (MIN_KEYPOINT_CONFIDENCE if is_detection else 1)
    x, y, width, height = (float(value) * scale for value in entry["bbox"])
    parts = []
    if boxed:
        parts.append(f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3"/>')
    if len(points) == skeleton.n_keypoints:
        parts += _lines(points, shown, skeleton, faint=not is_detection)
    if label:
        left, top = max(x, 0) + 4, max(y - 5, 15)
        parts.append(f'<text class="tag" x="{left:.1f}" y="{top:.1f}">{escape(label)}</text>')
    return Markup(f'<g class="{escape(style)}">{"".join(parts)}</g>')


def error_lines(annotation: Mapping[str, Any], detection: Mapping[str, Any], scale: float) -> "Markup":
    """Draws a line from where each labelled keypoint is to where it was found."""
    from markupsafe import Markup

    truth, found = (np.asarray(entry["keypoints"], np.float64).reshape(-1, 3) for entry in (annotation, detection))
    lines = "".join(
        f"M{a[0] * scale:.1f} {a[1] * scale:.1f}L{b[0] * scale:.1f} {b[1] * scale:.1f}"
        for a, b in zip(truth, found, strict=False)
        if a[2] > 0
    )
    return Markup(f'<path class="error" d="{lines}"/>') if lines else Markup()


def _photo(path: Path, long_side_px: int, quality: int) -> Photo:
    """Reads, shrinks and encodes; a photograph is never enlarged, which costs bytes and shows nothing more."""
    try:
        image = read_image_bgr(path)
    except PosefoundryError:
        return Photo(320, 240, 0.0, "", "The picture cannot be read.")
    height, width = image.shape[:2]
    scale = min(1.0, long_side_px / max(height, width))
    small = cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1].tobytes()
    # The page's units are those of the largest step whatever the image's size, so that lines and tags suit them all.
    units = STEPS[0][0] / max(height, width)
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return Photo(round(width * units), round(height * units), units, uri)


def _lines(points: np.ndarray, shown: np.ndarray, skeleton: Skeleton, *, faint: bool) -> list[str]:
    """Returns the limbs and the joints as paths, one for each side of the body, over a dark one that sets them off."""
    sides = [_side(name) for name in skeleton.keypoint_names]
    at = [f"{x:.1f} {y:.1f}" for x, y in points[:, :2]]
    limbs: dict[str, str] = {}
    for a, b in skeleton.edges:
        if shown[a] and shown[b]:
            side = sides[a] if sides[a] == sides[b] else "middle"
            limbs[side] = limbs.get(side, "") + f"M{at[a]}L{at[b]}"
    joints: dict[str, str] = {}
    for index in np.flatnonzero(shown):
        # A dot is a line of no length with round ends.
        occluded = " occluded" if faint and points[index, 2] < 2 else ""
        joints[sides[index] + occluded] = joints.get(sides[index] + occluded, "") + f"M{at[index]}h0"
    paths = []
    for style, drawn in (("limb", limbs), ("joint", joints)):
        if drawn:
            paths.append(f'<path class="{style} outline" d="{"".join(drawn.values())}"/>')
            paths += [f'<path class="{style} {side}" d="{path}"/>' for side, path in drawn.items()]
    return paths


def _side(name: str) -> str:
    lowered = name.lower()
    return next((side for side in ("left", "right") if side in lowered), "middle")


def by_image(entries: Sequence[Mapping[str, Any]], image_ids: set[int]) -> dict[int, list[Mapping[str, Any]]]:
    """Sorts annotations or detections of some images by image id."""
    found: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in image_ids}
    for entry in entries:
        if entry.get("image_id") in found:
            found[entry["image_id"]].append(entry)
    return found
