"""Images from disk or memory, whatever their format, as BGR uint8."""

from pathlib import Path

import cv2
import numpy as np

from posefoundry.datasets.image_files import is_truncated
from posefoundry.errors import PosefoundryError


def read_image_bgr(path: Path, *, upright: bool = False) -> np.ndarray:
    """Reads an image file.

    Greyscale, 16-bit, palette and RGBA files all become 8-bit BGR; transparency is dropped. An EXIF orientation is
    applied only if `upright` is set: the coordinates of COCO annotations are those of the stored pixels.

    Returns:
        (H, W, 3) uint8.

    Raises:
        PosefoundryError: There is no such file, or it is not a whole image.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PosefoundryError(f"{path}: expected an image, found no file.") from None
    except OSError as error:
        raise PosefoundryError(f"{path}: expected a readable image file, got: {error.strerror}.") from None
    return decode_image_bgr(content, str(path), upright=upright)


def decode_image_bgr(content: bytes, name: str, *, upright: bool = False) -> np.ndarray:
    """Decodes an image file's bytes as `read_image_bgr` does; `name` stands for it in messages.

    Raises:
        PosefoundryError: The bytes are not a whole image.
    """
    if is_truncated(content):
        raise PosefoundryError(f"{name}: expected a whole image, got one that ends early. Copy or download it again.")
    try:
        flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:  # more pixels than OpenCV will hold
        raise PosefoundryError(f"{name}: expected an image that OpenCV can decode, got: {error.err}.") from None
    if image is None:
        raise PosefoundryError(
            f"{name}: expected an image (JPEG, PNG, WebP, BMP, TIFF), got {len(content)} bytes that are not one."
        )
    return image
