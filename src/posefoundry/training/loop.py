"""The training loop of YOLO-pose models."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.models import PoseModel
from posefoundry.training.batch import Batch
from posefoundry.training.distributed import ProcessGroup, synchronise_batchnorm
from posefoundry.training.losses import Criterion
from posefoundry.training.observer import Observer
from posefoundry.training.optimizer import WeightAverage, build_optimizer, learning_rate_at

# Reading a number back makes a GPU wait for all work queued before it; so numbers are read some steps at a time.
READ_BACK_EVERY_STEPS = 10

Metrics = dict[str, float | None]
T = TypeVar("T")


class Trainer:
    """Trains a model and keeps the moving average of its weights.

    Args:
        model: In training mode gives raw head outputs.
        settings: Section `train` of the parameters.
        criterion: The loss.
        loader: Batches of this process; its `batch_sampler.epoch` says which augmentation and order are due.
        group: This process among its peers.
        observers: Told of each step and epoch, in the main process alone.
    """

    def __init__(
        self,
        model: PoseModel,
        settings: Train,
        criterion: Criterion,
        loader: DataLoader[Batch],
        group: ProcessGroup,
        observers: Sequence[Observer] = (),
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.criterion, self.loader, self.group = settings, criterion, loader, group
        self.observers = observers if group.is_main else ()
        if settings.sync_batchnorm:
            model = synchronise_batchnorm(model, group)
        self.autocast_to_bf16 = uses_bf16(settings.precision, group.device)
        self.model = model.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: nn.Module = self.model
        if group.n_processes > 1:
            self.forward = DistributedDataParallel(
                self.model, device_ids=[group.device.index] if group.device.type == "cuda" else None
            )
        if settings.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        self.optimizer = build_optimizer(self.model, settings)
        self.average = WeightAverage(self.model, settings.ema_decay, settings.ema_ramp_updates)
        self.step = 0
        self._unread: list[tuple[int, float, Tensor]] = []

    @property
    def n_steps(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * len(self.loader)

    def train(
        self, validate: Callable[[PoseModel], Metrics], keep_weights: Callable[[PoseModel, int, Metrics], None]
    ) -> None:
        """Trains all epochs; validates the averaged weights every few epochs and after the last.

        Args:
            validate: Judges the averaged model; called by all processes together.
            keep_weights: Called in the main process after each validation with model, epoch (from 1) and metrics.
        """
        for epoch in range(self.settings.epochs):
            values = self._train_epoch(epoch)
            last = epoch + 1 == self.settings.epochs
            if last or (epoch + 1) % self.settings.validate_every_epochs == 0:
                started = time.perf_counter()
                # BatchNorm's statistics are each process's own; all must judge the model that is kept.
                self.group.take_from_main(self.average.model.buffers())
                self.group.progress.reach(f"judging the weights of epoch {epoch + 1}")
                metrics = validate(self.average.model)
                values |= {f"val_{name}": value for name, value in metrics.items()}
                values["validation_seconds"] = time.perf_counter() - started
                if self.group.is_main:
                    keep_weights(self.average.model, epoch + 1, metrics)
            for observer in self.observers:
                observer.epoch_done(epoch + 1, values)

    def _train_epoch(self, epoch: int) -> Metrics:
        self.loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
        self.criterion.start_epoch(epoch)
        self._prepare_modules()
        seen: list[dict[str, float]] = []
        waiting = _Stopwatch()
        started = time.perf_counter()
        for batch in waiting.watch(self.loader):
            self.train_step(batch)
            if len(self._unread) == READ_BACK_EVERY_STEPS:
                seen += self._read_back()
        seen += self._read_back()
        seconds = time.perf_counter() - started
        mean = {name: sum(step[name] for step in seen) / len(seen) for name in seen[0] if name != "lr"}
        return {
            **mean,
            "lr": seen[-1]["lr"],
            "images_per_second": len(self.loader) * self.settings.batch_size / seconds,
            "seconds": seconds,
            "loader_wait_share": waiting.seconds / seconds,
            "peak_memory_mib": _peak_memory_mib(self.group.device),
        }

    def train_step(self, batch: Batch) -> None:
        """Learns from one batch: forward, loss, backward, clip, optimiser, average."""
        device, progress = self.group.device, self.group.progress
        progress.reach(f"step {self.step}: forward")
        batch = batch.to(device)
        learning_rate = learning_rate_at(self.step, len(self.loader), self.settings)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate * parameters["rate_scale"]
        images = batch.images.to(memory_format=torch.channels_last, dtype=torch.float32).div_(255)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast_to_bf16):
            output = self.forward(images)
        loss = self.criterion(output, batch)
        progress.reach(f"step {self.step}: backward, adding up gradients over all processes")
        # Distributed data parallel averages gradients; the loss is one share of a sum, so the share is scaled up.
        (loss.total * self.group.n_processes).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        shares = torch.stack([*(loss.terms[name] for name in self.criterion.terms), loss.n_positive_anchors.float()])
        self._unread.append((self.step, learning_rate, torch.cat([self.group.sum(shares), norm[None]])))
        self.step += 1
        progress.reach(f"waiting for the images of step {self.step}")

    def _prepare_modules(self) -> None:
        self.forward.train()
        if self.settings.freeze_batchnorm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _read_back(self) -> list[dict[str, float]]:
        """Fetches the numbers of the steps since the last time, tells the observers, and refuses to go on with NaN."""
        if not self._unread:
            return []
        rows = torch.stack([numbers for _, _, numbers in self._unread]).tolist()
        steps = []
        for (step, learning_rate, _), row in zip(self._unread, rows, strict=True):
            terms = dict(zip(self.criterion.terms, row, strict=False))
            values = {f"loss_{name}": value for name, value in terms.items()}
            values["loss_total"] = sum(terms.values())
            values |= {"positive_anchors": row[-2], "gradient_norm": row[-1], "lr": learning_rate}
            broken = [f"the loss term {name}" for name, value in terms.items() if not math.isfinite(value)]
            if not math.isfinite(row[-1]):
                broken.append("the gradient")
            if broken:
                raise PosefoundryError(
                    f"Training diverged in step {step}: {' and '.join(broken)} is not finite. Lower "
                    "train.learning_rate, lengthen train.warmup_epochs, or set train.precision: float32."
                )
            for observer in self.observers:
                observer.step_done(step, self.n_steps, values)
            steps.append(values)
        self._unread.clear()
        return steps


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Tells whether to autocast to bfloat16; `auto` does where the hardware multiplies it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _Stopwatch:
    """Adds up the time that a loop waits for its next item."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, items: Iterable[T]) -> Iterable[T]:
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - started
            yield item


def _peak_memory_mib(device: torch.device) -> float:
    """Returns the most memory used so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
