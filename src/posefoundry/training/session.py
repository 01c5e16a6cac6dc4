"""From parameters and a dataset to weights on disk: everything that one training needs, put together."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec, read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.models import ModelInfo, PoseModel, build_model
from posefoundry.models.weights import save_weights, transfer_weights
from posefoundry.training.checkpoint import CheckpointFolder, Checkpoints
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.faults import told_plainly
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Metrics, Trainer, uses_bf16
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import Observer
from posefoundry.training.pictures import batch_pictures
from posefoundry.training.validation import Validator

# What decides which weights are best.
BEST_BY = "oks_ap"
# Larger ones gain nothing on a GPU, and would leave too few to be read, judged and suppressed side by side.
MAX_VALIDATION_BATCH = 64


@dataclass
class BestSoFar:
    """The best validation so far, and the weights that it judged."""

    epoch: int = 0
    value: float = -1.0
    risen_at_epoch: int = 0
    step: int | None = None
    metrics: Metrics = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up again."""
        for name, value in state.items():
            setattr(self, name, value)


class WeightFiles:
    """The files of the last and the best weights, which a full disk may refuse until the end."""

    def __init__(self, folder: Path, info: ModelInfo, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        self._info = info
        self._facts = facts
        self._unwritten: dict[str, tuple[dict[str, Tensor], int, Metrics]] = {}

    def write(self, name: str, weights: dict[str, Tensor], epoch: int, metrics: Metrics) -> None:
        """Writes weights with their sidecar, or keeps them for `write_what_is_left`."""
        self._unwritten.pop(name, None)
        try:
            self._save(name, weights, epoch, metrics)
        except OSError as error:  # a full disk may have room again at the end
            self._unwritten[name] = weights, epoch, metrics
            print(f"{name} weights of epoch {epoch} not written: {error}. The training goes on.", file=sys.stderr)

    def write_what_is_left(self) -> None:
        """Writes what could not be written before.

        Raises:
            PosefoundryError: It still cannot be.
        """
        for name, kept in self._unwritten.items():
            try:
                self._save(name, *kept)
            except OSError as error:
                raise PosefoundryError(
                    f"the {name} weights could not be written to {error.filename}: {error.strerror}. Make room and "
                    "start the training again: it goes on from its last checkpoint."
                ) from None

    def _save(self, name: str, weights: dict[str, Tensor], epoch: int, metrics: Metrics) -> None:
        facts = {"epoch": epoch, "val_metrics": metrics, **self._facts}
        save_weights(self._folder / f"{name}.safetensors", weights, self._info, facts)


def train_model(
    settings: Train,
    *,
    dataset_yaml: Path,
    val_annotations: Path,
    weights_folder: Path,
    group: ProcessGroup,
    observers: Sequence[Observer] = (),
    extra: Mapping[str, Any] | None = None,
    checkpoints: CheckpointFolder | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BestSoFar:
    """Trains and writes `last.safetensors` and `best.safetensors`, each with its JSON sidecar, into `weights_folder`.

    Where `checkpoints` holds one of this training, it goes on from there.

    Args:
        settings: Section `train` of the parameters.
        dataset_yaml: The YOLO pose dataset; its train split is learnt.
        val_annotations: COCO annotations of the val split, which decides what is best.
        weights_folder: Where the weights go.
        group: This process among its peers.
        observers: Told of the progress, in the main process alone.
        extra: Further plain values for the sidecars.
        checkpoints: Where they lie, on the main process's disk; None keeps none.
        should_stop: Asked each step whether to save a checkpoint and end.

    Returns:
        Epoch and val OKS AP of the best weights.

    Raises:
        StoppedError: `should_stop` said so.
        PosefoundryError: The data or the weights to start from cannot be used, the training diverged, or the memory
            of a GPU is too small.
    """
    spec = read_dataset_yaml(dataset_yaml)
    if group.n_processes != settings.total_processes:
        raise PosefoundryError(
            f"train.nodes x train.processes is {settings.nodes} x {settings.processes}, but torchrun started "
            f"{group.n_processes} processes; make them equal."
        )
    model = _initial_model(settings, spec, group)
    info = _info(settings, spec, model)
    criterion = build_criterion(model, spec.skeleton, settings, group.sum, spec.class_names)
    precision = "bfloat16" if uses_bf16(settings.precision, group.device) else "float32"
    share = settings.batch_size // group.n_processes  # what a process learns from at a time it can judge at a time
    at_a_time = min(share, MAX_VALIDATION_BATCH)
    validator = Validator(val_annotations, spec.splits["val"], info, group, batch_size=at_a_time, precision=precision)
    images = TrainingImages(spec, settings, n_more=len(validator.images))
    validator.images.keep_in(images.cache, first_number=len(images))
    loader = training_loader(images, settings, group.rank, group.device)
    files = WeightFiles(weights_folder, info, {"train": settings.model_dump(mode="json"), **(extra or {})})
    with told_plainly(group.device, share):
        trainer = Trainer(model, settings, criterion, loader, group, observers, should_stop)
        best = _train(trainer, validator, files, checkpoints, batch_pictures(images, settings.batch_size))
        if group.is_main:
            _show(trainer.observers, validator.pictures(trainer.average.model))
    return best


def _train(
    trainer: Trainer,
    validator: Validator,
    files: WeightFiles,
    folder: CheckpointFolder | None,
    pictures: dict[str, np.ndarray],
) -> BestSoFar:
    """Trains from the last checkpoint or from the start to the end, and writes the weights."""
    best, settings = BestSoFar(), trainer.settings

    def keep_weights(average: PoseModel, epoch: int, metrics: Metrics) -> bool:
        files.write("last", average.state_dict(), epoch, metrics)
        if metrics[BEST_BY] is None and not best.epoch:
            print("Nobody is annotated on the val images, so the best weights are the last.", file=sys.stderr)
        value = metrics[BEST_BY] or 0.0
        if value > best.value:
            best.risen_at_epoch = epoch
        if value > best.value or value == best.value == 0:  # of those that find nobody, the last have learnt most
            best.epoch, best.value, best.step, best.metrics = epoch, value, trainer.step, metrics
            best.weights = {name: tensor.detach().cpu().clone() for name, tensor in average.state_dict().items()}
            files.write("best", best.weights, epoch, metrics)
        stands_for = epoch - best.risen_at_epoch
        is_measured = metrics[BEST_BY] is not None
        end = bool(settings.early_stop_epochs) and is_measured and stands_for >= settings.early_stop_epochs
        if end and epoch < settings.epochs:
            print(f"Ending after epoch {epoch} of {settings.epochs}: val OKS AP has not risen for {stands_for} epochs.")
        return end

    trainer.checkpoints = Checkpoints(
        folder,
        trainer.group,
        shared={"trainer": trainer},
        of_main={"best": best, **{f"observer {n}": observer for n, observer in enumerate(trainer.observers)}},
        facts=lambda: _facts(trainer, best),
        best_step=lambda: best.step,
    )
    _begin(trainer, best, files)
    _show(trainer.observers, pictures)
    trainer.train(validator, keep_weights)
    files.write_what_is_left()
    return best


def _initial_model(settings: Train, spec: DatasetSpec, group: ProcessGroup) -> PoseModel:
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, n_classes=len(spec.class_names), kpt_shape=spec.kpt_shape)
    if settings.weights is not None:
        report = transfer_weights(model, settings.weights)
        if group.is_main:
            print(report)
    layers = list(model.model)
    if settings.freeze_layers >= len(layers):
        raise PosefoundryError(
            f"train.freeze_layers: expected fewer than the {len(layers)} layers of {settings.model}, of which the last "
            f"is the head, got {settings.freeze_layers}."
        )
    for layer in layers[: settings.freeze_layers]:
        layer.requires_grad_(False)
    return model


def _begin(trainer: Trainer, best: BestSoFar, files: WeightFiles) -> None:
    """Goes on from the last checkpoint that is whole, else keeps one of the start."""
    if trainer.checkpoints.restore():
        if trainer.group.is_main:
            print(f"Going on after step {trainer.step} of {trainer.n_steps}, in epoch {trainer.epoch + 1}.")
            if best.weights:
                files.write("best", best.weights, best.epoch, best.metrics)
        return
    folder = trainer.checkpoints.folder
    if trainer.group.is_main and folder is not None and folder.steps():
        print("All checkpoints of this training are damaged: it starts over.", file=sys.stderr)
    trainer.checkpoints.save(trainer.step)  # to go back to, should the first steps fail
    if trainer.group.is_main:  # to name when going on after an early stop
        files.write("last", trainer.average.model.state_dict(), 0, {})


def _facts(trainer: Trainer, best: BestSoFar) -> dict[str, Any]:
    """What the sidecar of a checkpoint tells people."""
    return {
        "steps": trainer.n_steps,
        "batch_size": trainer.settings.batch_size,
        "epoch": trainer.epoch + 1,
        "epochs": trainer.settings.epochs,
        "step_in_epoch": trainer.step - trainer.epoch * len(trainer.loader),
        "best": {"epoch": best.epoch, BEST_BY: best.value} if best.epoch else None,
        "learning_rate_scale": trainer.rescue.learning_rate_scale,
    }


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
