"""Where data comes from: people drawn here, or a folder in the layout of the COCO 2017 release."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from posefoundry.config import CocoSource, SyntheticSource
from posefoundry.datasets.coco import (
    CocoKeypoints,
    Fault,
    SetAside,
    flat_name,
    load_coco_keypoints,
    only_images,
    set_faults_aside,
    without_images,
)
from posefoundry.datasets.image_files import read_whole_image
from posefoundry.datasets.synthetic import DrawnImage, draw_image
from posefoundry.datasets.yolo import SPLITS
from posefoundry.errors import PosefoundryError
from posefoundry.files import sha256_of_file
from posefoundry.machine import usable_cores
from posefoundry.skeleton import COCO_PERSON_CATEGORY

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Ingested:
    """What a source gave: the splits' annotations, what was set aside, and the source in the manifest's words."""

    splits: dict[str, CocoKeypoints]
    set_aside: list[SetAside]
    source: dict[str, Any]


def draw_synthetic(
    settings: SyntheticSource,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    processes: int | None = None,
    on_worker_start: Callable[[], None] | None = None,
) -> Ingested:
    """Draws people into `folder`/images/<split>; each image follows from seed, split and its number alone.

    Args:
        settings: How many images, how large, how crowded.
        seed: Another seed gives other images.
        folder: An existing folder.
        progress: Wraps an iterable, given a title and a count.
        processes: How many draw; None means one for each core. Without influence on the result.
        on_worker_start: What each drawing process calls first; it must be picklable.
    """
    counts = {"train": settings.train_images, "val": settings.val_images, "test": settings.test_images}
    splits = {}
    with _drawing_pool(processes or usable_cores(), on_worker_start) as draw_all:
        for split in SPLITS:
            draw = partial(draw_image, seed, split, size_px=settings.image_size_px, max_persons=settings.max_persons)
            images, annotations = [], []
            images_folder = folder / "images" / split
            images_folder.mkdir(parents=True)
            for drawn in progress(draw_all(draw, range(counts[split])), f"draw {split}", counts[split]):
                (images_folder / drawn.image["file_name"]).write_bytes(drawn.jpeg)
                images.append(drawn.image)
                annotations.extend(drawn.annotations)
            splits[split] = CocoKeypoints(images, annotations, [COCO_PERSON_CATEGORY])
    return Ingested(splits, [], {"kind": "synthetic", "seed": seed, **settings.model_dump()})


@contextmanager
def _drawing_pool(
    processes: int, on_worker_start: Callable[[], None] | None
) -> Iterator[Callable[..., Iterable[DrawnImage]]]:
    """Yields a `map` over so many processes. Only this process writes files: a killed one leaves no writer behind."""
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=(on_worker_start,)
    ) as pool:
        yield partial(pool.map, chunksize=16)


def _start_worker(on_worker_start: Callable[[], None] | None) -> None:
    if on_worker_start:
        on_worker_start()
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:  # it was killed while this process started: nobody wants the work
        os._exit(1)


def copy_coco(settings: CocoSource, *, seed: int, folder: Path, progress: Progress) -> Ingested:
    """Copies the whole images of a COCO folder, byte for byte, into `folder`/images/<split>.

    A source without a test annotation file gets a test split cut from train, by image. Which images go there hangs on
    seed and file name, so that a data set that grows keeps nearly all its images where they were. A fraction of 0
    leaves them all to train, and the test split empty.

    Raises:
        PosefoundryError: The folder or an annotation file is missing or not of COCO form, the splits' categories
            differ, or not one image of a split can be used.
    """
    if not settings.root.is_dir():
        raise PosefoundryError(
            f"ingest.coco.root: expected a folder in the layout of COCO 2017, found none at {settings.root}."
        )
    files = {split: settings.root / settings.annotations.replace("{split}", split) for split in SPLITS}
    given = [split for split in SPLITS if split != "test" or files[split].exists()]
    contents = {split: load_coco_keypoints(files[split]) for split in given}
    _require_same_categories(files, contents)
    splits: dict[str, CocoKeypoints] = {}
    set_aside: list[SetAside] = []
    for split in given:
        usable, faulty = set_faults_aside(contents[split], split)
        source_images = settings.root / settings.images.replace("{split}", split)
        faults = _copy_images(usable, source_images, folder / "images" / split, progress, split)
        usable, lost = without_images(usable, faults, split)
        set_aside += faulty + lost
        if not usable.images:
            raise PosefoundryError(_nothing_left(split, files[split], source_images, faulty + lost))
        splits[split] = replace(
            usable, images=[image | {"file_name": flat_name(image["file_name"])} for image in usable.images]
        )
    if "test" not in splits:
        splits["train"], splits["test"] = _cut_test(splits["train"], settings.test_fraction, seed, folder)
    source = {
        "kind": "coco",
        "root": str(settings.root),
        "annotations": {split: {"path": str(files[split]), "sha256": sha256_of_file(files[split])} for split in given},
        "test_cut": None if "test" in given else {"fraction": settings.test_fraction, "seed": seed},
    }
    return Ingested(splits, set_aside, source)


def _copy_images(
    content: CocoKeypoints, source: Path, target: Path, progress: Progress, split: str
) -> dict[int, Fault]:
    """Copies every whole image and returns the faults of the others by image id."""
    target.mkdir(parents=True)

    def copy(image: dict[str, Any]) -> Fault | None:
        whole = read_whole_image(source / image["file_name"], image["width"], image["height"])
        if isinstance(whole, Fault):
            return whole
        (target / flat_name(image["file_name"])).write_bytes(whole)
        return None

    with ThreadPoolExecutor() as pool:
        results = progress(pool.map(copy, content.images), f"copy {split}", len(content.images))
        return {image["id"]: fault for image, fault in zip(content.images, results, strict=True) if fault}


def _cut_test(train: CocoKeypoints, fraction: float, seed: int, folder: Path) -> tuple[CocoKeypoints, CocoKeypoints]:
    def rank(image: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}:{image['file_name']}".encode()).digest()

    n_test = max(1, round(fraction * len(train.images))) if fraction else 0
    if n_test >= len(train.images):
        raise PosefoundryError(
            f"ingest.coco.test_fraction: {fraction} of {len(train.images)} usable train images leaves none to train "
            "on. Lower it, add images, or bring a test annotation file."
        )
    test_images = sorted(train.images, key=rank)[:n_test]
    (folder / "images" / "test").mkdir()
    for image in test_images:
        (folder / "images" / "train" / image["file_name"]).rename(folder / "images" / "test" / image["file_name"])
    test_ids = {image["id"] for image in test_images}
    return only_images(train, {image["id"] for image in train.images} - test_ids), only_images(train, test_ids)


def _require_same_categories(files: dict[str, Path], contents: dict[str, CocoKeypoints]) -> None:
    def schema(content: CocoKeypoints) -> list[tuple]:
        return sorted((c["id"], c["name"], tuple(c["keypoints"])) for c in content.categories)

    for split, content in contents.items():
        if schema(content) != schema(contents["train"]):
            raise PosefoundryError(
                f"{files[split]}: expected the categories of {files['train']} with the same ids, names and keypoints, "
                f"got {[c['name'] for c in content.categories]}. Export both from the same project."
            )


def _nothing_left(split: str, annotations: Path, folder: Path, set_aside: list[SetAside]) -> str:
    images = [entry for entry in set_aside if entry.annotation is None]
    if not images:
        return f"{annotations}: expected images for the {split} split, got none."
    return (
        f"{annotations}: expected usable images for the {split} split below {folder}, but every one had to be set "
        f"aside; the first because {images[0].detail}."
    )
