"""The training loop of YOLO-pose models."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.models import PoseModel
from posefoundry.training.batch import Batch
from posefoundry.training.checkpoint import Checkpoints
from posefoundry.training.diagnosis import diagnose
from posefoundry.training.distributed import ProcessGroup, synchronise_batchnorm
from posefoundry.training.epoch_log import EpochLog
from posefoundry.training.guard import StepGuard
from posefoundry.training.loader import batches
from posefoundry.training.losses import Criterion
from posefoundry.training.observer import Observer
from posefoundry.training.optimizer import WeightAverage, build_optimizer, learning_rate_at
from posefoundry.training.rescue import DivergedError, Rescue

# Reading a number back makes a GPU wait for all work queued before it; so numbers are read some steps at a time.
READ_BACK_EVERY_STEPS = 10

Metrics = dict[str, float | None]


class Trainer:
    """Trains a model and keeps the moving average of its weights.

    Where it stands is `epoch`, the one under way (from 0), and `step`, the number of steps done in all.

    Args:
        model: In training mode gives raw head outputs.
        settings: Section `train` of the parameters.
        criterion: The loss.
        loader: Batches of this process; its `batch_sampler` hears which epoch is due and from which batch on.
        group: This process among its peers.
        observers: Told of each step and epoch, in the main process alone.
        should_stop: Asked each step; when it says yes in one process, all save a checkpoint and end.
    """

    def __init__(
        self,
        model: PoseModel,
        settings: Train,
        criterion: Criterion,
        loader: DataLoader[Batch],
        group: ProcessGroup,
        observers: Sequence[Observer] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.criterion, self.loader, self.group = settings, criterion, loader, group
        self.observers = observers if group.is_main else ()
        if settings.sync_batchnorm:
            model = synchronise_batchnorm(model, group)
        self.should_stop = should_stop
        self.autocast_to_bf16 = uses_bf16(settings.precision, group.device)
        self.model = model.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: nn.Module = self.model
        if group.n_processes > 1:
            self.forward = DistributedDataParallel(
                self.model,
                device_ids=[group.device.index] if group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,  # or all gradients would be in memory twice
            )
            # BatchNorm's statistics are alike at the start; after that those of rank 0 alone count. As an argument it
            # would leave out the start too.
            self.forward.broadcast_buffers = False
        if settings.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        self.optimizer = build_optimizer(self.model, settings)
        self.average = WeightAverage(self.model, settings.ema_decay, settings.ema_ramp_updates)
        self.guard = StepGuard(self.model, settings.gradient_clip_norm)
        self.log = EpochLog(self.criterion.terms)
        self.rescue = Rescue()
        self.checkpoints = Checkpoints(None, group, {}, {})
        self.epoch = self.step = 0
        self._unread: list[tuple[int, float, Tensor]] = []
        self._read_back_every = READ_BACK_EVERY_STEPS if group.device.type == "cuda" else 1

    @property
    def n_steps(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * len(self.loader)

    def train(
        self, validate: Callable[[PoseModel], Metrics], keep_weights: Callable[[PoseModel, int, Metrics], bool | None]
    ) -> None:
        """Trains the epochs that remain; validates the averaged weights every few epochs and after the last.

        Args:
            validate: Judges the averaged model; called by all processes together.
            keep_weights: Called in the main process after each validation with model, epoch (from 1) and metrics;
                says whether to end here, before the last epoch.

        Raises:
            StoppedError: `should_stop` said so; a checkpoint is written.
            PosefoundryError: The training diverged, also after going back to a checkpoint.
        """
        end = False
        while self.epoch < self.settings.epochs and not end:
            try:
                self._train_epoch()
            except DivergedError as error:
                self._go_back(error)
                continue
            values = self.log.summary(self.settings.batch_size, self.group.device)
            if self._validation_is_due:
                metrics, end = self._validate(validate, keep_weights)
                values |= metrics
            self.epoch += 1
            self.log = EpochLog(self.criterion.terms)
            for observer in self.observers:
                observer.epoch_done(self.epoch, values)

    @property
    def _validation_is_due(self) -> bool:
        return self.epoch + 1 == self.settings.epochs or (self.epoch + 1) % self.settings.validate_every_epochs == 0

    def _validate(
        self, validate: Callable[[PoseModel], Metrics], keep_weights: Callable[[PoseModel, int, Metrics], bool | None]
    ) -> tuple[Metrics, bool]:
        started = time.perf_counter()
        # BatchNorm's statistics are each process's own; all must judge the model that is kept.
        self.group.take_from_main(self.average.model.buffers())
        self.group.progress.reach(f"judging the weights of epoch {self.epoch + 1}")
        metrics = validate(self.average.model)
        values = {f"val_{name}": value for name, value in metrics.items()}
        values["validation_seconds"] = time.perf_counter() - started
        end = self.group.is_main and bool(keep_weights(self.average.model, self.epoch + 1, metrics))
        return values, self.group.from_main(end)

    def _train_epoch(self) -> None:
        """Trains what remains of the epoch, leaving a checkpoint now and then, and one where validation follows.

        Raises:
            DivergedError: Too many steps in a row, or all of the epoch, had to be left out.
            StoppedError: `should_stop` said so.
        """
        sampler: Any = self.loader.batch_sampler
        sampler.epoch, sampler.first = self.epoch, self.step - self.epoch * len(self.loader)
        self.criterion.start_epoch(self.epoch)
        self._prepare_modules()
        for batch in self.log.timed(batches(self.loader)):
            self.train_step(batch)
            ends_epoch = self.step == (self.epoch + 1) * len(self.loader)
            is_due = self._checkpoint_is_due(ends_epoch)
            if is_due or ends_epoch or len(self._unread) == self._read_back_every:
                stop = self._read_back()
                if ends_epoch:
                    self.log.check_any_good()
                # Amid steps that are left out the one before them is the better to go back to; but what a validation
                # judges is always kept.
                if stop or (ends_epoch and self._validation_is_due) or (is_due and not self.rescue.in_a_row):
                    self.checkpoints.save(self.step)
                if stop:
                    where = f"after step {self.step} of {self.n_steps}"
                    raise StoppedError(f"stopped by a signal {where}; the next run goes on from there.")

    def _checkpoint_is_due(self, ends_epoch: bool) -> bool:
        every_steps, every_epochs = self.settings.checkpoint_every_steps, self.settings.checkpoint_every_epochs
        if every_steps and self.step % every_steps == 0:
            return True
        epoch_counts = bool(every_epochs) and (self.epoch + 1) % every_epochs == 0
        return ends_epoch and (self._validation_is_due or epoch_counts)

    def train_step(self, batch: Batch) -> None:
        """Learns from one batch: forward, loss, backward, clip, optimiser, average."""
        device, progress = self.group.device, self.group.progress
        progress.reach(f"step {self.step}: forward")
        batch = batch.to(device)
        learning_rate = learning_rate_at(self.step, len(self.loader), self.settings) * self.rescue.learning_rate_scale
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate * parameters["rate_scale"]
        images = batch.images.to(memory_format=torch.channels_last, dtype=torch.float32).div_(255)
        self.guard.remember()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast_to_bf16):
            output = self.forward(images)
        loss = self.criterion(output, batch)
        progress.reach(f"step {self.step}: backward, adding up gradients over all processes")
        # Distributed data parallel averages gradients; the loss is one share of a sum, so the share is scaled up.
        (loss.total * self.group.n_processes).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip_norm, foreach=True)
        stop = torch.full((), float(self.should_stop()), device=device)
        shares = [*(loss.terms[name] for name in self.criterion.terms), loss.n_positive_anchors.float(), stop]
        numbers = self.group.sum(torch.stack(shares))
        good = self.guard.judge(numbers, norm)
        self.guard.step(self.optimizer, good)
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self._unread.append((self.step, learning_rate, torch.cat([numbers, norm[None], good[None].float()])))
        self.step += 1
        progress.reach(f"waiting for the images of step {self.step}")

    def _prepare_modules(self) -> None:
        self.forward.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                self.settings.freeze_batchnorm or not module.weight.requires_grad
            ):
                module.eval()

    def _read_back(self) -> bool:
        """Fetches the numbers of the steps since the last time and tells the observers.

        Returns:
            Whether any process was asked to stop.

        Raises:
            DivergedError: Too many steps in a row had to be left out.
        """
        rows = torch.stack([numbers for _, _, numbers in self._unread]).tolist()
        unread, self._unread = self._unread, []
        stop = False
        for (step, learning_rate, _), row in zip(unread, rows, strict=True):
            values, stop_asked = self.log.add(step, learning_rate, row)
            stop |= stop_asked
            for observer in self.observers:
                observer.step_done(step, self.n_steps, values)
            self.rescue.watch(step, values)
        return stop

    def _go_back(self, error: DivergedError) -> None:
        """Goes on from the last checkpoint at a lower learning rate, if there is one and that has not failed before."""
        self._unread.clear()
        rescue = self.rescue.next()
        if rescue is None or not self.checkpoints.restore():
            folder = self.checkpoints.folder.path if self.checkpoints.folder else None
            told = diagnose(error, self.log, self.loader, folder) if self.group.is_main else ""
            raise PosefoundryError(self.group.from_main(told)) from None
        self.rescue = rescue
        if self.group.is_main:
            print(
                f"{error} Going on from the checkpoint of step {self.step}, with {rescue.learning_rate_scale:g} times "
                "the learning rate from now on.",
                file=sys.stderr,
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next step depends on, and the sums of the epoch under way."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            "log": self.log.state_dict(),
            "rescue": self.rescue.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where the state was left."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        self.log.load_state_dict(state["log"])
        self.rescue = Rescue(**state["rescue"])


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Tells whether to autocast to bfloat16; `auto` does where the hardware multiplies it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
