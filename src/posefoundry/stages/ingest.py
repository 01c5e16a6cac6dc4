"""Brings data in: from a source that is never changed to one folder in COCO form, fingerprinted."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from posefoundry.config import Ingest
from posefoundry.datasets.coco import CocoKeypoints, SetAside, write_coco_keypoints
from posefoundry.datasets.manifest import write_manifest
from posefoundry.datasets.sources import Ingested, copy_coco, draw_synthetic
from posefoundry.files import atomic_directory, write_json_atomic
from posefoundry.processes import die_with_parent
from posefoundry.stages.runner import run_as_command


def run(settings: Ingest, *, raw: Path, report: Path) -> None:
    """Brings synthetic people or a COCO folder into one raw data folder with a manifest."""
    with atomic_directory(raw) as folder:
        if settings.source == "synthetic":
            ingested = draw_synthetic(
                settings.synthetic,
                seed=settings.seed,
                folder=folder,
                progress=_progress,
                on_worker_start=die_with_parent,
            )
        else:
            ingested = copy_coco(settings.coco, seed=settings.seed, folder=folder, progress=_progress)
        for split, content in ingested.splits.items():
            write_coco_keypoints(folder / "annotations" / f"{split}.json", content)
        write_json_atomic(folder / "set_aside.json", [entry.to_dict() for entry in ingested.set_aside])
        write_manifest(folder, ingested.source)
    write_json_atomic(report, _report(ingested))


def _report(ingested: Ingested) -> dict[str, Any]:
    return {
        "source": ingested.source["kind"],
        "splits": {split: _counts(content) for split, content in ingested.splits.items()},
        "set_aside": {
            "images": _reasons(entry for entry in ingested.set_aside if entry.annotation is None),
            "annotations": _reasons(entry for entry in ingested.set_aside if entry.annotation is not None),
        },
    }


def _counts(content: CocoKeypoints) -> dict[str, int]:
    crowds = sum(annotation["iscrowd"] for annotation in content.annotations)
    return {
        "images": len(content.images),
        "annotations": len(content.annotations),
        "persons": len(content.annotations) - crowds,
        "persons_with_keypoints": sum(a["num_keypoints"] > 0 and not a["iscrowd"] for a in content.annotations),
        "crowds": crowds,
    }


def _reasons(entries: Iterable[SetAside]) -> dict[str, Any]:
    reasons = Counter(entry.reason for entry in entries)
    return {"total": reasons.total(), "by_reason": dict(sorted(reasons.items()))}


def _progress(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(items, title, total=total, console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    run_as_command("ingest", run)
