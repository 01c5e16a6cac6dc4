"""Judging a model in training: OKS AP on the val split, by the predictor and evaluator that judge all else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posefoundry.evaluation.oks import OksEvaluator, to_coco_results
from posefoundry.inference.backends import TorchBackend
from posefoundry.inference.drawing import draw_poses
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.letterbox import Letterbox
from posefoundry.inference.predictor import FittedImage, Predictor
from posefoundry.models import ModelInfo, PoseModel
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.image_cache import ImageCache

# The field's thresholds for computing AP: nearly everything is kept, and the score decides the order.
CONFIDENCE = 0.001
NMS_IOU = 0.7
MAX_DETECTIONS = 300
PICTURE_CONFIDENCE = 0.25
N_PICTURES = 8


class ValImages(Sequence[FittedImage]):
    """Images as the model takes them, read from their files each time, or once where `keep_in` finds them room.

    Args:
        paths: Where they are read from.
        info: Says how large the model's input is.
    """

    def __init__(self, paths: Sequence[Path], info: ModelInfo) -> None:
        self._paths, self._info = paths, info
        self._cache: ImageCache | None = None
        self._first_number = 0
        self._letterboxes: dict[int, Letterbox] = {}

    def keep_in(self, cache: ImageCache, first_number: int) -> None:
        """Keeps them, letterboxed, in a cache, as its images `first_number` and on."""
        self._cache, self._first_number = cache, first_number

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> FittedImage:  # type: ignore[override]  # no slices
        path, number = self._paths[index], self._first_number + index
        if self._cache is None:
            return self._read(path)
        image_bgr = self._cache.get(number)
        if image_bgr is not None:
            return FittedImage(image_bgr, self._letterboxes[index], path)
        fitted = self._read(path)
        self._letterboxes[index] = fitted.box
        self._cache.put(number, fitted.image_bgr)
        return fitted

    def _read(self, path: Path) -> FittedImage:
        return FittedImage.fit(read_image_bgr(path), self._info.image_size_px, self._info.stride_px, path)


class Validator:
    """The val split, held ready.

    Each process predicts its share of the images, each image once; the main process evaluates them all.

    Args:
        annotations: COCO annotation file of the split.
        images_folder: Its images.
        info: What the model's outputs mean.
        group: This process among its peers.
        batch_size: Images a forward pass.
        precision: float32 or bfloat16.
    """

    def __init__(
        self,
        annotations: Path,
        images_folder: Path,
        info: ModelInfo,
        group: ProcessGroup,
        batch_size: int,
        precision: str,
    ) -> None:
        self.evaluator = OksEvaluator(annotations, sigmas=info.skeleton.sigmas, area_rule="annotation_else_box")
        self.images_folder, self.info, self.group = images_folder, info, group
        self.batch_size, self.precision = batch_size, precision
        self.shard = self.evaluator.images[group.rank :: group.n_processes]
        self.images = ValImages([images_folder / image["file_name"] for image in self.shard], info)

    def __call__(self, model: PoseModel) -> dict[str, float | None]:
        """Returns OKS and box metrics of the model; other processes than the main one get an empty dict."""
        predictor = self._predictor(model, CONFIDENCE)
        results = predictor.predict(
            self.images,
            batch_size=self.batch_size,
            progress=lambda done, of_all: self.group.progress.beat(),
        )
        detections: list[dict[str, Any]] = []
        for image, result in zip(self.shard, results, strict=True):
            detections += to_coco_results(result, image["id"], self.info.category_ids)
        detections = self.group.gather_in_main(detections)
        return self.evaluator.evaluate(detections) if self.group.is_main else {}

    def pictures(self, model: PoseModel) -> dict[str, np.ndarray]:
        """Returns the first images of the split with the persons that the model finds drawn on them."""
        paths = [self.images_folder / image["file_name"] for image in self.evaluator.images[:N_PICTURES]]
        results = self._predictor(model, PICTURE_CONFIDENCE).predict(paths)
        return {
            f"val_{path.stem}": draw_poses(read_image_bgr(path), result, self.info.skeleton)
            for path, result in zip(paths, results, strict=True)
        }

    def _predictor(self, model: PoseModel, confidence: float) -> Predictor:
        backend = TorchBackend(model, self.info, device=str(self.group.device), precision=self.precision)
        return Predictor(backend, confidence=confidence, nms_iou=NMS_IOU, max_detections=MAX_DETECTIONS)
