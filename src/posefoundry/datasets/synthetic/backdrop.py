"""What is around the people: rooms and open air with texture and clutter, and objects that stand in front."""

import cv2
import numpy as np

_BITS = 4


def paint_backdrop(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Paints a background (size, size, 3) uint8 BGR: soft colours, a floor, stripes, boxes and blobs, grain."""
    coarse = rng.uniform(30, 225, (1, 1, 3)) + rng.uniform(-45, 45, (rng.integers(2, 7), rng.integers(2, 7), 3))
    image = cv2.resize(coarse.clip(0, 255).astype(np.uint8), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.6:
        _floor(rng, image)
    if rng.random() < 0.35:
        _stripes(rng, image)
    for _ in range(int(rng.integers(0, 7))):
        _clutter(rng, image)
    return image


def _floor(rng: np.random.Generator, image: np.ndarray) -> None:
    size = len(image)
    top = int(size * rng.uniform(0.5, 0.85))
    shade = np.linspace(0.75, 1.1, size - top)[:, None, None]
    image[top:] = (rng.uniform(40, 210, 3) * shade).clip(0, 255)


def _stripes(rng: np.random.Generator, image: np.ndarray) -> None:
    size = len(image)
    angle, period = rng.uniform(0, np.pi), size * rng.uniform(0.04, 0.2)
    steps = np.arange(size) * 2 * np.pi / period
    wave = np.sin(steps[None] * np.cos(angle) + steps[:, None] * np.sin(angle))
    change = (rng.uniform(8, 28) * wave).astype(np.int16)[..., None]
    image[:] = (image + change).clip(0, 255)


def _clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    size = len(image)
    centre, half = rng.uniform(0, size, 2), size * rng.uniform(0.02, 0.16, 2)
    colour = tuple(float(c) for c in rng.uniform(10, 245, 3))
    frame = tuple(0.6 * c for c in colour)
    kind = rng.random()
    if kind < 0.5:
        corners = (np.stack([centre - half, centre + half]) * (1 << _BITS)).astype(int).tolist()
        cv2.rectangle(image, corners[0], corners[1], colour, -1, cv2.LINE_AA, _BITS)
        cv2.rectangle(image, corners[0], corners[1], frame, max(1, size // 120), cv2.LINE_AA, _BITS)
    elif kind < 0.8:
        axes = (half * (1 << _BITS)).astype(int).tolist()
        middle = (centre * (1 << _BITS)).astype(int).tolist()
        cv2.ellipse(image, middle, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA, _BITS)
    else:
        far = centre + rng.uniform(-0.4, 0.4, 2) * size
        ends = (np.stack([centre, far]) * (1 << _BITS)).astype(int).tolist()
        cv2.line(image, ends[0], ends[1], colour, max(1, int(size * rng.uniform(0.005, 0.03))), cv2.LINE_AA, _BITS)


def add_grain(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Adds the noise of a camera."""
    amount = int(rng.integers(2, 12))
    noise = rng.integers(0, amount + 1, image.shape, np.uint8)
    return cv2.subtract(cv2.add(image, noise), np.full_like(image, amount // 2))


def paint_obstacle(rng: np.random.Generator, size_px: int, box_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paints an object that stands in front of a person: a crate, a post or a bush.

    Args:
        rng: Source of chance.
        size_px: Side of the image.
        box_xyxy: The person's box; the object covers a part of it.

    Returns:
        (size, size, 3) uint8 BGR and (size, size) uint8 coverage 0..255.
    """
    picture, cover = np.zeros((size_px, size_px, 3), np.uint8), np.zeros((size_px, size_px), np.uint8)
    x0, y0, x1, y1 = box_xyxy
    width, height = x1 - x0, y1 - y0
    colour = rng.uniform(30, 220, 3)
    kind = rng.random()
    if kind < 0.45:
        left, right = x0 + width * rng.uniform(-0.3, 0.2), x0 + width * rng.uniform(0.6, 1.3)
        top, bottom = y1 - height * rng.uniform(0.12, 0.4), y1 + height * rng.uniform(0.02, 0.1)
        _crate(picture, cover, (left, top, right, bottom), colour)
    elif kind < 0.7:
        x = x0 + width * rng.uniform(0.1, 0.9)
        half = width * rng.uniform(0.05, 0.12)
        _crate(picture, cover, (x - half, -2.0, x + half, y1 + height * 0.05), colour)
    else:
        n = 14
        centres = np.stack([rng.uniform(x0 - 0.1 * width, x0 + 0.8 * width, n), rng.uniform(-0.28, 0.03, n)], 1)
        centres[:, 1] = y1 + centres[:, 1] * height
        green = np.array([rng.uniform(20, 90), rng.uniform(80, 170), rng.uniform(20, 110)])
        for centre in centres:
            radius = int(height * rng.uniform(0.04, 0.09) * 16)
            middle = (centre * 16).astype(int).tolist()
            tone = tuple(float(c) for c in green * rng.uniform(0.7, 1.25))
            cv2.circle(picture, middle, radius, tone, -1, cv2.LINE_AA, _BITS)
            cv2.circle(cover, middle, radius, 255.0, -1, cv2.LINE_AA, _BITS)
    return picture, cover


def _crate(picture: np.ndarray, cover: np.ndarray, box: tuple[float, float, float, float], colour: np.ndarray) -> None:
    first, last = ((int(box[0]), int(box[1])), (int(box[2]), int(box[3])))
    cv2.rectangle(picture, first, last, tuple(float(c) for c in colour), -1)
    cv2.rectangle(cover, first, last, 255.0, -1)
    cv2.rectangle(picture, first, last, tuple(float(0.5 * c) for c in colour), max(1, len(picture) // 100))
