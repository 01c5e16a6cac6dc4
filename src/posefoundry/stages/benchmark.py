"""Stage benchmark: what each artifact costs on this machine, beside PyTorch."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from posefoundry.config import Benchmark
from posefoundry.datasets.yolo import image_files
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.passport import software_versions
from posefoundry.files import write_json_atomic, write_text_atomic
from posefoundry.inference.backends import RUNTIMES, TorchBackend
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.latency import STAGES, Latency, measure_latency
from posefoundry.inference.letterbox import input_size_hw
from posefoundry.inference.predictor import Predictor
from posefoundry.machine import cpu_name, usable_cores
from posefoundry.models import ModelInfo, load_model
from posefoundry.stages.runner import run_as_command
from posefoundry.training.loop import uses_bf16

REFERENCE = "pytorch-float32"
MAX_IMAGES = 64
TABLE_WIDTH = 116  # where there is no terminal to ask

Report = dict[str, Any]


def run(settings: Benchmark, *, raw: Path, weights: Path, artifacts: Path, report: Path, table: Path) -> None:
    """Measure each artifact's latency beside PyTorch on test images: pre-processing, inference, post-processing."""
    threads = settings.threads or usable_cores()
    cv2.setNumThreads(threads)  # pre-processing gets no more than the runtimes
    predictors, skipped = _open_runtimes(weights, artifacts, threads)
    info = predictors[REFERENCE].backend.info
    images, size_hw = _images_of_one_shape(raw / "images" / "test", info)
    content: Report = {
        "architecture": info.architecture,
        "input_size_hw": size_hw,
        "images": len(images),
        "threads": threads,
        "warmup_runs": settings.warmup_runs,
        "timed_runs": settings.timed_runs,
        "cpu": cpu_name(),
        "cpu_load_before": os.getloadavg()[0],  # of other programs: well above 0, the figures are theirs too
        "software": software_versions("onnxruntime", "onnxruntime-gpu", "tensorrt"),
        "runtimes": {name: {"device": predictor.backend.device_name} for name, predictor in predictors.items()},
        "skipped": skipped,
    }
    for batch_size in settings.batch_sizes:
        latencies = measure_latency(
            predictors,
            _batches(images, batch_size),
            warmup_runs=settings.warmup_runs,
            timed_runs=settings.timed_runs,
        )
        for name, latency in latencies.items():
            content["runtimes"][name][f"batch_{batch_size}"] = _figures(latency, latencies[REFERENCE], batch_size)
    rows = _rows(content, settings.batch_sizes)
    write_text_atomic(table, _csv(rows))
    write_json_atomic(report, content)
    _print(content, rows)


def _open_runtimes(weights: Path, artifacts: Path, threads: int) -> tuple[dict[str, Predictor], list[dict[str, str]]]:
    """Returns predictors by runtime, PyTorch first, and the artifacts that cannot run here, each with the reason."""
    model, info = load_model(weights)
    reference = TorchBackend(model, info, threads=threads)
    predictors = {REFERENCE: Predictor(reference)}
    if uses_bf16("auto", reference.device):
        predictors["pytorch-bfloat16"] = Predictor(TorchBackend(model, info, precision="bfloat16", threads=threads))
    skipped = []
    for path in sorted(artifacts.iterdir(), reverse=True):
        if path.suffix in RUNTIMES:
            try:
                predictors[RUNTIMES[path.suffix]] = Predictor.load(path, threads=threads)
            except PosefoundryError as error:  # such as an engine on a machine without its GPU
                skipped.append({"artifact": path.name, "reason": str(error)})
    return predictors, skipped


def _images_of_one_shape(folder: Path, info: ModelInfo) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Returns the test images whose model input has the commonest shape, and that shape in px.

    Runtimes prepare themselves for each new shape, and such a run says nothing about the others.
    """
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for path in image_files(folder)[:MAX_IMAGES]:
        image_bgr = read_image_bgr(path)
        size_hw = input_size_hw(image_bgr.shape[:2], info.image_size_px, info.stride_px)
        groups.setdefault(size_hw, []).append(image_bgr)
    if not groups:
        raise PosefoundryError(f"{folder}: expected test images to measure on, found none.")
    size_hw = max(groups, key=lambda size: len(groups[size]))
    return groups[size_hw], size_hw


def _batches(images: Sequence[np.ndarray], batch_size: int) -> list[list[np.ndarray]]:
    """Returns batches that begin with each image once; few images are used again to fill a large batch."""
    n = len(images)
    return [[images[(start + i) % n] for i in range(batch_size)] for start in range(0, n, batch_size)]


def _figures(latency: Latency, reference: Latency, batch_size: int) -> Report:
    """Returns the figures of one runtime and batch size. Milliseconds are a whole batch's."""
    summaries = {f"{stage}_ms": latency.summary(stage) for stage in STAGES}
    return {
        **summaries,
        "images_per_s": 1000 * batch_size / summaries["end_to_end_ms"]["mean"],
        "times_pytorch": {stage: latency.speed_against(reference, stage) for stage in ("inference", "end_to_end")},
    }


def _rows(content: Report, batch_sizes: Sequence[int]) -> list[Report]:
    """Returns one flat row a runtime and batch size."""
    rows = []
    for batch_size in batch_sizes:
        for name, runtime in content["runtimes"].items():
            figures = runtime[f"batch_{batch_size}"]
            row = {
                "runtime": name,
                "batch_size": batch_size,
                "device": runtime["device"],
                "threads": content["threads"],
                "input_height_px": content["input_size_hw"][0],
                "input_width_px": content["input_size_hw"][1],
            }
            row |= {
                f"{stage}_{statistic}_ms": round(value, 4)
                for stage in STAGES
                for statistic, value in figures[f"{stage}_ms"].items()
            }
            row["images_per_s"] = round(figures["images_per_s"], 2)
            row |= {f"{stage}_times_pytorch": round(x, 3) for stage, x in figures["times_pytorch"].items()}
            rows.append(row)
    return rows


def _csv(rows: list[Report]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _print(content: Report, rows: list[Report]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    height, width = content["input_size_hw"]
    table = Table(title=f"{content['architecture']}, {width} x {height} px, {content['threads']} threads: ms per batch")
    table.add_column("runtime", no_wrap=True)
    for column in ("batch", "before", "inference p50", "p95", "p99", "after", "all p50", "images/s", "x PyTorch"):
        table.add_column(column, justify="right")
    stages = ("preprocess_p50", "inference_p50", "inference_p95", "inference_p99", "postprocess_p50", "end_to_end_p50")
    for row in rows:
        milliseconds = [f"{row[f'{stage}_ms']:.2f}" for stage in stages]
        speeds = f"{row['images_per_s']:.1f}", f"{row['end_to_end_times_pytorch']:.2f}"
        table.add_row(row["runtime"], str(row["batch_size"]), *milliseconds, *speeds)
    console.print(table)
    for device in dict.fromkeys(runtime["device"] for runtime in content["runtimes"].values()):
        console.print(f"on {device}")
    for skipped in content["skipped"]:
        console.print(f"{skipped['artifact']}: skipped, {skipped['reason']}")


if __name__ == "__main__":
    run_as_command("benchmark", run)
