"""What a drawn person wears and looks like."""

from dataclasses import dataclass

import cv2
import numpy as np

from posefoundry.datasets.synthetic.layer import Colour

_SKIN_TONES_BGR = ((189, 208, 240), (150, 180, 225), (110, 145, 200), (75, 105, 160), (50, 72, 115), (38, 54, 88))
_HAIR_BGR = ((25, 25, 30), (30, 45, 75), (45, 75, 120), (95, 165, 215), (50, 70, 165), (150, 150, 155), (140, 60, 90))

_HAIR_CONTRAST = 120  # sum of the differences of the three channels


@dataclass(frozen=True)
class Outfit:
    """Colours and cuts of one person; the painter darkens whatever is on the person's left."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    accent: Colour
    has_long_sleeves: bool
    has_long_trousers: bool
    has_long_hair: bool
    has_stripes: bool


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Draws clothes, skin and hair by chance."""
    skin = np.array(_SKIN_TONES_BGR[rng.integers(len(_SKIN_TONES_BGR))]) * rng.uniform(0.92, 1.05)
    # Hair must differ from skin, or the back of a head would look like a face.
    hairs = [hair for hair in _HAIR_BGR if np.abs(skin - hair).sum() > _HAIR_CONTRAST]
    hair = np.array(hairs[rng.integers(len(hairs))]) * rng.uniform(0.9, 1.1)
    # Cloth is light, so that its darker half differs from it clearly.
    shirt, trousers, shoes, accent = sample_colours(rng, 4, saturation=(30, 215), value=(150, 245))
    return Outfit(
        skin=_colour(skin),
        hair=_colour(hair),
        shirt=shirt,
        trousers=trousers,
        shoes=shoes,
        accent=accent,
        has_long_sleeves=bool(rng.random() < 0.55),
        has_long_trousers=bool(rng.random() < 0.7),
        has_long_hair=bool(rng.random() < 0.35),
        has_stripes=bool(rng.random() < 0.25),
    )


def sample_colours(
    rng: np.random.Generator, count: int, *, saturation: tuple[float, float], value: tuple[float, float]
) -> list[Colour]:
    """Draws colours of any hue; saturation and value in 0..255."""
    low, high = zip((0, 180), saturation, value, strict=True)
    pixels = rng.uniform(low, high, (1, count, 3)).astype(np.uint8)
    return [_colour(bgr) for bgr in cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR)[0]]


def _colour(bgr: np.ndarray) -> Colour:
    blue, green, red = bgr.tolist()
    return float(min(blue, 255)), float(min(green, 255)), float(min(red, 255))
