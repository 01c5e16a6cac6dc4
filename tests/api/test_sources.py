"""Every source gives images or a clear fault, and one bad file does not hide the others."""

import re
import struct

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from posefoundry import YOLO
from posefoundry.api.sources import Frame, open_source, take
from posefoundry.errors import PosefoundryError

GRADIENT = np.dstack([np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))] * 3)
GRADIENT[..., 0] = 10  # blue, so that exchanged channels are seen


@pytest.fixture(scope="module")
def model(checkpoints):
    return YOLO(checkpoints / "yolov8n-pose.pt")


def frames(source, **settings):
    items = list(open_source(source, **settings).items)
    faults = [item for item in items if not isinstance(item, Frame)]
    assert not faults, faults
    return items


def write_video(path, count=6, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), number * 30 % 256, np.uint8))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path):
    """a.png, b.jpg, bad.jpg (a text) and notes.txt."""
    cv2.imwrite(str(tmp_path / "a.png"), GRADIENT)
    cv2.imwrite(str(tmp_path / "b.jpg"), GRADIENT)
    (tmp_path / "bad.jpg").write_text("not an image")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def test_image_file(folder):
    for source in (folder / "a.png", str(folder / "a.png")):
        [frame] = frames(source)
        assert np.array_equal(frame.image_bgr, GRADIENT)
        assert frame.path == str(folder / "a.png")


@pytest.mark.parametrize("pattern", [".", "*.jpg", "**/*.[jp]*g"])
def test_folder_and_glob_with_a_bad_file(folder, pattern, monkeypatch, capsys, model):
    monkeypatch.chdir(folder)
    results = model(pattern, imgsz=64)
    expected = {".": ["a.png", "b.jpg"], "*.jpg": ["b.jpg"], "**/*.[jp]*g": ["a.png", "b.jpg"]}[pattern]
    assert [result.path for result in results] == expected
    assert "Skipped bad.jpg: expected an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GRADIENT, GRADIENT),
        (GRADIENT[..., 1], np.dstack([GRADIENT[..., 1]] * 3)),
        (GRADIENT[..., 1:2], np.dstack([GRADIENT[..., 1]] * 3)),
        (np.dstack([GRADIENT, GRADIENT[..., 0]]), GRADIENT),
        (GRADIENT.astype(np.uint16) << 8, GRADIENT),
    ],
)
def test_arrays(array, expected):
    [frame] = frames(array)
    assert np.array_equal(frame.image_bgr, expected)
    assert frame.image_bgr.flags.c_contiguous
    assert frame.path == "image0.jpg"


def test_pil_tensor_and_list():
    rgb = np.ascontiguousarray(GRADIENT[..., ::-1])
    tensor = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    found = frames([Image.fromarray(rgb), GRADIENT, tensor])
    assert [frame.path for frame in found] == ["image0.jpg", "image1.jpg", "image2.jpg"]
    assert all(np.array_equal(frame.image_bgr, GRADIENT) for frame in found)
    batch = frames(torch.stack([tensor, tensor.flip(1)]))
    assert np.array_equal(batch[1].image_bgr, GRADIENT[::-1])


def test_pil_and_files_are_turned_upright(tmp_path):
    """EXIF orientation 6: the camera was turned; shown upright, the picture is 40 wide and 60 high."""
    image = Image.fromarray(GRADIENT)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    [from_file] = frames(tmp_path / "turned.jpg")
    [from_pil] = frames(Image.open(tmp_path / "turned.jpg"))
    assert from_file.image_bgr.shape == from_pil.image_bgr.shape == (60, 40, 3)
    assert np.abs(from_file.image_bgr.astype(int) - from_pil.image_bgr).max() <= 4  # two JPEG decoders
    assert from_file.image_bgr[0, 0, 1] < from_file.image_bgr[-1, 0, 1]  # dark above


def test_address(web):
    for address in (f"{web}/images/bus.jpg", f"{web}/anything"):
        [frame] = frames(address)
        assert frame.image_bgr.shape == (80, 64, 3)
        assert frame.path == address


@pytest.mark.parametrize(("path", "told"), [("/missing.jpg", "Not Found"), ("/page", "(text/html): expected an image")])
def test_address_without_an_image(web, path, told, model):
    with pytest.raises(PosefoundryError, match=r"http://127.0.0.1:\d+/") as caught:
        model(web + path)
    assert told in str(caught.value)


