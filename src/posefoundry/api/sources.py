"""What can be predicted on: files, folders, globs, addresses, videos, cameras, and images in memory.

A bad file is no exception here but an item of its own, so that the others are still seen.
"""

import glob
import itertools
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from posefoundry.datasets.yolo import IMAGE_SUFFIXES
from posefoundry.errors import PosefoundryError
from posefoundry.inference.images import decode_image_bgr, read_image_bgr

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
WEB = ("http://", "https://")
LIVE = ("rtsp://", "rtmp://", "tcp://")
URL_TIMEOUT_SECONDS = 10
MAX_URL_BYTES = 1 << 30
MAX_LOST_FRAMES = 300  # in a row; then the rest of a video is given up


@dataclass(frozen=True)
class Frame:
    """An image to predict on.

    Attributes:
        image_bgr: (H, W, 3) uint8.
        path: File or address it came from, or a name for an image in memory.
        fps: Frames per second of the video it belongs to; None for a still image.
    """

    image_bgr: np.ndarray
    path: str
    fps: float | None = None


@dataclass(frozen=True)
class Source:
    """Images in order, and faults in the place of those that cannot be read.

    Attributes:
        items: Read as they are asked for.
        count: How many there are, where that is known.
        many: Whether one fault leaves others to look at.
        endless: Whether it is live, and ends only when its reader stops.
    """

    items: Iterator[Frame | PosefoundryError]
    count: int | None
    many: bool = False
    endless: bool = False


def open_source(source: Any, *, vid_stride: int = 1, name: str = "image0.jpg") -> Source:
    """Opens whatever `source` is.

    Image files are turned upright as their EXIF says. Arrays are BGR (H, W, 3) or (H, W), uint8 or uint16, also with
    alpha; tensors are RGB in 0..1, (3, H, W) or (B, 3, H, W); PIL images are turned upright.

    Args:
        source: A path, glob, address, camera's number, array, tensor, PIL image, or a list of such; None is a picture
            of people that is painted on the spot.
        vid_stride: Takes every n-th frame of a video.
        name: What an image in memory is called.

    Raises:
        PosefoundryError: There is nothing there, or nothing that could hold images.
    """
    if source is None:
        return Source(iter([Frame(_painted_people(), "painted_people.jpg")]), 1)
    if isinstance(source, bool):
        raise PosefoundryError(f"source: expected an image, a folder, a video..., got {source!r}.")
    if isinstance(source, int):
        return _open_camera(source, vid_stride)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), vid_stride)
    if isinstance(source, list | tuple):
        return _open_list(source, vid_stride)
    if isinstance(source, torch.Tensor) and source.ndim == 4:
        images = [Frame(_from_tensor(image), f"image{i}.jpg") for i, image in enumerate(source)]
        return Source(iter(images), len(images), many=True)
    return Source(iter([Frame(_image_in_memory(source), name)]), 1)


def _painted_people() -> np.ndarray:
    from posefoundry.datasets.synthetic import draw_image

    drawn = draw_image(0, "test", 0, size_px=640, max_persons=4)
    return decode_image_bgr(drawn.jpeg, "the painted picture")


def _open_path(text: str, vid_stride: int) -> Source:
    if text.startswith(WEB):
        return _open_url(text, vid_stride)
    if text.startswith(LIVE):
        return Source(_video_frames(text, vid_stride), None, many=True, endless=True)
    path = Path(text)
    if not path.exists() and text.isdigit():
        return _open_camera(int(text), vid_stride)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        if not files:
            raise PosefoundryError(f"{path}: expected images or videos in this folder, found none.")
        return _open_files(files, vid_stride)
    if not path.exists() and glob.has_magic(text):
        files = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207 - takes absolute ones
        if not files:
            raise PosefoundryError(f"{text}: expected files that match, found none.")
        return _open_files([file for file in files if file.is_file()], vid_stride)
    return _open_file(path, vid_stride)


def _open_file(path: Path, vid_stride: int) -> Source:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        if not path.is_file():
            raise PosefoundryError(f"{path}: expected a video, found no file.")
        return Source(_video_frames(str(path), vid_stride), None, many=True)
    if not path.suffix and not path.exists():
        raise PosefoundryError(f"{path}: expected an image or a folder of images, found nothing there.")
    return Source(_still(path), 1)


def _still(path: Path) -> Iterator[Frame | PosefoundryError]:
    try:
        yield Frame(read_image_bgr(path, upright=True), str(path))
    except PosefoundryError as error:
        yield error


def _open_files(files: list[Path], vid_stride: int) -> Source:
    stills = all(file.suffix.lower() not in VIDEO_SUFFIXES for file in files)
    items = itertools.chain.from_iterable(_open_file(file, vid_stride).items for file in files)
    return Source(items, len(files) if stills else None, many=True)


