"""What `data=` names: a dataset.yaml, one that ships with the product, or a COCO file; and its ground truth."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from posefoundry import datasets
from posefoundry.datasets.coco import load_coco_keypoints, set_faults_aside, write_coco_keypoints
from posefoundry.datasets.convert import CocoFile, convert_coco_files
from posefoundry.datasets.truth import coco_from_labels
from posefoundry.datasets.yolo import SPLITS, DatasetSpec, read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.ground_truth import AREA_RULES

DATASETS_VARIABLE = "POSEFOUNDRY_DATASETS"
# As a word of its own: not the "val" of "evaluation".
SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
CATALOG = Path(datasets.__file__).parent / "catalog"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The ground truth of a split, ready for the evaluator."""

    annotations: Path
    images: Path
    area_rule: str


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set, found and checked.

    Attributes:
        name: How a later session finds it again: an absolute path, or the name of a shipped file.
        spec: What its dataset.yaml says; None for a COCO file.
        coco: The COCO files it has, by split; they are the truth of their splits.
        named_split: The split that the named COCO file is of; None where its name tells none, or for a dataset.yaml.
    """

    name: str
    spec: DatasetSpec | None = None
    coco: dict[str, CocoFile] = field(default_factory=dict)
    named_split: str | None = None

    def truth(self, split: str, scratch: Path) -> Truth:
        """Returns a split's COCO file, or one made from its labels in `scratch`.

        Raises:
            PosefoundryError: There is no such split, or its files cannot be read.
        """
        if split in self.coco:
            file = self.coco[split]
            return Truth(annotations=file.annotations, images=file.images, area_rule=AREA_RULES["annotation"])
        if self.spec is None:
            raise PosefoundryError(f"{self.name}: expected a COCO file for the split {split!r} beside it, found none.")
        content = coco_from_labels(self.spec, split)
        path = scratch / f"{split}.json"
        write_coco_keypoints(path, content)
        return Truth(annotations=path, images=self.spec.splits[split], area_rule=AREA_RULES["box"])

    def for_training(self, scratch: Path) -> tuple[Path, Path]:
        """Returns a dataset.yaml with labels to learn from, and the COCO truth of its val split.

        What has to be made for it goes to `scratch`; images are linked, not copied.
        """
        truth = self.truth("val", scratch)
        content, _ = set_faults_aside(load_coco_keypoints(truth.annotations), "val")
        # Absolute names: whatever folder the trainer looks in, these are the images.
        named = [image | {"file_name": str((truth.images / image["file_name"]).absolute())} for image in content.images]
        annotations = scratch / "val.json"
        write_coco_keypoints(annotations, replace(content, images=named))
        if "train" in self.coco:
            convert_coco_files(self.coco, scratch / "yolo", images="symlink")
            return scratch / "yolo" / "dataset.yaml", annotations
        if self.spec is None:
            raise PosefoundryError(f"{self.name}: expected a COCO file for the split 'train' beside it, found none.")
        path = scratch / "dataset.yaml"
        path.write_text(_format_spec(self.spec), encoding="utf-8")
        return path, annotations


def open_data(data: str | Path) -> Data:
    """Finds a data set.

    A `.yaml` is looked for as a file, then among those that ship with the product (`shipped_names`), whose data lies in
    the folder that the environment's POSEFOUNDRY_DATASETS names, by default `datasets`. A `.json` is a COCO keypoint
    file; those of the other splits are found by their names.

    Raises:
        PosefoundryError: There is no such file, or its data is not there; the message says where to get it.
    """
    path = Path(data)
    if path.suffix == ".json":
        return Data(name=str(path.absolute()), coco=find_coco_files(path), named_split=_split_of(path))
    if path.suffix not in (".yaml", ".yml"):
        raise PosefoundryError(f"data: expected a dataset.yaml or a COCO .json file, got {str(data)!r}.")
    if path.is_file():
        return _from_spec(str(path.absolute()), read_dataset_yaml(path))
    if path.name == str(data) and path.name in shipped_names():
        return _from_spec(path.name, _read_shipped(path.name))
    raise PosefoundryError(
        f"data: expected a dataset.yaml at {path.absolute()}, found none, and none of this name ships with posefoundry "
        f"({', '.join(shipped_names())})."
    )


def shipped_names() -> list[str]:
    """Returns the names of the dataset.yaml files that ship with the product."""
    return sorted(path.name for path in CATALOG.glob("*.yaml"))


def find_coco_files(path: Path) -> dict[str, CocoFile]:
    """Finds the COCO files that belong together by name: `..._train2017.json` and `..._val2017.json`, or `val.json`.

    A file whose name tells no split counts as train and val alike.

    Raises:
        PosefoundryError: The file is missing, or its images are in none of the usual places.
    """
    if not path.is_file():
        raise PosefoundryError(f"data: expected a COCO file at {path.absolute()}, found none.")
    own = SPLIT_IN_NAME.search(path.stem)
    if own is None:
        file = CocoFile(annotations=path.absolute(), images=_images_of(path))
        return {"train": file, "val": file}
    siblings = {split: path.with_name(path.name[: own.start()] + split + path.name[own.end() :]) for split in SPLITS}
    return {
        split: CocoFile(annotations=sibling.absolute(), images=_images_of(sibling))
        for split, sibling in siblings.items()
        if sibling.is_file()
    }


def _split_of(path: Path) -> str | None:
    found = SPLIT_IN_NAME.search(path.stem)
    return found.group() if found else None


def _images_of(annotations: Path) -> Path:
    """Finds the folder of a COCO file's images by its first image."""
    images = load_coco_keypoints(annotations).images
    if not images:
        raise PosefoundryError(f"{annotations}: expected images, got none.")
    candidates = list(_image_folders(annotations.absolute()))
    for folder in candidates:
        if (folder / images[0]["file_name"]).is_file():
            return folder
    raise PosefoundryError(
        f"{annotations}: expected its images, such as {images[0]['file_name']}, in one of "
        f"{', '.join(map(str, candidates))}; found none there. Name both in a dataset.yaml (annotations: and val:)."
    )


