"""From images to persons, over any runtime: letterbox, infer, suppress, map back."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from posefoundry.errors import PosefoundryError
from posefoundry.inference.backends import Backend, load_backend
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.letterbox import Letterbox, input_size_hw, letterbox
from posefoundry.inference.postprocess import best_detections, non_max_suppression
from posefoundry.inference.results import PoseResult
from posefoundry.machine import usable_cores

# Threads that read, letterbox and stack images and suppress overlaps while the model works on others; like the model,
# most of this lets go of Python's lock.
MAX_HELPERS = 8
BATCHES_AHEAD = 2
# Images of many shapes wait for others of theirs; with this many waiting the fullest group goes first.
MAX_WAITING_BATCHES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class FittedImage:
    """An image as the model takes it: all that is needed of it from batch to result."""

    image_bgr: np.ndarray  # (H, W, 3) uint8, letterboxed
    box: Letterbox
    path: Path | None

    @classmethod
    def fit(cls, image_bgr: np.ndarray, image_size_px: int, stride_px: int, path: Path | None) -> Self:
        """Letterboxes a BGR image (H, W, 3) of uint8 into the smallest input; `path` is where it was read from."""
        return cls(*letterbox(image_bgr, input_size_hw(image_bgr.shape[:2], image_size_px, stride_px)), path)


@dataclass(frozen=True)
class _Waiting:
    index: int
    fitted: FittedImage
    preprocess_ms: float


class Predictor:
    """Finds persons and their keypoints in images.

    Args:
        backend: The model in its runtime.
        image_size_px: Long side of the model's input; None: what it was trained on.
        confidence: Persons with a lower score are dropped.
        nms_iou: Persons whose box overlaps a better one by more are dropped; of no effect for models without NMS.
        max_detections: Persons kept per image.

    Raises:
        PosefoundryError: A setting is impossible.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        image_size_px: int | None = None,
        confidence: float = 0.25,
        nms_iou: float = 0.7,
        max_detections: int = 300,
    ) -> None:
        if not (0 <= confidence <= 1 and 0 < nms_iou <= 1):
            raise PosefoundryError(
                f"confidence must be in 0..1 and nms_iou above 0, at most 1; got {confidence} and {nms_iou}."
            )
        if max_detections < 1 or (image_size_px is not None and image_size_px < 1):
            raise PosefoundryError(
                f"max_detections and image_size_px must be at least 1, got {max_detections} and {image_size_px}."
            )
        self.backend = backend
        self.image_size_px = image_size_px or backend.info.image_size_px
        self.confidence, self.nms_iou, self.max_detections = confidence, nms_iou, max_detections

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "auto",
        threads: int = 0,
        precision: str = "float32",
        end2end: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Opens a model file, see `load_backend`; `settings` are those of the class."""
        return cls(load_backend(path, device, threads, precision, end2end), **settings)

    def predict(
        self,
        images: Sequence[np.ndarray | Path | FittedImage],
        *,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[PoseResult]:
        """Finds the persons in each image.

        Images whose inputs have one shape share a batch, so that none is padded more than it needs. No more than
        some batches are in memory at a time.

        Args:
            images: BGR uint8 arrays (H, W, 3), paths, or fitted images; each is asked for once, by threads and
                ahead of the model where they are more than a batch.
            batch_size: Images a forward pass.
            progress: Called with the number of images done and of all, after each batch.

        Returns:
            One result an image, in the order of `images`.

        Raises:
            PosefoundryError: An image cannot be read; the message names it.
        """
        results: dict[int, PoseResult] = {}
        helpers = _helpers(n_batches=-(-len(images) // batch_size))
        try:
            batches = _batches(self._read(images, helpers, BATCHES_AHEAD * batch_size), batch_size)
            stacked = _one_ahead((batch, helpers.submit(_stack, batch)) for batch in batches)
            found = _one_ahead((batch, self._run(batch, *pixels.result(), helpers)) for batch, pixels in stacked)
            for batch, persons in found:
                results.update(zip((waiting.index for waiting in batch), persons.result(), strict=True))
                if progress is not None:
                    progress(len(results), len(images))
        finally:
            helpers.shutdown(cancel_futures=True)
        return [results[index] for index in range(len(images))]

    def preprocess(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Letterbox]]:
        """Letterboxes BGR images into one batch (B, 3, H, W) float32, RGB in 0..1, the smallest that fits them all."""
        sizes = [self._input_size_hw(image) for image in images]
        size_hw = (max(height for height, _ in sizes), max(width for _, width in sizes))
        fitted = [letterbox(image, size_hw) for image in images]
        return _to_batch([image for image, _ in fitted]), [box for _, box in fitted]

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Runs the model; see `Backend.infer`."""
        return self.backend.infer(batch)

    def postprocess(
        self, decoded: np.ndarray, letterboxes: Sequence[Letterbox], paths: Sequence[Path | None] | None = None
    ) -> list[PoseResult]:
        """Turns decoded outputs (B, 4 + n_classes + K*V, A) into persons in pixels of the source images."""
        info = self.backend.info
        keep = partial(non_max_suppression, iou=self.nms_iou) if info.needs_nms else partial(best_detections)
        detections = keep(
            decoded,
            n_classes=info.n_classes,
            kpt_shape=info.kpt_shape,
            confidence=self.confidence,
            max_detections=self.max_detections,
        )
        return [
            _to_result(rows, box, info.kpt_shape, path)
            for rows, box, path in zip(detections, letterboxes, paths or [None] * len(letterboxes), strict=True)
        ]

    def _fit(self, image_bgr: np.ndarray, path: Path | None) -> FittedImage:
        return FittedImage.fit(image_bgr, self.image_size_px, self.backend.info.stride_px, path)

    def _input_size_hw(self, image_bgr: np.ndarray) -> tuple[int, int]:
        return input_size_hw(image_bgr.shape[:2], self.image_size_px, self.backend.info.stride_px)

    def _read(
        self, images: Sequence[np.ndarray | Path | FittedImage], helpers: Executor, n_ahead: int
    ) -> Iterator[_Waiting]:
        """Yields the images in order, and has the next ones read meanwhile."""
        coming: deque[Future[_Waiting]] = deque()
        for index in range(len(images)):
            coming.append(helpers.submit(self._fitted, images, index))
            if len(coming) > n_ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _fitted(self, images: Sequence[np.ndarray | Path | FittedImage], index: int) -> _Waiting:
        image = images[index]
        path = image if isinstance(image, Path) else None
        given = read_image_bgr(path) if path else image
        start = time.perf_counter()
        fitted = given if isinstance(given, FittedImage) else self._fit(_checked(given, index), path)
        return _Waiting(index, fitted, 1000 * (time.perf_counter() - start))

    def _run(
        self, batch: list[_Waiting], pixels: np.ndarray, stacking_s: float, helpers: Executor
    ) -> Future[list[PoseResult]]:
        start = time.perf_counter()
        decoded = self.infer(pixels)
        inference_s = time.perf_counter() - start
        return helpers.submit(self._finish, batch, decoded, stacking_s, inference_s)

    def _finish(
        self, batch: list[_Waiting], decoded: np.ndarray, stacking_s: float, inference_s: float
    ) -> list[PoseResult]:
        start = time.perf_counter()
        results = self.postprocess(decoded, [w.fitted.box for w in batch], [w.fitted.path for w in batch])
        share = 1000 / len(batch)
        times = {"inference": share * inference_s, "postprocess": share * (time.perf_counter() - start)}
        return [
            replace(result, speed_ms={"preprocess": waiting.preprocess_ms + share * stacking_s, **times})
            for waiting, result in zip(batch, results, strict=True)
        ]


