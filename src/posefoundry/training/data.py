"""The training images: read once, kept small, augmented afresh each epoch.

What an image looks like in epoch e depends on (seed, e, its index) alone, and which images a step sees depends on
(seed, e) alone; so neither the number of loader workers nor the number of processes changes what is shown. (BatchNorm
alone sees a difference: each process normalises by its own share of the batch.)
"""

from collections.abc import Iterator

import cv2
import numpy as np
from torch.utils.data import Dataset, Sampler

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec, image_files, label_path_of, read_labels
from posefoundry.errors import PosefoundryError
from posefoundry.inference.images import read_image_bgr
from posefoundry.training.augment import Scene, mirror, mosaic, shift_colour, warp
from posefoundry.training.batch import Sample
from posefoundry.training.image_cache import ImageCache


class TrainingImages(Dataset[Sample]):
    """The train split of a YOLO pose dataset, resized so that the long side is the training size.

    Items are addressed by (epoch, index), so that a worker process knows which augmentation is due.
    """

    def __init__(self, spec: DatasetSpec, settings: Train) -> None:
        folder = spec.splits["train"]
        self.paths = image_files(folder)
        if not self.paths:
            raise PosefoundryError(f"{folder}: expected training images, found none.")
        self.spec = spec
        self.settings = settings
        self.labels = [
            read_labels(label_path_of(path), kpt_shape=spec.kpt_shape, n_classes=len(spec.class_names))
            for path in self.paths
        ]
        self._cache = ImageCache(
            len(self),
            settings.image_size_px,
            limit_bytes=settings.image_cache_gib * 2**30 / settings.processes,
            folder=settings.image_cache_folder,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """Returns image `index` as augmented in `epoch`."""
        epoch, index = item
        settings, side_px = self.settings.augment, self.settings.image_size_px
        rng = np.random.default_rng((self.settings.seed, epoch, index))
        closing = epoch >= self.settings.epochs - settings.mosaic_off_epochs
        if not closing and rng.random() < settings.mosaic_probability:
            others = rng.integers(0, len(self), 3)
            scene = mosaic([self.scene(index), *(self.scene(int(other)) for other in others)], side_px, rng)
        else:
            scene = self.scene(index)
        scene = shift_colour(warp(scene, side_px, settings, rng), settings, rng)
        if rng.random() < settings.flip_probability:
            scene = mirror(scene, self.spec.skeleton.flip_indices)
        return Sample(
            image_rgb_chw=np.ascontiguousarray(scene.image_bgr[..., ::-1].transpose(2, 0, 1)),
            class_ids=scene.class_ids,
            boxes_xyxy=scene.boxes_xyxy.astype(np.float32),
            keypoints_xyv=scene.keypoints_xyv.astype(np.float32),
        )

    def scene(self, index: int) -> Scene:
        """Returns an image at the training size, not augmented, with its persons in pixels."""
        image = self._cache.get(index)
        if image is None:
            image = self._read_resized(index)
            self._cache.put(index, image)
        labels = self.labels[index]
        height, width = image.shape[:2]
        centre_xy = labels.boxes_cxcywhn[:, :2] * (width, height)
        half_wh = labels.boxes_cxcywhn[:, 2:] * (width, height) / 2
        keypoints = labels.keypoints_xyvn.copy()
        keypoints[..., 0] *= width
        keypoints[..., 1] *= height
        boxes = np.concatenate([centre_xy - half_wh, centre_xy + half_wh], -1).astype(np.float32)
        return Scene(image, labels.class_ids, boxes, keypoints)

    def _read_resized(self, index: int) -> np.ndarray:
        image = read_image_bgr(self.paths[index])
        height, width = image.shape[:2]
        scale = self.settings.image_size_px / max(height, width)
        if scale == 1:
            return image
        size_wh = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """This process's share of each global batch: epoch after epoch, each a new order, the last short batch dropped.

    A dataset smaller than one batch is repeated to fill it.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int, rank: int, n_processes: int) -> None:
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.rank, self.n_processes = rank, n_processes
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, self.n_images // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n_images)
        order = np.resize(order, max(self.n_images, self.batch_size))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            of_all = order[start : start + self.batch_size]
            yield [(self.epoch, int(index)) for index in np.array_split(of_all, self.n_processes)[self.rank]]
