"""Whether a file holds a whole image. OpenCV alone does not tell: it fills what a cut-off JPEG lacks with grey."""

import re
import struct
from pathlib import Path

import cv2
import numpy as np

from posefoundry.datasets.coco import Fault

# In JPEG data a marker is 0xFF and a byte that is neither 0 (a stuffed data byte), 0xFF (fill) nor a restart marker
# D0..D7 (ITU-T T.81, B.1.1).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_JPEG_END = 0xD9
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_whole_image(path: Path, width_px: int, height_px: int) -> bytes | Fault:
    """Returns a file's bytes if they are a whole image of the given size, otherwise what is wrong with it.

    The size is that of the stored pixels; like COCO's, annotations do not follow an EXIF orientation.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Fault("image_missing", f"{path} does not exist")
    except OSError as error:
        return Fault("image_unreadable", f"{path} cannot be read: {error.strerror}")
    if is_truncated(content):
        return Fault("image_truncated", f"{path} ends before its image does")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    except cv2.error:  # more pixels than OpenCV will hold
        image = None
    if image is None:
        return Fault("image_undecodable", f"{path} is not an image that OpenCV can decode")
    if image.shape[:2] != (height_px, width_px):
        got = f"{image.shape[1]}x{image.shape[0]}"
        return Fault("image_size_mismatch", f"{path} is {got} px, its record says {width_px}x{height_px} px")
    return content


def is_truncated(content: bytes) -> bool:
    """Tells whether a JPEG, PNG or WebP lacks its end; other formats are left to the decoder."""
    if content.startswith(b"\xff\xd8"):
        return not _jpeg_has_end(content)
    if content.startswith(_PNG_SIGNATURE):
        return not _png_has_end(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return len(content) < 8 + struct.unpack("<I", content[4:8])[0]
    return False


def _jpeg_has_end(content: bytes) -> bool:
    """Walks the segments to the end-of-image marker: an embedded thumbnail has such a marker of its own."""
    position = 2
    while match := _JPEG_MARKER.search(content, position):
        marker, position = match[1][0], match.end()
        if marker == _JPEG_END:
            return True
        if position + 2 > len(content):
            return False
        position += struct.unpack(">H", content[position : position + 2])[0]
    return False


def _png_has_end(content: bytes) -> bool:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        position += 12 + length
        if kind == b"IEND":
            return position <= len(content)
    return False
