"""Images per second of a training's whole loop, and where the time goes, beside the plainest float32 loop.

    python benchmarks/train.py [model=yolov8n-pose] [imgsz=256,640] [batch=16] [steps=6] [rounds=3] [workers=auto]
                               [compile=0]

Drawn people; loader, forward, loss, backward, optimiser and moving average included. The plain loop is what one would
write first: the same model, loss and augmentation in float32, images read from their files, the default memory format,
AdamW and moving average one tensor at a time. All ways run in turn in one process; the fastest round of each counts.
`of ceiling` is what the model's operations, forward and backward, come to a second, as a share of the rate at which the
device multiplies large matrices in the same precision; convolutions of small models reach only a part of that anywhere.
Then how many images a second one core prepares, to hold against what a GPU trains; how many are judged, as the training
judges, and what that takes of an epoch that ends with it; and the most memory that was taken. `workers` prepare batches
beside ours.

On a GPU take steps=100 or more: a few are over before the workers, who begin anew each round, have their first batches.
Our way keeps all images decoded, 1.2 MB each at 640 px; the first round fills this cache and is not counted.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch
from common import CACHE_GIB, device_name, draw_people, print_table, read_options, wait_for_gpu
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from posefoundry.config import Augment, Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.machine import peak_memory_bytes
from posefoundry.models import ModelInfo, build_model
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import ProcessGroup, join_process_group
from posefoundry.training.image_cache import ImageCache
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer, uses_bf16
from posefoundry.training.losses import build_criterion
from posefoundry.training.validation import Validator
from posefoundry.values import AUTO_WORKERS

SHARES = ("loader", "forward", "loss", "backward", "optimiser", "average")
OPTIONS = {
    "model": "yolov8n-pose",
    "imgsz": "256,640",
    "batch": "16",
    "steps": "6",
    "rounds": "3",
    "workers": "auto",
    "compile": "0",
}
LOADER_ROUNDS, LOADER_IMAGES = 3, 256
VAL_ROUNDS = 3
VAL_IMAGES = {"cpu": 32, "cuda": 512}  # enough for folding the BatchNorms, once a validation, not to count
TRAINED_PER_VALIDATED = 10
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Sides of the square matrices that the ceiling is measured with, large enough for the device to be busy.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
MATRIX_SECONDS = 1.0


class Stopwatch:
    """Adds up seconds by name; waits for a GPU's work, so that each part is charged for its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        wait_for_gpu()
        start = time.perf_counter()
        yield
        wait_for_gpu()
        self.seconds[name] += time.perf_counter() - start

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.measure(name):
                return function(*arguments, **named)

        return timed


@dataclass
class Way:
    """One way to train: a round of it, and what the rounds took."""

    name: str
    precision: str
    round: Callable[[Stopwatch | None], None]
    seconds: float = float("inf")
    peak_gib: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ceiling:
    """What the device could do at most, by precision, and what an image takes of it."""

    flops_per_s: dict[str, float]
    flop_an_image: float


def main() -> None:
    options = read_options(OPTIONS)
    batch, steps, rounds = (int(options[name]) for name in ("batch", "steps", "rounds"))
    group = join_process_group("auto", Train().stall_timeout_s)
    ceilings = {name: matrix_flops_per_s(group.device, dtype) for name, dtype in PRECISIONS.items()}
    for imgsz in map(int, options["imgsz"].split(",")):
        with tempfile.TemporaryDirectory() as folder:
            settings = training_settings(options["model"], imgsz, batch, options["workers"])
            draw_people(Path(folder), imgsz, train_images=batch * steps, val_images=VAL_IMAGES[group.device.type])
            ways = [plain_way(Path(folder), settings, group), our_way(Path(folder), settings, group)]
            if options["compile"] == "1":
                ways.append(our_way(Path(folder), settings.model_copy(update={"compile": True}), group))
            measure(ways, rounds)
            prepared = [loader_speed(Path(folder), settings, mosaics) for mosaics in (0.0, 1.0)]
            validation = validation_speed(Path(folder), settings, group)
            ceiling = Ceiling(ceilings, flop_an_image(Path(folder), settings, group))
        threads, device = torch.get_num_threads(), device_name(group.device.type)
        title = f"{settings.model}, {imgsz} px, batch {batch}, {threads} threads, {device}"
        show(ways, n_images=batch * steps, title=title, ceiling=ceiling)
        print("loader: one core prepares {:.0f} images/s, {:.0f} as mosaics".format(*prepared))
        show_validation(validation, trained=batch * steps / ways[1].seconds)
        show_memory(ways)


