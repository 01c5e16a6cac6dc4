"""From parameters and a dataset to weights on disk: everything that one training needs, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec, read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.models import ModelInfo, PoseModel, build_model
from posefoundry.models.weights import save_weights, transfer_weights
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Metrics, Trainer, uses_bf16
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import Observer
from posefoundry.training.pictures import batch_pictures
from posefoundry.training.validation import Validator

# What decides which weights are best.
BEST_BY = "oks_ap"


@dataclass
class BestSoFar:
    """The best validation so far."""

    epoch: int = 0
    value: float = -1.0


def train_model(
    settings: Train,
    *,
    dataset_yaml: Path,
    val_annotations: Path,
    weights_folder: Path,
    group: ProcessGroup,
    observers: Sequence[Observer] = (),
    extra: Mapping[str, Any] | None = None,
) -> BestSoFar:
    """Trains and writes `last.safetensors` and `best.safetensors`, each with its JSON sidecar, into `weights_folder`.

    Args:
        settings: Section `train` of the parameters.
        dataset_yaml: The YOLO pose dataset; its train split is learnt.
        val_annotations: COCO annotations of the val split, which decides what is best.
        weights_folder: Where the weights go.
        group: This process among its peers.
        observers: Told of the progress, in the main process alone.
        extra: Further plain values for the sidecars.

    Returns:
        Epoch and val OKS AP of the best weights.

    Raises:
        PosefoundryError: The data or the weights to start from cannot be used, or the training diverged.
    """
    spec = read_dataset_yaml(dataset_yaml)
    if group.n_processes != settings.total_processes:
        raise PosefoundryError(
            f"train.nodes x train.processes is {settings.nodes} x {settings.processes}, but torchrun started "
            f"{group.n_processes} processes; make them equal."
        )
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, n_classes=len(spec.class_names), kpt_shape=spec.kpt_shape)
    if settings.weights is not None:
        report = transfer_weights(model, settings.weights)
        if group.is_main:
            print(report)
    info = _info(settings, spec, model)
    images = TrainingImages(spec, settings)
    criterion = build_criterion(model, spec.skeleton, settings, group.sum)
    precision = "bfloat16" if uses_bf16(settings.precision, group.device) else "float32"
    validator = Validator(
        val_annotations, spec.splits["val"], info, group, batch_size=settings.batch_size, precision=precision
    )
    loader = training_loader(images, settings, group.rank, group.device)
    trainer = Trainer(model, settings, criterion, loader, group, observers)
    _show(trainer.observers, batch_pictures(images, settings.batch_size))
    best = BestSoFar()

    def keep_weights(average: PoseModel, epoch: int, metrics: Metrics) -> None:
        facts = {"epoch": epoch, "val_metrics": metrics, "train": settings.model_dump(mode="json"), **(extra or {})}
        save_weights(weights_folder / "last.safetensors", average.state_dict(), info, facts)
        value = metrics[BEST_BY] or 0.0
        if value > best.value:
            best.epoch, best.value = epoch, value
            save_weights(weights_folder / "best.safetensors", average.state_dict(), info, facts)

    trainer.train(validator, keep_weights)
    if group.is_main:
        _show(trainer.observers, validator.pictures(trainer.average.model))
    return best


def _show(observers: Sequence[Observer], pictures: dict[str, np.ndarray]) -> None:
    for name, image_bgr in pictures.items():
        for observer in observers:
            observer.picture(name, image_bgr)


def _info(settings: Train, spec: DatasetSpec, model: PoseModel) -> ModelInfo:
    return ModelInfo(
        architecture=settings.model,
        class_names=spec.class_names,
        category_ids=spec.category_ids,
        kpt_shape=spec.kpt_shape,
        skeleton=spec.skeleton,
        stride_px=max(model.strides),
        image_size_px=settings.image_size_px,
    )
