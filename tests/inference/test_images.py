"""Whatever an image file holds, the pixels come as BGR uint8, or a message says why not."""

import cv2
import numpy as np
import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.inference.images import decode_image_bgr, read_image_bgr

COLOUR = (200, 100, 50)  # BGR


def plain(height=12, width=20, channels=3, dtype=np.uint8):
    factor = 257 if dtype == np.uint16 else 1
    values = {1: (100,), 3: COLOUR, 4: (*COLOUR, 128)}[channels]
    return np.full((height, width, channels), np.array(values, np.uint32) * factor, dtype)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (plain(), COLOUR),
        (plain(channels=4), COLOUR),
        (plain(dtype=np.uint16), COLOUR),
        (plain(channels=4, dtype=np.uint16), COLOUR),
        (plain(channels=1), (100, 100, 100)),
        (plain(channels=1, dtype=np.uint16), (100, 100, 100)),
        (plain(1, 1), COLOUR),
        (plain(1, 3000), COLOUR),
    ],
)
def test_every_kind_of_png_becomes_bgr(tmp_path, pixels, expected):
    path = tmp_path / "bild ä.png"
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels)
    (tmp_path / "a.png").rename(path)
    image = read_image_bgr(path)
    assert image.shape == (*pixels.shape[:2], 3) and image.dtype == np.uint8
    assert (image == expected).all()


def test_exif_orientation_is_not_applied(tmp_path):
    _, jpeg = cv2.imencode(".jpg", plain(12, 20))
    # A little-endian EXIF block with one entry: orientation (0x0112), 6 = rotate by 90 degrees.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    content = jpeg.tobytes()
    rotated = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape == (20, 12, 3)  # the flag matters
    assert decode_image_bgr(rotated, "rotated").shape == (12, 20, 3)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    _, jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    (tmp_path / "cut.jpg").write_bytes(jpeg.tobytes()[: len(jpeg) // 2])
    for name, words in {
        "text.jpg": "text.jpg: expected an image .* got 12 bytes",
        "empty.png": "empty.png: expected an image .* got 0 bytes",
        "cut.jpg": "cut.jpg: expected a whole image",
        "missing.jpg": "missing.jpg: expected an image, found no file",
        ".": "expected a readable image file",
    }.items():
        with pytest.raises(PosefoundryError, match=words):
            read_image_bgr(tmp_path / name)
