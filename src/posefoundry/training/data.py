"""The training images: read once, kept small, augmented afresh each epoch.

What an image looks like in epoch e depends on (seed, e, its index) and the size of its batch alone; which images a
step of the epoch sees, and at which size, depends on (seed, e, the step) alone. So neither the number of loader workers
nor the number of processes changes what is shown. (BatchNorm alone sees a difference: each process normalises by its
own share of the batch.)
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import Dataset, Sampler

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec, image_files, label_path_of, read_labels
from posefoundry.errors import PosefoundryError
from posefoundry.inference.images import read_image_bgr
from posefoundry.training.augment import Scene, blur, cut_out, mirror, mirror_upside_down, shift_colour, warp
from posefoundry.training.batch import Sample
from posefoundry.training.compose import MAX_PASTED, mix_up, mosaic, paste_person
from posefoundry.training.image_cache import ImageCache
from posefoundry.values import MAX_STRIDE_PX

# Epoch, index of the image, and the side of its batch in px where that is not the training size.
Item = tuple[int, int] | tuple[int, int, int]


class Stream(IntEnum):
    """Random numbers of their own, so that switching one augmentation on leaves what the others do as it is."""

    MIXUP = 1
    COPY_PASTE = 2
    BLUR = 3
    CUTOUT = 4
    FLIP_VERTICAL = 5


class TrainingImages(Dataset[Sample]):
    """The train split of a YOLO pose dataset, resized so that the long side is the training size.

    Items are addressed by epoch, index and side, so that a worker process knows which augmentation is due.

    Args:
        spec: The dataset.
        settings: Section `train` of the parameters.
        n_more: Further images that others keep in `cache`, within the same bound; their numbers follow those of these.
    """

    def __init__(self, spec: DatasetSpec, settings: Train, n_more: int = 0) -> None:
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
        self.cache = ImageCache(
            len(self) + n_more,
            settings.image_size_px,
            limit_bytes=settings.image_cache_gib * 2**30 / settings.processes,
            folder=settings.image_cache_folder,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: Item) -> Sample:
        """Returns image `index` as augmented in `epoch`, of the training size or of the side that the item states."""
        return self._sample(item, [])

    def sources(self, item: Item) -> list[Path]:
        """Returns the files of all images that a sample is made of, its own first."""
        used: list[int] = []
        self._sample(item, used)
        return [self.paths[index] for index in dict.fromkeys(used)]

    def _sample(self, item: Item, used: list[int]) -> Sample:
        """Makes the sample, and adds to `used` the indices of the images that it is made of."""
        epoch, index, side_px = (*item, self.settings.image_size_px)[:3]
        settings, flip_indices = self.settings.augment, self.spec.skeleton.flip_indices
        rng = np.random.default_rng((self.settings.seed, epoch, index))
        several = epoch < self.settings.epochs - settings.mosaic_off_epochs
        scene = self._warped(index, side_px, several, rng, used)
        if several and (own := self._chance(settings.mixup_probability, epoch, index, Stream.MIXUP)):
            scene = mix_up(scene, self._warped(self._any(own), side_px, several, own, used), own)
        if several and (own := self._chance(settings.copy_paste_probability, epoch, index, Stream.COPY_PASTE)):
            for _ in range(own.integers(1, MAX_PASTED + 1)):
                scene = paste_person(scene, self._noted(self._any(own), used), own)
        if own := self._chance(settings.blur_probability, epoch, index, Stream.BLUR):
            scene = blur(scene, own)
        scene = shift_colour(scene, settings, rng)
        if own := self._chance(settings.cutout_probability, epoch, index, Stream.CUTOUT):
            scene = cut_out(scene, own)
        if rng.random() < settings.flip_probability:
            scene = mirror(scene, flip_indices)
        if self._chance(settings.flip_vertical_probability, epoch, index, Stream.FLIP_VERTICAL):
            scene = mirror_upside_down(scene, flip_indices)
        return Sample(
            image_rgb=cv2.cvtColor(scene.image_bgr, cv2.COLOR_BGR2RGB),
            class_ids=scene.class_ids,
            boxes_xyxy=scene.boxes_xyxy.astype(np.float32),
            keypoints_xyv=scene.keypoints_xyv.astype(np.float32),
        )

    def _warped(self, index: int, side_px: int, several: bool, rng: np.random.Generator, used: list[int]) -> Scene:
        """Returns the image, or a mosaic of it and three others where `several` allows, warped to the side."""
        settings, usual_px = self.settings.augment, self.settings.image_size_px
        if several and rng.random() < settings.mosaic_probability:
            indices = [index, *(int(other) for other in rng.integers(0, len(self), 3))]
            scene = mosaic([self._noted(each, used) for each in indices], usual_px, rng)
        else:
            scene = self._noted(index, used)
        return warp(scene, side_px, settings, rng, zoom=side_px / usual_px)

    def _chance(self, probability: float, epoch: int, index: int, stream: Stream) -> np.random.Generator | None:
        """Returns the stream's random numbers for this picture where chance wants its augmentation."""
        if not probability:
            return None
        rng = np.random.default_rng((self.settings.seed, epoch, index, stream))
        return rng if rng.random() < probability else None

    def _any(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self)))

    def _noted(self, index: int, used: list[int]) -> Scene:
        used.append(index)
        return self.scene(index)

    def scene(self, index: int) -> Scene:
        """Returns an image at the training size, not augmented, with its persons in pixels."""
        image = self.cache.get(index)
        if image is None:
            image = self._read_resized(index)
            self.cache.put(index, image)
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