def training_settings(model: str, imgsz: int, batch: int, workers: str = "0") -> Train:
    return Train(
        model=model,
        epochs=1000,
        batch_size=batch,
        image_size_px=imgsz,
        optimizer="adamw",
        learning_rate=0.001,
        image_cache_gib=CACHE_GIB,
        loader_workers=AUTO_WORKERS if workers == "auto" else int(workers),
        augment=Augment(mosaic_probability=0.0),
    )


def new_trainer(folder: Path, settings: Train, group: ProcessGroup) -> Trainer:
    spec = read_dataset_yaml(folder / "yolo" / "dataset.yaml")
    torch.manual_seed(0)
    model = build_model(settings.model, n_classes=len(spec.class_names), kpt_shape=spec.kpt_shape)
    criterion = build_criterion(model, spec.skeleton, settings, group.sum)
    loader = training_loader(TrainingImages(spec, settings), settings, group.rank, group.device)
    return Trainer(model, settings, criterion, loader, group)


def our_way(folder: Path, settings: Train, group: ProcessGroup) -> Way:
    trainer = new_trainer(folder, settings, group)

    def epoch(watch: Stopwatch | None) -> None:
        with spied_on(trainer, watch):
            for batch in timed_loader(trainer.loader, watch):
                trainer.train_step(batch)
        wait_for_gpu()

    precision = "bfloat16" if trainer.autocast_to_bf16 else "float32"
    return Way(f"posefoundry, {precision}{', compiled' if settings.compile else ''}", precision, epoch)


def plain_way(folder: Path, settings: Train, group: ProcessGroup) -> Way:
    trainer = new_trainer(folder, settings.model_copy(update={"image_cache_gib": 0.0, "loader_workers": 0}), group)
    model, criterion, device = build_model(settings.model), trainer.criterion, group.device
    model.to(device).train()
    averages = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, foreach=False)

    def move_averages() -> None:
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                averages[name].mul_(0.999).add_(value, alpha=0.001)

    def epoch(watch: Stopwatch | None) -> None:
        time_of = watch.around if watch else lambda _, function: function
        for batch in timed_loader(trainer.loader, watch):
            batch = batch.to(device)
            images = batch.images.contiguous().float() / 255  # the loader gives channels last
            output = time_of("forward", model)(images)
            loss = time_of("loss", criterion)(output, batch).total
            optimizer.zero_grad()
            time_of("backward", loss.backward)()
            time_of("optimiser", optimizer.step)()
            time_of("average", move_averages)()
        wait_for_gpu()

    return Way("plain loop, float32", "float32", epoch)


@contextmanager
def spied_on(trainer: Trainer, watch: Stopwatch | None) -> Iterator[None]:
    """Times the parts of the trainer's own step while the block runs."""
    if watch is None:
        yield
        return
    backward, forward, criterion = torch.Tensor.backward, trainer.forward, trainer.criterion
    step, update = trainer.optimizer.step, trainer.average.update
    torch.Tensor.backward = watch.around("backward", backward)  # type: ignore[method-assign]
    trainer.forward = watch.around("forward", forward)  # type: ignore[assignment]
    trainer.criterion = TimedCriterion(criterion, watch)  # type: ignore[assignment]
    trainer.optimizer.step = watch.around("optimiser", step)  # type: ignore[method-assign]
    trainer.average.update = watch.around("average", update)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        trainer.forward, trainer.criterion = forward, criterion
        trainer.optimizer.step, trainer.average.update = step, update  # type: ignore[method-assign]


class TimedCriterion:
    """The loss, timed."""

    def __init__(self, criterion: Any, watch: Stopwatch) -> None:
        self.terms, self._timed = criterion.terms, watch.around("loss", criterion)

    def __call__(self, output: Any, batch: Any) -> Any:
        return self._timed(output, batch)


def timed_loader(loader: Any, watch: Stopwatch | None) -> Iterator[Any]:
    iterator = iter(loader)
    following = watch.around("loader", next) if watch else next
    while (batch := following(iterator, None)) is not None:
        yield batch


def measure(ways: list[Way], rounds: int) -> None:
    """Runs all ways in turn: one round to warm up, the timed rounds, and one that looks at the parts."""
    for number in range(rounds + 1):
        for way in ways:
            start = time.perf_counter()
            way.round(None)
            if number:
                way.seconds = min(way.seconds, time.perf_counter() - start)
    for way in ways:
        watch = Stopwatch()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        way.round(watch)
        whole = time.perf_counter() - start
        way.shares = {name: watch.seconds[name] / whole for name in SHARES}
        way.peak_gib = peak_memory_gib()


