"""Images per second of one training process on all cores beside several on a share of them each.

    python benchmarks/scaling.py [model=yolov8n-pose] [imgsz=256] [batch=16] [processes=2] [steps=8] [rounds=3]
                                 [device=cpu]

The same global batch each time: N processes take a share of it and add up their gradients after each step. The last way
leaves each process all cores' threads, as it would be without dividing them. With device=cuda each process has a GPU of
its own, and the last way is left out. Drawn people, loader included; all run in turn, each in processes of its own; the
fastest round of each counts. A first epoch warms up and fills the cache of decoded images; the second is timed. The
workers begin it without a batch at hand: on a GPU take steps=200 or more, so that this does not count.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import CACHE_GIB, device_name, draw_people, print_table, read_options, wait_for_gpu
from rich.table import Table

from posefoundry.config import Augment, Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.models import build_model
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import join_process_group
from posefoundry.training.launch import run_processes, threads_a_process
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion

OPTIONS = {
    "model": "yolov8n-pose",
    "imgsz": "256",
    "batch": "16",
    "processes": "2",
    "steps": "8",
    "rounds": "3",
    "device": "cpu",
}


def main() -> None:
    options = read_options(OPTIONS)
    n, batch, steps = (int(options[name]) for name in ("processes", "batch", "steps"))
    all_threads, share = threads_a_process(1), threads_a_process(n)
    ways = {
        f"1 process, {all_threads} threads": (1, all_threads),
        f"{n} processes, {share} threads each": (n, share),
    }
    if options["device"] == "cpu":
        ways[f"{n} processes, {all_threads} threads each"] = n, all_threads
    seconds = dict.fromkeys(ways, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        draw_people(Path(folder), int(options["imgsz"]), train_images=batch * steps)
        for _ in range(int(options["rounds"])):
            for name, (processes, threads) in ways.items():
                settings = Train(
                    model=options["model"],
                    image_size_px=int(options["imgsz"]),
                    batch_size=batch,
                    processes=processes,
                    device=options["device"],
                    max_restarts=0,
                    optimizer="adamw",
                    learning_rate=0.001,
                    image_cache_gib=CACHE_GIB,
                    augment=Augment(mosaic_probability=0.0),
                )
                seconds[name] = min(seconds[name], run_way(Path(folder), settings, threads))
    title = f"{options['model']}, {options['imgsz']} px, batch {batch}, {device_name(options['device'])}"
    show(seconds, n_images=batch * steps, title=title)


def run_way(folder: Path, settings: Train, threads: int) -> float:
    """Returns the seconds of the second epoch."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    (folder / "settings.json").write_text(settings.model_dump_json())
    run_processes([sys.executable, str(Path(__file__).resolve()), "worker", str(folder)], settings)
    return json.loads((folder / "seconds.json").read_text())


def work(folder: Path) -> None:
    """One process of a way."""
    settings = Train.model_validate_json((folder / "settings.json").read_text())
    with join_process_group(settings.device, settings.stall_timeout_s) as group:
        spec = read_dataset_yaml(folder / "yolo" / "dataset.yaml")
        torch.manual_seed(0)
        model = build_model(settings.model, n_classes=len(spec.class_names), kpt_shape=spec.kpt_shape)
        criterion = build_criterion(model, spec.skeleton, settings, group.sum)
        loader = training_loader(TrainingImages(spec, settings), settings, group.rank, group.device)
        trainer = Trainer(model, settings, criterion, loader, group)
        for _ in range(2):  # of the same batches, so that the second finds all images in the cache
            started = time.perf_counter()
            for batch in loader:
                trainer.train_step(batch)
            wait_for_gpu()
        if group.is_main:
            (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))


def show(seconds: dict[str, float], *, n_images: int, title: str) -> None:
    table = Table(title=title)
    for column in ("way", "images/s", "x 1 process"):
        table.add_column(column, no_wrap=True, justify="left" if column == "way" else "right")
    alone = next(iter(seconds.values()))
    for name, taken in seconds.items():
        table.add_row(name, f"{n_images / taken:.1f}", f"{alone / taken:.2f}")
    print_table(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(Path(sys.argv[2]))
    else:
        main()
