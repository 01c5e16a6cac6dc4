"""Brings data in: from a source that is never changed to one folder in COCO form, fingerprinted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from posefoundry.config import Ingest
from posefoundry.datasets.coco import CocoKeypoints, SetAside, write_coco_keypoints
from posefoundry.datasets.corrections import Corrected, apply_corrections
from posefoundry.datasets.manifest import write_manifest
from posefoundry.datasets.sources import Ingested, copy_coco, draw_synthetic
from posefoundry.datasets.tags import CORRECTED, TAGS_NAME, Tags, read_tags, write_tags
from posefoundry.errors import PosefoundryError
from posefoundry.files import atomic_directory, write_json_atomic
from posefoundry.processes import die_with_parent
from posefoundry.stages.runner import run_as_command


def run(settings: Ingest, *, raw: Path, report: Path) -> None:
    """Brings synthetic people or a COCO folder into one raw data folder with a manifest.

    Corrected annotations replace those of the same images, and tags say which images they are.
    """
    tags = read_tags(settings.tags, where="ingest.tags", reserved=(CORRECTED,)) if settings.tags else {}
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
        ingested, corrected = _with_corrections(ingested, settings, folder)
        if settings.sigmas:
            ingested = _with_sigmas(ingested, settings.sigmas)
        for split, content in ingested.splits.items():
            write_coco_keypoints(folder / "annotations" / f"{split}.json", content)
        write_json_atomic(folder / "set_aside.json", [entry.to_dict() for entry in ingested.set_aside])
        # The evaluation, which slices by them, sees test images alone.
        test_names = [image["file_name"] for image in ingested.splits["test"].images]
        write_tags(folder / TAGS_NAME, tags, test_names, corrected.file_names["test"] if corrected else None)
        write_manifest(folder, ingested.source)
    counts = _report(ingested, corrected, tags)
    write_json_atomic(report, counts)
    print(f"ingest: {_skeleton_sentence(ingested.splits['train'])}")
    for kind, aside in counts["set_aside"].items():
        if aside["total"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in aside["by_reason"].items())
            print(f"ingest: warning: {aside['total']} {kind} set aside ({reasons}); see {raw / 'set_aside.json'}")


def _skeleton_sentence(content: CocoKeypoints) -> str:
    """Tells what the training takes left and right for: a pair that goes unseen is learned as one keypoint."""
    skeleton = content.skeleton
    names = skeleton.keypoint_names
    pairs = [f"{names[i]}/{names[j]}" for i, j in enumerate(skeleton.flip_indices) if i < j]
    classes = ", ".join(category["name"] for category in content.categories)
    return f"{classes}: {len(names)} keypoints, swapped in mirrored images: {', '.join(pairs) or 'none'}"


def _with_corrections(ingested: Ingested, settings: Ingest, folder: Path) -> tuple[Ingested, Corrected | None]:
    if settings.corrections is None:
        return ingested, None
    corrected = apply_corrections(
        ingested.splits, settings.corrections, folder, new_images_to=settings.corrections_split
    )
    if not corrected.origin["files"]:
        return ingested, None
    source = ingested.source | {"corrections": {"root": str(settings.corrections), **corrected.origin}}
    return replace(ingested, splits=corrected.splits, source=source), corrected


def _with_sigmas(ingested: Ingested, sigmas: list[float]) -> Ingested:
    """Puts measured sigmas into all categories, from where they go to the training and to OKS."""
    names = ingested.splits["train"].skeleton.keypoint_names
    if len(sigmas) != len(names):
        raise PosefoundryError(
            f"ingest.sigmas: expected {len(names)} numbers, one per keypoint ({', '.join(names)}), got {len(sigmas)}."
        )
    splits = {
        split: replace(content, categories=[category | {"sigmas": sigmas} for category in content.categories])
        for split, content in ingested.splits.items()
    }
    return replace(ingested, splits=splits, source=ingested.source | {"sigmas": sigmas})


def _report(ingested: Ingested, corrected: Corrected | None, tags: Tags) -> dict[str, Any]:
    names = {image["file_name"] for content in ingested.splits.values() for image in content.images}
    unknown = sorted(set(tags) - names)
    more: dict[str, Any] = {}
    if tags:
        more["tags"] = {"images": len(tags) - len(unknown), "unknown_images": len(unknown), "first": unknown[:5]}
    if corrected:
        changes = Counter(
            (image["change"], image["split"]) for file in corrected.origin["files"] for image in file["images"]
        )
        more["corrections"] = {
            "files": len(corrected.origin["files"]),
            **{
                change: {split: changes[change, split] for split in ingested.splits}
                for change in ("corrected", "added")
            },
            "areas": corrected.origin["areas"],
            "boxes": corrected.origin["boxes"],
        }
    return {
        **more,
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
