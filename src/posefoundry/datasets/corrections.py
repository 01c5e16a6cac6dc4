"""Corrected annotations that come back from an annotation tool, laid over what a source gave.

A correction says everything about its image: who is in it, and where. It replaces the image's annotations, or adds the
image if it is new. The source itself is never touched.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posefoundry.datasets.coco import (
    CocoKeypoints,
    Fault,
    flat_name,
    parse_coco_keypoints,
    set_faults_aside,
)
from posefoundry.datasets.completing import Completer
from posefoundry.datasets.image_files import read_whole_image
from posefoundry.datasets.label_studio import is_label_studio, read_export
from posefoundry.datasets.pairing import mutual_nearest
from posefoundry.datasets.yolo import IMAGE_SUFFIXES
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, sha256_of_file

# What `posefoundry hard-examples` writes beside the annotations; a round may be that whole folder.
NOT_CORRECTIONS = frozenset({"ground_truth.json", "reasons.json", "cvat_labels.json"})
SAME_PERSON_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class CorrectionFile:
    """A file of a round, in COCO form, its categories those of the source."""

    path: Path
    round: Path
    form: str
    content: CocoKeypoints


@dataclass
class Corrected:
    """What corrections did.

    Attributes:
        splits: The splits' annotations with them.
        file_names: By split, the images that were corrected or added.
        origin: What the manifest says of it.
    """

    splits: dict[str, CocoKeypoints]
    file_names: dict[str, set[str]]
    origin: dict[str, Any]


@dataclass
class _Library:
    """The images that are there, to be found by name or by content."""

    splits: dict[str, CocoKeypoints]
    folder: Path
    by_name: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    by_sha256: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split, content in self.splits.items():
            for image in content.images:
                self.by_name[image["file_name"]].append((split, image))

    def sha256(self, split: str, image: dict[str, Any]) -> str:
        return sha256_of_file(self.folder / "images" / split / image["file_name"])

    def of_content(self, digest: str) -> list[tuple[str, dict[str, Any]]]:
        if not self.by_sha256:
            self.by_sha256 = defaultdict(list)
            for places in self.by_name.values():
                for split, image in places:
                    self.by_sha256[self.sha256(split, image)].append((split, image))
        return self.by_sha256.get(digest, [])


def apply_corrections(
    splits: dict[str, CocoKeypoints], corrections: Path, folder: Path, *, new_images_to: str
) -> Corrected:
    """Lays all corrections of a folder over the splits.

    Every `.json` file below `corrections` counts: COCO keypoints, or Label Studio's JSON export. A folder in it is a
    round; of several rounds the last by name decides about an image. An image is found by its file name, where a
    picture lies in the round also by its content; an image that is not found is new and goes, with its picture, to
    the split `new_images_to`. A corrected image stays in its split.

    Crowds and persons without keypoints, which keypoint tools cannot show, stay where the correction puts nobody.
    Areas and boxes that tools derive from points are completed by a rule; see `Completer`.

    Args:
        splits: By name, `file_name`s bare.
        corrections: The folder; never changed.
        folder: Raw data folder with `images/<split>/`; new pictures are copied there.
        new_images_to: A split.

    Raises:
        PosefoundryError: A file is no correction, or of other keypoints; an image cannot be told or is not there;
            two files of a round correct the same image.
    """
    if not corrections.is_dir():
        raise PosefoundryError(f"ingest.corrections: expected a folder, found none at {corrections}.")
    categories = splits["train"].categories
    library = _Library(splits, folder)
    chosen: dict[tuple[str, str], tuple[CorrectionFile, list[dict[str, Any]]]] = {}
    new_images: dict[str, dict[str, Any]] = {}
    files = list(_read_files(corrections, categories))
    for file in files:
        pictures = _pictures(file.round, corrections)
        for image, split, known in _placed(file, pictures, library, new_images_to, new_images):
            key = (split, known["file_name"])
            if key in chosen and chosen[key][0].round == file.round:
                raise PosefoundryError(
                    f"{file.path}: corrects {known['file_name']!r}, and so does {chosen[key][0].path} of the same "
                    "round. Keep one, or put the later one into a folder of its own that sorts after it."
                )
            chosen[key] = (file, [a for a in file.content.annotations if a["image_id"] == image["id"]])
    completer = Completer(splits)
    corrected = {split: _with_corrections(split, splits[split], chosen, new_images, completer) for split in splits}
    _number_anew(corrected, splits)
    file_names = {split: {name for of_split, name in chosen if of_split == split} for split in splits}
    return Corrected(corrected, file_names, _origin(files, corrections, chosen, new_images, completer))


def _read_files(corrections: Path, categories: list[dict[str, Any]]) -> Iterator[CorrectionFile]:
    unread: dict[Path, Path] = {}
    rounds = set()
    for path in sorted(corrections.rglob("*.json")):
        parts = path.relative_to(corrections).parts
        round_folder = corrections / parts[0] if len(parts) > 1 else corrections
        if path.name in NOT_CORRECTIONS:
            unread[round_folder] = path
            continue
        rounds.add(round_folder)
        content = read_json(path)
        if is_label_studio(content):
            coco, form = read_export(path, content, categories), "label_studio"
        elif isinstance(content, dict) and "annotations" in content:
            coco, form = _in_terms_of(content, categories, path), "coco"
        else:
            raise PosefoundryError(
                f"{path}: expected COCO keypoints or Label Studio's JSON export, got something else. Only corrections "
                f"belong into {corrections}."
            )
        yield CorrectionFile(path=path, round=round_folder, form=form, content=coco)
    for round_folder in sorted(unread.keys() - rounds):
        raise PosefoundryError(
            f"{round_folder}: expected corrections, found {unread[round_folder].name} alone, which `posefoundry "
            "hard-examples` writes and nobody corrects. Save what you corrected under another name."
        )


def _in_terms_of(content: dict[str, Any], categories: list[dict[str, Any]], path: Path) -> CocoKeypoints:
    """Brings a COCO file to the ids and the order of keypoints of the source; tools number and sort as they like."""
    own = {category["name"]: category for category in categories}
    stated = content.get("categories")
    if isinstance(stated, list):  # a tool may list labels that no person has, such as the keypoints themselves
        used = {a.get("category_id") for a in content.get("annotations") or [] if isinstance(a, dict)}
        stated = [c for c in stated if isinstance(c, dict) and (c.get("name") in own or c.get("id") in used)]
    parsed = parse_coco_keypoints(content | {"categories": stated}, path)
    ids: dict[int, int] = {}
    for category in parsed.categories:
        if category["name"] not in own:
            raise PosefoundryError(f"{path}: expected the categories {', '.join(own)}, got {category['name']!r}.")
        ids[category["id"]] = own[category["name"]]["id"]
    names, theirs = categories[0]["keypoints"], parsed.categories[0]["keypoints"]
    if sorted(names) != sorted(theirs):
        missing = sorted(set(names) ^ set(theirs))
        raise PosefoundryError(
            f"{path}: expected the keypoints {', '.join(names)}, got {', '.join(theirs)}; they differ in "
            f"{', '.join(missing) or 'number'}."
        )
    order = [theirs.index(name) for name in names]

    def translated(annotation: dict[str, Any]) -> dict[str, Any]:
        keypoints = annotation.get("keypoints")
        if isinstance(keypoints, list) and len(keypoints) == 3 * len(order):
            keypoints = [value for place in order for value in keypoints[3 * place : 3 * place + 3]]
        category_id = ids.get(annotation.get("category_id"))  # type: ignore[arg-type]
        return annotation | {"category_id": category_id, "keypoints": keypoints}

    annotations = [translated(annotation) for annotation in parsed.annotations]
    return replace(parsed, annotations=annotations, categories=categories)


def _pictures(round_folder: Path, corrections: Path) -> dict[str, list[Path]]:
    """Returns the pictures of a round by name: those below its folder, or, outside any round, those on the surface."""
    below = round_folder.glob("*") if round_folder == corrections else round_folder.rglob("*")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(below):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            by_name[path.name].append(path)
    return by_name


def _placed(
    file: CorrectionFile,
    pictures: dict[str, list[Path]],
    library: _Library,
    new_images_to: str,
    new_images: dict[str, dict[str, Any]],
) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Finds the split and the known record of each image of a file; new ones are put into `new_images`."""
    placed = []
    for image in file.content.images:
        where = f"{file.path}: image {image['file_name']!r}"
        names = [flat_name(image["file_name"]), Path(image["file_name"]).name]
        candidates = next((library.by_name[name] for name in names if name in library.by_name), [])
        found = {sha256_of_file(path): path for path in pictures.get(names[-1], []) + pictures.get(names[0], [])}
        if len(found) > 1:
            raise PosefoundryError(f"{where}: expected one picture of that name in {file.round}, got several.")
        if found:
            ((digest, picture),) = found.items()
            same = [place for place in candidates if library.sha256(*place) == digest]
            if candidates and not same:
                raise PosefoundryError(
                    f"{where}: {picture} is another picture than the one of that name in the data. Give a new image a "
                    "name of its own; of a known one, leave the picture out if the tool has changed it."
                )
            candidates = same or library.of_content(digest)
            if not candidates and digest in new_images:
                candidates = [(new_images_to, new_images[digest]["record"])]
            if not candidates:
                record = _new_image(image, names[0], picture, library, new_images_to, new_images, digest)
                candidates = [(new_images_to, record)]
        if not candidates:
            raise PosefoundryError(
                f"{where}: not in the data, and no picture of that name is in {file.round}. A new image needs its "
                "picture."
            )
        if len(candidates) > 1:
            raise PosefoundryError(
                f"{where}: stands for several images, in {' and '.join(split for split, _ in candidates)}. Put its "
                f"picture into {file.round}, so that it can be told which."
            )
        split, known = candidates[0]
        stated = {side: image.get(side, known[side]) for side in ("width", "height")}
        if stated != {side: known[side] for side in stated}:
            raise PosefoundryError(
                f"{where}: expected {known['width']}x{known['height']} px, as the image has, got annotations on "
                f"{stated['width']}x{stated['height']} px. Annotate the picture at its own size."
            )
        image.update(stated)
        placed.append((image, split, known))
    _require_faultless(file)
    return placed


