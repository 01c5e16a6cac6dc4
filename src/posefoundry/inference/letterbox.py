"""Fitting an image into the model's input without distorting it, and finding the way back."""

from dataclasses import dataclass

import cv2
import numpy as np

PADDING_GREY = 114  # what the published models saw around their training images


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in the model's input.

    Attributes:
        scale_xy: Input pixels per source pixel. Both are nearly equal; they differ by the rounding to whole pixels,
            which matters for very elongated images.
        pad_xy: Padding to the left and above, in input pixels.
        source_size_hw: Size of the source image in pixels.
    """

    scale_xy: tuple[float, float]
    pad_xy: tuple[int, int]
    source_size_hw: tuple[int, int]

    def to_source_xy(self, points_xy: np.ndarray) -> np.ndarray:
        """Maps points (..., 2) from the model's input to the source image, unclipped."""
        return (points_xy - np.array(self.pad_xy, np.float32)) / np.array(self.scale_xy, np.float32)


def input_size_hw(source_size_hw: tuple[int, int], image_size_px: int, stride_px: int) -> tuple[int, int]:
    """Returns the smallest input for an image: long side `image_size_px`, both sides multiples of the stride."""
    scale = min(image_size_px / side for side in source_size_hw)
    height, width = (-(-max(round(side * scale), 1) // stride_px) * stride_px for side in source_size_hw)
    return height, width


def letterbox(image_bgr: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """Scales an image to fit into `size_hw`, enlarging small ones, and centres it on grey.

    Args:
        image_bgr: (H, W, 3) uint8.
        size_hw: Height and width of the model's input in pixels.

    Returns:
        The input image (*size_hw, 3) uint8 and where the source lies in it.
    """
    height, width = image_bgr.shape[:2]
    input_height, input_width = size_hw
    scale = min(input_height / height, input_width / width)
    scaled_width, scaled_height = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = (input_width - scaled_width) // 2, (input_height - scaled_height) // 2
    canvas = np.full((input_height, input_width, 3), PADDING_GREY, np.uint8)
    inner = canvas[top : top + scaled_height, left : left + scaled_width]
    if (scaled_height, scaled_width) == (height, width):
        inner[:] = image_bgr
    else:
        inner[:] = cv2.resize(image_bgr, (scaled_width, scaled_height), interpolation=cv2.INTER_LINEAR)
    return canvas, Letterbox(
        scale_xy=(scaled_width / width, scaled_height / height),
        pad_xy=(left, top),
        source_size_hw=(height, width),
    )