class _Directly(Executor):
    """Does at once what it is given."""

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(function(*arguments, **named))
        return done


def _helpers(n_batches: int) -> Executor:
    """Returns threads, or none where there is one batch or little more: nothing would be left to do beside it."""
    return ThreadPoolExecutor(min(MAX_HELPERS, usable_cores())) if n_batches > 1 else _Directly()


def _batches(images: Iterable[_Waiting], batch_size: int) -> Iterator[list[_Waiting]]:
    """Yields batches of images with one input shape."""
    groups: dict[tuple[int, ...], list[_Waiting]] = {}
    for waiting in images:
        size_hw = waiting.fitted.image_bgr.shape[:2]
        group = groups.setdefault(size_hw, [])
        group.append(waiting)
        if len(group) == batch_size:
            yield groups.pop(size_hw)
        elif sum(map(len, groups.values())) >= MAX_WAITING_BATCHES * batch_size:
            yield groups.pop(max(groups, key=lambda size: len(groups[size])))
    yield from groups.values()


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Hands on the items, each once the next one is there."""
    ahead: list[T] = []
    for item in items:
        yield from ahead
        ahead = [item]
    yield from ahead


def _stack(batch: list[_Waiting]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    return _to_batch([waiting.fitted.image_bgr for waiting in batch]), time.perf_counter() - start


def _checked(image: Any, index: int) -> np.ndarray:
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise PosefoundryError(
            f"Image {index}: expected a path or a BGR array (H, W, 3) of uint8, got "
            f"{type(image).__name__}{'' if shape is None else f' {tuple(shape)} of {dtype}'}."
        )
    return image


def _to_batch(images_bgr: list[np.ndarray]) -> np.ndarray:
    """Stacks images (H, W, 3) uint8 BGR of one size into (B, 3, H, W) float32, RGB in 0..1."""
    batch = np.empty((len(images_bgr), 3, *images_bgr[0].shape[:2]), np.float32)
    for image_bgr, channels in zip(images_bgr, batch, strict=True):
        for channel in range(3):  # plane by plane: faster than transposing the whole
            np.multiply(image_bgr[..., 2 - channel], np.float32(1 / 255), out=channels[channel])
    return batch


def _to_result(rows: np.ndarray, box: Letterbox, kpt_shape: tuple[int, int], path: Path | None) -> PoseResult:
    n_keypoints, values = kpt_shape
    height, width = box.source_size_hw
    limits = np.array((width, height), np.float32)
    corners = np.clip(box.to_source_xy(rows[:, :4].reshape(-1, 2, 2)), 0, limits)
    keypoints = rows[:, 6:].reshape(-1, n_keypoints, values)
    points_xy = box.to_source_xy(keypoints[..., :2])
    confidences = keypoints[..., 2:] if values == 3 else np.ones_like(keypoints[..., :1])
    return PoseResult(
        boxes_xyxy=corners.reshape(-1, 4),
        scores=rows[:, 4],
        class_ids=rows[:, 5].astype(np.int64),
        keypoints_xyv=np.concatenate((points_xy, confidences), axis=-1),
        image_size_hw=box.source_size_hw,
        path=path,
        speed_ms={},
    )