def _new_image(
    image: dict[str, Any],
    name: str,
    picture: Path,
    library: _Library,
    split: str,
    new_images: dict[str, dict[str, Any]],
    digest: str,
) -> dict[str, Any]:
    if any(entry["record"]["file_name"] == name for entry in new_images.values()):
        raise PosefoundryError(f"{picture}: expected a name of its own, got one that another new image has.")
    width, height = (image.get(side) for side in ("width", "height"))
    if type(width) is not int or type(height) is not int:
        raise PosefoundryError(f"{picture}: expected the width and height of a new image, got {width!r}, {height!r}.")
    whole = read_whole_image(picture, width, height)
    if isinstance(whole, Fault):
        raise PosefoundryError(f"{whole.detail}. A new image must be whole.")
    (library.folder / "images" / split / name).write_bytes(whole)
    ids = [known["id"] for content in library.splits.values() for known in content.images]
    record = {"id": max(ids) + 1 + len(new_images), "file_name": name, "width": width, "height": height}
    new_images[digest] = {"record": record, "split": split}
    return record


def _require_faultless(file: CorrectionFile) -> None:
    """Refuses what ingest would set aside: the work of a person must not get lost in a list."""
    completed = [{"area": 0.0} | annotation for annotation in file.content.annotations]
    _, aside = set_faults_aside(replace(file.content, annotations=completed), "")
    if aside:
        record = aside[0].annotation or aside[0].image or {}
        raise PosefoundryError(
            f"{file.path}: expected corrections without faults, got {len(aside)}; the first has the id "
            f"{record.get('id')}: {aside[0].detail}."
        )