def test_address_nobody_listens_at(model):
    with pytest.raises(PosefoundryError, match="expected an image or a video at this address, got"):
        model("http://127.0.0.1:9/x.jpg")


def test_video(tmp_path, model):
    video = write_video(tmp_path / "dance.avi")
    assert [round(frame.image_bgr.mean() / 30) for frame in frames(video)] == [0, 1, 2, 3, 4, 5]
    assert [round(frame.image_bgr.mean() / 30) for frame in frames(video, vid_stride=2)] == [0, 2, 4]
    stream = model(video, stream=True, imgsz=64)
    assert next(stream).path == str(video)
    assert len(list(stream)) == 5


def test_video_with_a_corrupt_frame(tmp_path, model, capfd):
    """The third of six frames is overwritten with zeros; the others are still seen, and the loss is told."""
    video = write_video(tmp_path / "dance.avi")
    content = bytearray(video.read_bytes())
    starts = [i for i in range(len(content)) if content[i : i + 4] == b"00dc" and i > 200][:6]
    start = starts[2] + 8
    length = struct.unpack("<I", content[start - 4 : start])[0]
    content[start : start + length] = bytes(length)
    video.write_bytes(content)
    results = model(video, imgsz=64)
    assert len(results) == 5
    assert re.search(rf"Skipped {video}: frame \d cannot be decoded", capfd.readouterr().err)


def test_video_cut_off_and_no_video(tmp_path, model, capfd):
    video = write_video(tmp_path / "dance.avi", count=30)
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    assert 0 < len(model(video, imgsz=64)) < 30
    assert re.search(rf"Skipped {video}: frames \d+ to 29 cannot be decoded", capfd.readouterr().err)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(PosefoundryError, match=r"text\.mp4: expected a video"):
        model(tmp_path / "text.mp4")


def test_camera_that_is_not_there(model):
    with pytest.raises(PosefoundryError, match="never ends; ask for its results with stream=True"):
        model(7)
    with pytest.raises(PosefoundryError, match="camera 7: expected a video"):
        next(model("7", stream=True))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere.jpg", r"nowhere\.jpg: expected an image, found no file"),
        ("bad.jpg", r"bad\.jpg: expected an image \(JPEG, PNG"),
        ("empty", "empty: expected images or videos in this folder, found none"),
        ("*.tiff", r"\*\.tiff: expected files that match, found none"),
        ("clip.mp4", r"clip\.mp4: expected a video, found no file"),
        ([], "got an empty list"),
        (["bad.jpg", "nowhere.jpg"], "Nothing in the source can be read; 2 faults, the first: bad"),
        (True, "source: expected an image"),
        (3.5, "got float"),
        (np.zeros((4, 4, 5), np.uint8), r"got \(4, 4, 5\) of uint8"),
        (np.zeros((4, 4, 3), np.float32), "of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (torch.full((3, 8, 8), 200.0), "got 200..200. Divide by 255"),
        (torch.zeros((8, 8, 3), dtype=torch.uint8), r"got \(8, 8, 3\) of torch.uint8"),
    ],
)
def test_bad_sources_are_told_apart(source, told, folder, monkeypatch, model):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(PosefoundryError, match=told):
        model(source)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((10, 20_000, 3), np.uint8),
        np.zeros((20_000, 10, 3), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64), np.uint16),
        np.zeros((64, 64), np.uint8),
    ],
)
def test_odd_images_give_results_from_file_and_memory(image, tmp_path, model):
    cv2.imwrite(str(tmp_path / "odd.png"), image)
    for source in (image, tmp_path / "odd.png"):
        [result] = model(source, imgsz=64, conf=0.0, max_det=5)
        assert result.orig_shape == image.shape[:2]
        assert len(result) == 5
        assert result.plot().shape == (*image.shape[:2], 3)
        assert bool(((result.boxes.xyxyn >= 0) & (result.boxes.xyxyn <= 1)).all())


def test_without_a_source_people_are_painted(model):
    [result] = model(imgsz=64)
    assert result.orig_shape == (640, 640)
    assert result.orig_img.std() > 10


def test_take_is_lazy():
    taken = []
    chunks = take((taken.append(i) or i for i in range(10)), 3)
    assert next(chunks) == [0, 1, 2]
    assert taken == [0, 1, 2]
    assert list(chunks) == [[3, 4, 5], [6, 7, 8], [9]]