def _open_list(sources: list[Any] | tuple[Any, ...], vid_stride: int) -> Source:
    if not sources:
        raise PosefoundryError("source: expected at least one image, got an empty list.")

    def items() -> Iterator[Frame | PosefoundryError]:
        for number, source in enumerate(sources):
            try:
                opened = open_source(source, vid_stride=vid_stride, name=f"image{number}.jpg")
            except PosefoundryError as error:
                yield error
            else:
                yield from opened.items

    plain = all(not isinstance(source, str | os.PathLike) for source in sources)
    return Source(items(), len(sources) if plain else None, many=True)


def _open_url(url: str, vid_stride: int) -> Source:
    """Fetches a file; its content, not its name, tells what it is."""
    try:
        with urllib.request.urlopen(url, timeout=URL_TIMEOUT_SECONDS) as response:
            kind = response.headers.get_content_type()
            content = response.read(MAX_URL_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise PosefoundryError(f"{url}: expected an image or a video at this address, got: {reason}.") from None
    if len(content) > MAX_URL_BYTES:
        raise PosefoundryError(f"{url}: expected at most {MAX_URL_BYTES} bytes, got more. Download it yourself.")
    if kind.startswith("video/") or Path(url.partition("?")[0]).suffix.lower() in VIDEO_SUFFIXES:
        return Source(_video_frames_of(content, url, vid_stride), None, many=True)
    try:
        image = decode_image_bgr(content, f"{url} ({kind})", upright=True)
    except PosefoundryError as error:
        return Source(iter([error]), 1)
    return Source(iter([Frame(image, url)]), 1)


def _open_camera(number: int, vid_stride: int) -> Source:
    return Source(_video_frames(number, vid_stride), None, many=True, endless=True)


def _video_frames_of(content: bytes, url: str, vid_stride: int) -> Iterator[Frame | PosefoundryError]:
    with tempfile.NamedTemporaryFile(suffix=Path(url.partition("?")[0]).suffix or ".mp4") as file:
        file.write(content)
        file.flush()
        yield from _video_frames(file.name, vid_stride, called=url)


def _video_frames(
    video: str | int, vid_stride: int, *, called: str | None = None
) -> Iterator[Frame | PosefoundryError]:
    name = called or (f"camera {video}" if isinstance(video, int) else video)
    capture = _capture(video)
    try:
        if not capture.isOpened():
            yield PosefoundryError(f"{name}: expected a video that OpenCV can open, got something else.")
            return
        fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        last_good = -1
        for index in itertools.count():
            image = _next_image(capture)
            if image is None and (index >= stated or index - last_good > MAX_LOST_FRAMES):
                break
            if image is not None:
                if last_good < index - 1:
                    yield PosefoundryError(f"{name}: {_frames(last_good + 1, index - 1)} cannot be decoded.")
                last_good = index
                if index % vid_stride == 0:
                    yield Frame(image, name, fps / vid_stride)
        if last_good < stated - 1:
            yield PosefoundryError(f"{name}: {_frames(last_good + 1, stated - 1)} cannot be decoded.")
    finally:
        capture.release()


def _next_image(capture: cv2.VideoCapture) -> np.ndarray | None:
    """Returns the next frame, or None for one that cannot be decoded or is not there."""
    if not capture.grab():
        return None
    whole, image = capture.retrieve()
    return image if whole and image is not None and image.size else None


def _frames(first: int, last: int) -> str:
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def _capture(video: str | int) -> cv2.VideoCapture:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its faults are told in our words
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(video)
    finally:
        logging.setLogLevel(level)


def _image_in_memory(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image)
    if hasattr(image, "getexif") and hasattr(image, "convert"):
        from PIL import ImageOps

        return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1])
    raise PosefoundryError(
        "source: expected a path, an address, a camera's number, an array, a tensor, a PIL image or a list of such, "
        f"got {type(image).__name__}."
    )


def _from_array(image: np.ndarray) -> np.ndarray:
    plain = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    is_image = plain.ndim == 2 or (plain.ndim == 3 and plain.shape[2] in (3, 4))
    if not is_image or plain.size == 0 or plain.dtype not in (np.uint8, np.uint16):
        raise PosefoundryError(
            f"source: expected a BGR array (H, W, 3) or (H, W) of uint8, got {image.shape} of {image.dtype}."
        )
    if plain.dtype == np.uint16:
        plain = (plain >> 8).astype(np.uint8)
    if plain.ndim == 2:
        return cv2.cvtColor(plain, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(plain[..., :3])


def _from_tensor(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0 or not image.is_floating_point():
        raise PosefoundryError(
            "source: expected a tensor (3, H, W) or (B, 3, H, W) of floats, RGB in 0..1, got "
            f"{tuple(image.shape)} of {image.dtype}."
        )
    pixels = image.detach().float().cpu()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise PosefoundryError(f"source: expected a tensor with values in 0..1, got {low:g}..{high:g}. Divide by 255.")
    rgb = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(rgb[..., ::-1])


def take(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """Yields lists of up to `count` items, as they come."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, count)):
        yield chunk