def _with_corrections(
    split: str,
    content: CocoKeypoints,
    chosen: dict[tuple[str, str], tuple[CorrectionFile, list[dict[str, Any]]]],
    new_images: dict[str, dict[str, Any]],
    completer: Completer,
) -> CocoKeypoints:
    added = [entry["record"] for entry in new_images.values() if entry["split"] == split]
    images = content.images + added
    before = content.annotations_of_image()
    replaced: dict[int, list[dict[str, Any]]] = {}
    for image in images:
        if (split, image["file_name"]) in chosen:
            _, annotations = chosen[split, image["file_name"]]
            old = before.get(image["id"], [])
            new = [completer.completed(annotation, image, old) for annotation in annotations]
            replaced[image["id"]] = _not_judged(old, new) + [entry | {"image_id": image["id"]} for entry in new]
    kept = [annotation for annotation in content.annotations if annotation["image_id"] not in replaced]
    return replace(content, images=images, annotations=kept + [a for of_image in replaced.values() for a in of_image])


def _not_judged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the crowds and persons without keypoints that stay: no corrected person lies where they are."""
    regions = [a for a in old if a.get("iscrowd") or not a.get("num_keypoints")]
    pairs = mutual_nearest([a["bbox"] for a in regions], [b["bbox"] for b in new], min_iou=SAME_PERSON_IOU)
    taken = {index for index, _ in pairs}
    return [region for index, region in enumerate(regions) if index not in taken]


def _number_anew(corrected: dict[str, CocoKeypoints], splits: dict[str, CocoKeypoints]) -> None:
    """Gives new annotations ids that no annotation of the source has, in the order of splits and images."""
    known = {id(a) for content in splits.values() for a in content.annotations}
    number = max((a["id"] for content in splits.values() for a in content.annotations), default=0)
    for content in corrected.values():
        for index, annotation in enumerate(content.annotations):
            if id(annotation) not in known:
                number += 1
                content.annotations[index] = annotation | {"id": number}


def _origin(
    files: list[CorrectionFile],
    corrections: Path,
    chosen: dict[tuple[str, str], tuple[CorrectionFile, list[dict[str, Any]]]],
    new_images: dict[str, dict[str, Any]],
    completer: Completer,
) -> dict[str, Any]:
    added = {(entry["split"], entry["record"]["file_name"]) for entry in new_images.values()}
    images: dict[Path, list[dict[str, str]]] = defaultdict(list)
    for (split, name), (file, _) in sorted(chosen.items(), key=lambda item: item[0]):
        images[file.path].append(
            {"split": split, "file_name": name, "change": "added" if (split, name) in added else "corrected"}
        )
    return {
        "files": [
            {
                "path": file.path.relative_to(corrections).as_posix(),
                "sha256": sha256_of_file(file.path),
                "form": file.form,
                "images": images[file.path],
                "superseded": len(file.content.images) - len(images[file.path]),
            }
            for file in files
        ],
        "areas": dict(sorted(Counter(completer.areas).items())),
        "boxes": dict(sorted(Counter(completer.boxes).items())),
        "area_of_box": round(completer.area_of_box, 4),
    }
