"""What is around the people: walls, floors and open air with texture and clutter, and things that stand in front."""

from itertools import pairwise

import cv2
import numpy as np

from posefoundry.datasets.synthetic.layer import Layer, capsule, ellipse, shade
from posefoundry.datasets.synthetic.outfit import sample_colours


def paint_backdrop(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Paints a background (size, size, 3) uint8 BGR: soft colours, perhaps a floor and stripes, boxes and blobs."""
    middle = np.array(sample_colours(rng, 1, saturation=(0, 150), value=(60, 225)))
    cells = (int(rng.integers(2, 7)), int(rng.integers(2, 7)))
    coarse = middle + rng.uniform(-35, 35, (*cells, 1)) + rng.uniform(-14, 14, (*cells, 3))
    picture = cv2.resize(coarse.clip(0, 255).astype(np.uint8), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.35:
        _stripes(rng, picture)
    if rng.random() < 0.65:
        _floor(rng, picture)
    clutter = Layer(size_px)
    for _ in range(int(rng.integers(0, 8))):
        _thing(rng, clutter, size_px)
    clutter.blend_onto(picture)
    return picture


def _floor(rng: np.random.Generator, picture: np.ndarray) -> None:
    size_px = len(picture)
    top = int(size_px * rng.uniform(0.5, 0.85))
    colour = np.array(sample_colours(rng, 1, saturation=(0, 130), value=(60, 210)))
    light = np.linspace(0.75, 1.1, size_px - top)[:, None, None]
    picture[top:] = (colour * light).clip(0, 255)
    skirting = max(1, size_px // 80)
    picture[top : top + skirting] = picture[top : top + skirting] // 2


def _stripes(rng: np.random.Generator, picture: np.ndarray) -> None:
    size_px = len(picture)
    angle, period = rng.uniform(0, np.pi), size_px * rng.uniform(0.04, 0.2)
    steps = (np.arange(size_px) * (2 * np.pi / period)).astype(np.float32)
    wave = np.sin(steps * np.float32(np.cos(angle)) + steps[:, None] * np.float32(np.sin(angle)))
    change = (wave * np.float32(rng.uniform(6, 22))).astype(np.int16)[..., None]
    picture[:] = (picture + change).clip(0, 255)


def _thing(rng: np.random.Generator, layer: Layer, size_px: int) -> None:
    """Paints a framed box, a blob or a bar somewhere."""
    centre, half = rng.uniform(0, size_px, 2), size_px * rng.uniform(0.02, 0.15, 2)
    (colour,) = sample_colours(rng, 1, saturation=(0, 190), value=(20, 245))
    frame = max(1.0, size_px / 100)
    kind = rng.random()
    if kind < 0.5:
        layer.fill(_box(centre - half - frame, centre + half + frame), shade(colour, 0.55))
        layer.fill(_box(centre - half, centre + half), colour)
    elif kind < 0.8:
        layer.fill(ellipse(centre, (half[0], half[1]), rng.uniform(0, np.pi)), colour)
    else:
        radius = size_px * rng.uniform(0.003, 0.016)
        layer.fill(capsule(centre, centre + size_px * rng.uniform(-0.4, 0.4, 2), (radius, radius)), colour)


def _box(low_xy: np.ndarray, high_xy: np.ndarray) -> np.ndarray:
    (left, top), (right, bottom) = low_xy, high_xy
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def paint_shadow(picture: np.ndarray, centre_xy: np.ndarray, half_axes_px: tuple[float, float]) -> None:
    """Darkens the ground under somebody's feet, in place."""
    layer = Layer(len(picture))
    layer.fill(ellipse(centre_xy, half_axes_px), (0.0, 0.0, 0.0))
    layer.bgra[..., 3] //= 3
    layer.blend_onto(picture)


def add_grain(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Returns the picture with the noise of a camera."""
    amount = int(rng.integers(2, 12))
    noise = rng.integers(0, amount + 1, picture.shape, np.uint8)
    return cv2.subtract(cv2.add(picture, noise), np.full_like(picture, amount // 2))


def paint_obstacle(rng: np.random.Generator, size_px: int, box_xyxy: np.ndarray) -> Layer:
    """Paints a crate, a post or a bush that hides a part of the person in the given box (4,) in px."""
    layer = Layer(size_px)
    layer.begin_part()
    kind = rng.random()
    if kind < 0.4:
        _crate(rng, layer, box_xyxy)
    elif kind < 0.65:
        _post(rng, layer, box_xyxy)
    else:
        _bush(rng, layer, box_xyxy)
    return layer


def _crate(rng: np.random.Generator, layer: Layer, box_xyxy: np.ndarray) -> None:
    low, high = box_xyxy[:2], box_xyxy[2:]
    width, height = high - low
    first = np.array([low[0] + width * rng.uniform(-0.2, 0.3), high[1] - height * rng.uniform(0.12, 0.38)])
    last = np.array([first[0] + width * rng.uniform(0.5, 0.9), high[1] + height * rng.uniform(0.02, 0.08)])
    (colour,) = sample_colours(rng, 1, saturation=(30, 170), value=(90, 210))
    edge = 0.012 * height
    layer.fill(_box(first - edge, last + edge), shade(colour, 0.45))
    planks = np.linspace(first[1], last[1], int(rng.integers(2, 5)) + 1)
    for top, bottom in pairwise(planks):
        tone = shade(colour, rng.uniform(0.85, 1.15))
        layer.fill(_box(np.array([first[0], top]), np.array([last[0], bottom - edge])), tone)


def _post(rng: np.random.Generator, layer: Layer, box_xyxy: np.ndarray) -> None:
    low, high = box_xyxy[:2], box_xyxy[2:]
    width, height = high - low
    x, half = low[0] + width * rng.uniform(0.1, 0.9), height * rng.uniform(0.02, 0.045)
    (colour,) = sample_colours(rng, 1, saturation=(0, 120), value=(60, 200))
    foot, head = high[1] + 0.04 * height, low[1] - height * rng.uniform(0.05, 1.0)
    for inset, factor in ((0.0, 0.55), (0.25, 1.0), (1.1, 1.25)):  # outline, body, sheen
        right = x + half * (1 - min(inset, 0.25))
        layer.fill(_box(np.array([x - half * (1 - inset), head]), np.array([right, foot])), shade(colour, factor))


def _bush(rng: np.random.Generator, layer: Layer, box_xyxy: np.ndarray) -> None:
    low, high = box_xyxy[:2], box_xyxy[2:]
    width, height = high - low
    green = (rng.uniform(20, 90), rng.uniform(90, 170), rng.uniform(30, 110))
    middle = low[0] + width * rng.uniform(0.1, 0.9)
    for _ in range(16):
        centre = np.array([middle + width * rng.uniform(-0.4, 0.4), high[1] - height * rng.uniform(-0.03, 0.26)])
        radius = height * rng.uniform(0.035, 0.08)
        tone = shade(green, rng.uniform(0.75, 1.25))
        layer.fill(ellipse(centre, (1.12 * radius, 1.12 * radius)), shade(tone, 0.7))
        layer.fill(ellipse(centre, (radius, radius)), tone)