def loader_speed(folder: Path, settings: Train, mosaic_probability: float) -> float:
    """Returns images a second that one core takes out of the cache and augments, as a worker does."""
    changed = {"augment": Augment(mosaic_probability=mosaic_probability)}
    images = TrainingImages(read_dataset_yaml(folder / "yolo" / "dataset.yaml"), settings.model_copy(update=changed))
    n_images = min(len(images), LOADER_IMAGES)
    n_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    best = float("inf")
    for epoch in range(LOADER_ROUNDS + 1):
        start = time.perf_counter()
        for number in range(n_images):
            images[epoch, number]
        if epoch:  # the first fills the cache
            best = min(best, time.perf_counter() - start)
    cv2.setNumThreads(n_threads)
    return n_images / best


def validation_speed(folder: Path, settings: Train, group: ProcessGroup) -> float:
    """Returns images a second of judging the val split as the training does from the second time on: from its cache."""
    spec = read_dataset_yaml(folder / "yolo" / "dataset.yaml")
    model = build_model(settings.model).to(group.device).eval()
    info = ModelInfo(
        architecture=settings.model,
        class_names=spec.class_names,
        category_ids=spec.category_ids,
        kpt_shape=spec.kpt_shape,
        skeleton=spec.skeleton,
        stride_px=max(model.strides),
        image_size_px=settings.image_size_px,
    )
    annotations = folder / "raw" / "annotations" / "val.json"
    precision = "bfloat16" if uses_bf16(settings.precision, group.device) else "float32"
    validator = Validator(annotations, spec.splits["val"], info, group, settings.batch_size, precision)
    cache = ImageCache(len(validator.images), settings.image_size_px, settings.image_cache_gib * 2**30)
    validator.images.keep_in(cache, first_number=0)
    best = float("inf")
    for number in range(VAL_ROUNDS + 1):
        start = time.perf_counter()
        validator(model)
        if number:  # the first fills the cache
            best = min(best, time.perf_counter() - start)
    return VAL_IMAGES[group.device.type] / best


def flop_an_image(folder: Path, settings: Train, group: ProcessGroup) -> float:
    """Returns what a step of the training computes for an image; a multiplication with its addition counts as two."""
    trainer = new_trainer(folder, settings.model_copy(update={"loader_workers": 0}), group)
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.train_step(next(iter(trainer.loader)))
    return counter.get_total_flops() / settings.batch_size


def matrix_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the rate at which the device multiplies large square matrices, the best of a second's tries.

    In float32 a GPU may use TF32, as PyTorch's convolutions do of their own.
    """
    side = MATRIX_SIDE[device.type]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    one @ other
    best, until = float("inf"), time.perf_counter() + MATRIX_SECONDS
    while time.perf_counter() < until:
        wait_for_gpu()
        start = time.perf_counter()
        one @ other
        wait_for_gpu()
        best = min(best, time.perf_counter() - start)
    torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's default
    return 2 * side**3 / best


def show(ways: list[Way], *, n_images: int, title: str, ceiling: Ceiling) -> None:
    table = Table(title=title)
    for column in ("way", "images/s", "x plain", "of ceiling", *SHARES, "rest"):
        table.add_column(column, no_wrap=True, justify="left" if column == "way" else "right")
    for way in ways:
        images_per_second = n_images / way.seconds
        reached = images_per_second * ceiling.flop_an_image / ceiling.flops_per_s[way.precision]
        speeds = f"{images_per_second:.1f}", f"{ways[0].seconds / way.seconds:.2f}", f"{reached:.1%}"
        shares = [way.shares[name] for name in SHARES]
        table.add_row(way.name, *speeds, *(f"{share:.0%}" for share in (*shares, 1 - sum(shares))))
    print_table(table)
    rates = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in ceiling.flops_per_s.items())
    print(f"ceiling: matrices are multiplied at {rates}; a step takes {ceiling.flop_an_image / 1e9:.2f} GFLOP an image")


def show_validation(judged: float, *, trained: float) -> None:
    """Prints images judged a second, and what they take of an epoch that learns `trained` a second."""
    share = 1 / (1 + TRAINED_PER_VALIDATED * judged / trained)
    print(
        f"validation: {judged:.1f} images/s; {share:.0%} of the time of an epoch that ends with one, with "
        f"{TRAINED_PER_VALIDATED} images learnt for each that is judged"
    )


def show_memory(ways: list[Way]) -> None:
    if torch.cuda.is_available():
        peaks = ", ".join(f"{way.peak_gib:.2f} GiB by {way.name}" for way in ways)
        print(f"most memory of the GPU, all ways' weights and averages included: {peaks}")
    else:
        print(f"most memory taken so far: {peak_memory_gib():.2f} GiB")


def peak_memory_gib() -> float:
    """Returns the most memory taken: of a GPU since it was last asked to forget, of this process from its begin."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory_bytes() / 2**30


if __name__ == "__main__":
    main()