class ShuffledBatches(Sampler[list[Item]]):
    """This process's share of each global batch: epoch after epoch, each a new order, the last short batch dropped.

    A dataset smaller than one batch is repeated to fill it. Where there are several `sides_px`, each batch is of one of
    them, the same in all processes, and its items state which. An epoch that was interrupted goes on at batch `first`.
    """

    def __init__(
        self, n_images: int, batch_size: int, seed: int, rank: int, n_processes: int, sides_px: Sequence[int] = ()
    ) -> None:
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.rank, self.n_processes = rank, n_processes
        self.sides_px = sides_px
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return max(1, self.n_images // self.batch_size)

    def order(self) -> np.ndarray:
        """Returns the images of the epoch, of all processes together, in the order in which batches take them."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n_images)
        return np.resize(order, max(self.n_images, self.batch_size))

    def __iter__(self) -> Iterator[list[Item]]:
        order = self.order()
        for step in range(self.first, len(self)):
            of_all = self._items(order, step)
            own = np.array_split(np.arange(len(of_all)), self.n_processes)[self.rank]
            yield [of_all[position] for position in own]

    def batch(self, step: int) -> list[Item]:
        """Returns the items of a step of the epoch, of all processes together."""
        return self._items(self.order(), step)

    def _items(self, order: np.ndarray, step: int) -> list[Item]:
        side_px = self._side_px(step)
        indices = order[step * self.batch_size : (step + 1) * self.batch_size]
        return [(self.epoch, int(index), *side_px) for index in indices]

    def _side_px(self, step: int) -> tuple[int] | tuple[()]:
        """Returns the side of a step's batch, or nothing where all are of the training size."""
        if len(self.sides_px) < 2:
            return ()
        return (int(np.random.default_rng((self.seed, self.epoch, step)).choice(self.sides_px)),)


def batch_sides_px(settings: Train) -> list[int]:
    """Returns the sides that a batch may have: the training size and the multiples of the stride around it."""
    usual_px = settings.image_size_px
    stride_px = 2 * MAX_STRIDE_PX if settings.model.endswith("-p6") else MAX_STRIDE_PX
    n_steps = int(settings.augment.multi_scale_fraction * usual_px / stride_px)
    return [usual_px + n * stride_px for n in range(-n_steps, n_steps + 1) if usual_px + n * stride_px > 0]