def _image_folders(annotations: Path) -> Iterator[Path]:
    split = annotations.stem.rpartition("_")[2]  # person_keypoints_val2017 -> val2017
    for base in (annotations.parent.parent, annotations.parent):
        yield from (base / split, base / "images" / split, base / "images", base)


def _from_spec(name: str, spec: DatasetSpec) -> Data:
    coco = {}
    for split, annotations in spec.annotations.items():
        if not annotations.is_file():
            raise PosefoundryError(
                f"{name}: annotations.{split}: expected a COCO annotation file at {annotations}, found none. Put it "
                "there, or leave the entry out of a copy of this file to use labels/ instead."
            )
        coco[split] = CocoFile(annotations=annotations, images=spec.splits[split])
    return Data(name=name, spec=spec, coco=coco)


def _read_shipped(name: str) -> DatasetSpec:
    content = yaml.safe_load((CATALOG / name).read_text(encoding="utf-8"))
    home = Path(os.environ.get(DATASETS_VARIABLE) or "datasets").absolute()
    root = home / content["path"]
    if not root.is_dir():
        raise PosefoundryError(
            f"{name}: expected its data in {root}, found nothing there. posefoundry downloads nothing by itself; get "
            f"it from {content['source']}. Unpack it there, or set {DATASETS_VARIABLE} to the folder that holds "
            f"{content['path']}/."
        )
    return read_dataset_yaml(CATALOG / name, root=root)


def _format_spec(spec: DatasetSpec) -> str:
    """Writes a spec as a dataset.yaml that is right wherever it lies."""
    skeleton = spec.skeleton
    content = {
        "path": str(spec.root.absolute()),
        **{split: str(folder) for split, folder in spec.splits.items()},
        "kpt_shape": list(spec.kpt_shape),
        "flip_idx": list(skeleton.flip_indices),
        "names": dict(enumerate(spec.class_names)),
        "kpt_names": {index: list(skeleton.keypoint_names) for index in range(len(spec.class_names))},
        "skeleton": [list(edge) for edge in skeleton.edges],
        "sigmas": list(skeleton.sigmas),
        "category_ids": list(spec.category_ids),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
