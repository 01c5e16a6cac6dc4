"""What the benchmarks share: their options, people to learn from, how a table is printed."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from posefoundry.config import Convert, Ingest, SyntheticSource
from posefoundry.machine import cpu_name
from posefoundry.stages import convert, ingest

CACHE_GIB = 64.0  # room for all images that a benchmark draws, so that what is measured is not how they are decoded


def read_options(defaults: dict[str, str]) -> dict[str, str]:
    """Returns the defaults, changed by what `key=value` on the command line says."""
    options = dict(defaults)
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key not in options:
            sys.exit(f"Expected {', '.join(f'{name}=...' for name in options)}, got {argument!r}.")
        options[key] = value
    return options


def draw_people(folder: Path, imgsz: int, *, train_images: int, val_images: int = 1) -> None:
    """Writes raw/ and yolo/."""
    size = SyntheticSource(image_size_px=imgsz, train_images=train_images, val_images=val_images, test_images=1)
    ingest.run(Ingest(synthetic=size), raw=folder / "raw", report=folder / "ingest.json")
    receipt, report = folder / "receipt.jsonl", folder / "convert.json"
    convert.run(Convert(), raw=folder / "raw", yolo=folder / "yolo", receipt=receipt, report=report)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_table(table: Table) -> None:
    """Prints a table in its full width, also where there is no terminal to ask."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
