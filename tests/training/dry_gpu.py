"""Run by a test in a process of its own: training steps on a GPU that is none, whose tensors have a device but no data.

dry_gpu.py out.json; the file gets what each pair of model and optimiser did. An operation on tensors of two devices is
a fault, as on a real GPU, and so is a number read back; what else makes the host wait is counted by its source line.
The models have heads of their families on a body of three convolutions, since every operation takes its time here.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from posefoundry.config import Train
from posefoundry.models import PoseModel
from posefoundry.models.blocks import Conv
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training.batch import Batch, collate
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion
from posefoundry.training.trial import _crowd

JOBS = (("yolov8n-pose", "musgd"), ("yolo11n-pose", "sgd"), ("yolo26n-pose", "adamw"))
SIDE_PX = 64
FOUND = 7  # rows that `nonzero` is said to find
NAME = "drygpu"
DEVICE = torch.device("cpu")


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Shallow(PoseModel):
    """A model's head on one convolution a level."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 1, (17, 3))
        channels = [branch[0].conv.in_channels for branch in self.head.cv2]
        self.model = nn.ModuleList([*(Conv(3, n) for n in channels), self.head])

    def _features(self, images: Tensor) -> list[Tensor]:
        levels = zip(self.model, self.strides, strict=False)
        return [convolution(images[..., ::stride, ::stride]) for convolution, stride in levels]


class WithoutData(FakeTensorMode):
    """PyTorch's tensors without data, none of which it tries to make on the device."""

    @property
    def avoid_device_init(self) -> bool:
        return True


class Peerless(ProcessGroup):
    """One process that adds up as strictly as several do by NCCL, which knows no tensors but a GPU's."""

    def sum(self, local: Tensor) -> Tensor:
        assert local.device == DEVICE, f"a tensor on {local.device} is to be added up over all processes"
        return super().sum(local)


class Waits(TorchDispatchMode):
    """Counts by operation and source line what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(operation).removeprefix("aten."), kwargs or {}
        if name.startswith("nonzero."):
            self.note(name)
            return args[0].new_empty((FOUND, args[0].dim()), dtype=torch.int64)
        if name.startswith(("index.", "index_put", "_index_put")) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            raise RuntimeError(f"{name} by a mask: the host waits for the number of what it picks")
        if name.startswith("_to_copy.") and "device" in kwargs:
            self.note(f"from {args[0].device.type} to {torch.device(kwargs['device']).type}")
        if name.startswith("_fused_sgd_"):  # nobody has taught PyTorch what it does to tensors without data
            devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            assert devices == {DEVICE}, f"{name} on {devices}"
            assert kwargs["found_inf"] is not None
            return None
        return operation(*args, **kwargs)

    def note(self, what: str) -> None:
        frame = sys._getframe(1)
        while "posefoundry" not in Path(frame.f_code.co_filename).parts and frame.f_back:
            frame = frame.f_back
        self.seen[f"{what} in {Path(frame.f_code.co_filename).name}, {frame.f_code.co_name}"] += 1


def step(model: str, optimizer: str, spoil: Callable[[Any], Any] = lambda criterion: criterion) -> dict[str, int]:
    """Returns the waits of the second step; the first moves constants."""
    settings = Train(
        model=model, optimizer=optimizer, precision="float32", batch_size=2, image_size_px=SIDE_PX, device="cuda"
    )
    spec: Any = SimpleNamespace(kpt_shape=(17, 3))
    batch = collate([_crowd(SIDE_PX, spec, np.random.default_rng(0))] * 2)
    shallow = Shallow(model)
    group = Peerless(0, 1, DEVICE)
    criterion = spoil(build_criterion(shallow, COCO_PERSON, settings, group.sum))
    loader: list[Batch] = [batch]
    waits = Waits()
    with WithoutData(allow_non_fake_inputs=True), waits:
        trainer = Trainer(shallow, settings, criterion, loader, group)  # type: ignore[arg-type]
        trainer.train_step(batch)
        waits.seen.clear()
        trainer.train_step(batch)
    return dict(waits.seen)


class WithTensorOfCpu:
    """A loss that forgets where its data lies."""

    def __init__(self, criterion: Any) -> None:
        self.criterion, self.terms = criterion, criterion.terms

    def __call__(self, output: Any, batch: Batch) -> Any:
        output.boxes = output.boxes * torch.ones(1, 64, 1)
        return self.criterion(output, batch)


class WithNumberRead(WithTensorOfCpu):
    """A loss that looks at a number."""

    def __call__(self, output: Any, batch: Batch) -> Any:
        if output.boxes.sum() > 0:
            output.boxes = output.boxes * 2
        return self.criterion(output, batch)


def main(out: Path) -> None:
    global DEVICE
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    DEVICE = torch.device(NAME, 0)
    told: dict[str, Any] = {}
    for fault in (WithTensorOfCpu, WithNumberRead):
        try:
            step("yolov8n-pose", "adamw", fault)
        except RuntimeError as error:
            told[fault.__name__] = f"{type(error).__name__}: {error}"
    for model, optimizer in JOBS:
        try:
            told[f"{model} {optimizer}"] = step(model, optimizer)
        except (RuntimeError, AssertionError) as error:
            told[f"{model} {optimizer}"] = f"{type(error).__name__}: {error}"
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
