"""The YOLO pose format: one text file an image, one line a person, and a dataset.yaml that explains them.

A line is `class cx cy w h` and then K keypoints `x y v` (or `x y` where `kpt_shape` is [K, 2]), all as fractions of the
image's width and height; v is 0 not labelled, 1 labelled but hidden, 2 visible.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import COCO_PERSON, Skeleton

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SPLITS = ("train", "val", "test")
REQUIRED_SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a dataset.yaml says.

    Attributes:
        root: Folder that holds the dataset, absolute.
        splits: Name of a split -> its images, absolute: a folder, or a text file that lists one image a line.
        class_names: Names by class index.
        category_ids: COCO category ids by class index; 1, 2, ... where the file does not state them.
        skeleton: The keypoint schema that all classes share.
        kpt_shape: K and the numbers a keypoint takes in a label line, 2 or 3.
        annotations: Name of a split -> its COCO annotation file, absolute, where the file states one.
    """

    root: Path
    splits: dict[str, Path]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    skeleton: Skeleton
    kpt_shape: tuple[int, int]
    annotations: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The persons of one image; coordinates are fractions of the image's width and height.

    Shape:
        class_ids: (N,) int64
        boxes_cxcywhn: (N, 4) float32
        keypoints_xyvn: (N, K, 3) float32, v is 0, 1 or 2
    """

    class_ids: np.ndarray
    boxes_cxcywhn: np.ndarray
    keypoints_xyvn: np.ndarray


def format_label_line(class_id: int, box_cxcywhn: Iterable[float], keypoints_xyvn: Iterable[Iterable[float]]) -> str:
    """Writes one person as a label line, without the line's end; 6 decimals are 0.001 px in an image of 1000 px.

    Args:
        class_id: Index of the class.
        box_cxcywhn: Centre, width and height as fractions of the image.
        keypoints_xyvn: K keypoints of (x, y, v), or (x, y), as fractions of the image.
    """
    fields = [str(class_id), *(_fraction(value) for value in box_cxcywhn)]
    for x, y, *visibility in keypoints_xyvn:
        fields += [_fraction(x), _fraction(y), *(str(int(v)) for v in visibility)]
    return " ".join(fields)


def _fraction(value: float) -> str:
    return f"{value:.6f}"


def read_labels(path: Path, kpt_shape: tuple[int, int], n_classes: int) -> Labels:
    """Reads the label file of one image.

    An empty file and, by the format's convention, a missing one both say that nobody is in the image. Where
    `kpt_shape` is [K, 2], a keypoint at (0, 0) counts as not labelled and any other as visible.

    Raises:
        PosefoundryError: A line has the wrong count of numbers, something else than finite numbers, an unknown class,
            a coordinate outside 0..1, a box without extent, or a visibility other than 0, 1, 2. The message names
            file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise PosefoundryError(f"{path}: expected a readable text file of labels, got: {error}.") from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rows.append(parse_label_line(line, kpt_shape, n_classes))
            except PosefoundryError as error:
                raise PosefoundryError(f"{path}, line {number}: {error}") from None
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 5 + kpt_shape[0] * kpt_shape[1])
    keypoints = table[:, 5:].reshape(len(rows), *kpt_shape)
    if kpt_shape[1] == 2:
        visibility = np.where((keypoints != 0).any(axis=2, keepdims=True), 2.0, 0.0)
        keypoints = np.concatenate([keypoints, visibility], axis=2)
    return Labels(
        class_ids=table[:, 0].astype(np.int64),
        boxes_cxcywhn=table[:, 1:5].astype(np.float32),
        keypoints_xyvn=keypoints.astype(np.float32),
    )


def parse_label_line(line: str, kpt_shape: tuple[int, int], n_classes: int) -> np.ndarray:
    """Reads one label line into its 5 + K*2 or 5 + K*3 numbers, as float64.

    Raises:
        PosefoundryError: See `read_labels`; the message leaves file and line to the caller.
    """
    n_keypoints, n_dims = kpt_shape
    fields = line.split()
    expected = 5 + n_keypoints * n_dims
    if len(fields) != expected:
        raise PosefoundryError(
            f"expected {expected} numbers (class, box, {n_keypoints} keypoints of {n_dims}), got {len(fields)}. "
            "Check kpt_shape in the dataset.yaml."
        )
    try:
        numbers = np.array(fields, dtype=np.float64)
    except ValueError:
        wrong = next(field for field in fields if not _is_number(field))
        raise PosefoundryError(f"expected numbers, got {wrong!r}.") from None
    if not np.isfinite(numbers).all():
        raise PosefoundryError(f"expected finite numbers, got {fields[int(np.argmin(np.isfinite(numbers)))]!r}.")
    if numbers[0] != int(numbers[0]) or not 0 <= numbers[0] < n_classes:
        raise PosefoundryError(f"expected a class in 0..{n_classes - 1}, got {fields[0]!r}.")
    keypoints = numbers[5:].reshape(n_keypoints, n_dims)
    coordinates = np.concatenate([numbers[1:5], keypoints[:, :2].ravel()])
    outside = (coordinates < 0) | (coordinates > 1)
    if outside.any():
        raise PosefoundryError(
            f"expected coordinates as fractions of the image, 0..1, got {coordinates[outside][0]:g}. Labels in pixels "
            "must be divided by the image's width and height."
        )
    if not (numbers[3:5] > 0).all():
        raise PosefoundryError(f"expected a box of positive width and height, got {fields[3]} x {fields[4]}.")
    if n_dims == 3 and not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        wrong_visibility = keypoints[~np.isin(keypoints[:, 2], (0, 1, 2)), 2][0]
        raise PosefoundryError(f"expected a visibility of 0, 1 or 2, got {wrong_visibility:g}.")
    return numbers


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def label_path_of(image_path: Path) -> Path:
    """Returns where the labels of an image are: its path with the last folder `images` turned into `labels`.

    An image under no such folder has its labels beside it.
    """
    *folders, _ = image_path.parts
    for index in reversed(range(len(folders))):
        if folders[index] == "images":
            folders[index] = "labels"
            break
    return Path(*folders, f"{image_path.stem}.txt")


def image_files(split: Path) -> list[Path]:
    """Lists the images of a split, sorted.

    Args:
        split: A folder, searched with its subfolders, or a text file with one image path a line, relative to that file.

    Raises:
        PosefoundryError: `split` does not exist, or is neither a folder nor a readable text file.
    """
    if split.is_dir():
        return sorted(path for path in split.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    try:
        lines = split.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PosefoundryError(
            f"{split}: expected a folder of images or a text file that lists them: {error}."
        ) from None
    return sorted(split.parent / line.strip() for line in lines if line.strip())


def format_dataset_yaml(
    splits: Iterable[str], class_names: Sequence[str], category_ids: Sequence[int], skeleton: Skeleton
) -> str:
    """Writes the dataset.yaml of a folder with `images/<split>` and `labels/<split>`; `read_dataset_yaml` reads it.

    `category_ids`, `skeleton` (edges, counted from 0) and `sigmas` are additions to the published form, which other
    readers of the format pass over.
    """
    content = {
        "path": ".",
        **{split: f"images/{split}" for split in splits},
        "kpt_shape": [skeleton.n_keypoints, 3],
        "flip_idx": list(skeleton.flip_indices),
        "names": dict(enumerate(class_names)),
        "kpt_names": {index: list(skeleton.keypoint_names) for index in range(len(class_names))},
        "skeleton": [list(edge) for edge in skeleton.edges],
        "sigmas": list(skeleton.sigmas),
        "category_ids": list(category_ids),
    }
    return yaml.dump(
        content, Dumper=_PlainDumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )


class _PlainDumper(yaml.SafeDumper):
    """Repeats equal lists instead of writing anchors, which some readers of the format do not know."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_dataset_yaml(path: Path, *, root: Path | None = None) -> DatasetSpec:
    """Reads a dataset.yaml, ours or anybody's in the published form; `root` overrides its `path`.

    `path` may be missing (then the file's own folder) or relative (to the file's own folder). `names` and `kpt_names`
    may be lists or tables by class index. Without `kpt_names`, 17 keypoints with COCO's `flip_idx` are COCO's, others
    are called keypoint_0, keypoint_1, ... Sigmas that are not stated are COCO's for COCO's keypoints, otherwise 1/K.
    `annotations`, an addition to the published form, names a split's COCO annotation file, relative to `path`.

    Raises:
        PosefoundryError: The file is missing or not YAML, or a key is missing or wrong; the message names the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PosefoundryError(f"{path}: expected a dataset.yaml here, found no file.") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise PosefoundryError(f"{path}: expected YAML, got: {error}") from None
    if not isinstance(content, dict):
        raise PosefoundryError(f"{path}: expected keys such as train, val and kpt_shape, got {type(content).__name__}.")
    try:
        root = root or _root(content, path)
        class_names = _class_names(content)
        kpt_shape = _kpt_shape(content)
        return DatasetSpec(
            root=root,
            splits=_splits(content, root),
            class_names=class_names,
            category_ids=_category_ids(content, len(class_names)),
            skeleton=_skeleton(content, kpt_shape[0]),
            kpt_shape=kpt_shape,
            annotations=_annotations(content, root),
        )
    except PosefoundryError as error:
        raise PosefoundryError(f"{path}: {error}") from None


def _root(content: dict[str, Any], path: Path) -> Path:
    stated = content.get("path") or "."
    if not isinstance(stated, str):
        raise PosefoundryError(f"path: expected a folder, got {stated!r}.")
    root = (path.parent / stated).absolute()
    if not root.is_dir():
        raise PosefoundryError(
            f"path: expected a folder, found none at {root}. A relative path counts from the folder of this file."
        )
    return root


def _splits(content: dict[str, Any], root: Path) -> dict[str, Path]:
    splits = {}
    for name in SPLITS:
        stated = content.get(name)
        if stated is None and name not in REQUIRED_SPLITS:
            continue
        if not isinstance(stated, str):
            raise PosefoundryError(f"{name}: expected one folder of images or one list file, got {stated!r}.")
        splits[name] = root / stated
        if not splits[name].exists():
            raise PosefoundryError(f"{name}: expected images, found nothing at {splits[name]}.")
    return splits


def _annotations(content: dict[str, Any], root: Path) -> dict[str, Path]:
    stated = content.get("annotations") or {}
    if not isinstance(stated, dict) or not all(s in SPLITS and isinstance(name, str) for s, name in stated.items()):
        raise PosefoundryError(f"annotations: expected a COCO annotation file for each split, got {stated!r}.")
    return {split: root / name for split, name in stated.items()}


def _class_names(content: dict[str, Any]) -> tuple[str, ...]:
    names = _by_index("names", content.get("names"))
    if not names or not all(isinstance(name, str) for name in names):
        raise PosefoundryError(f"names: expected the name of each class, got {content.get('names')!r}.")
    if content.get("nc", len(names)) != len(names):
        raise PosefoundryError(f"nc: expected {len(names)}, as many as there are names, got {content['nc']!r}.")
    return tuple(names)


def _by_index(key: str, stated: Any) -> list[Any]:
    """Turns a table by class index into a list; a list stays as it is."""
    if isinstance(stated, dict):
        if set(stated) != set(range(len(stated))):
            raise PosefoundryError(f"{key}: expected the class indices 0, 1, ... without gaps, got {list(stated)}.")
        return [stated[index] for index in range(len(stated))]
    return stated if isinstance(stated, list) else []


def _kpt_shape(content: dict[str, Any]) -> tuple[int, int]:
    shape = content.get("kpt_shape")
    if not _is_int_list(shape) or len(shape) != 2 or shape[0] < 1 or shape[1] not in (2, 3):
        raise PosefoundryError(f"kpt_shape: expected [number of keypoints, 2 or 3], got {shape!r}.")
    return shape[0], shape[1]


def _category_ids(content: dict[str, Any], n_classes: int) -> tuple[int, ...]:
    ids = content.get("category_ids", list(range(1, n_classes + 1)))
    if not _is_int_list(ids) or len(set(ids)) != n_classes or len(ids) != n_classes:
        raise PosefoundryError(f"category_ids: expected {n_classes} distinct integers, one a class, got {ids!r}.")
    return tuple(ids)


def _skeleton(content: dict[str, Any], n_keypoints: int) -> Skeleton:
    flip_idx = content.get("flip_idx")
    names = _keypoint_names(content, n_keypoints)
    if flip_idx is not None and (not _is_int_list(flip_idx) or sorted(flip_idx) != list(range(n_keypoints))):
        raise PosefoundryError(f"flip_idx: expected each of 0..{n_keypoints - 1} once, got {flip_idx!r}.")
    if names is None and flip_idx is None:
        raise PosefoundryError(
            "flip_idx: expected the keypoint that each keypoint becomes in a mirrored image, got nothing. Add it "
            f"({list(range(n_keypoints))} where left and right do not matter), or add kpt_names."
        )
    is_coco = flip_idx == list(COCO_PERSON.flip_indices) if names is None else names == list(COCO_PERSON.keypoint_names)
    generic_names = [f"keypoint_{index}" for index in range(n_keypoints)]
    base = COCO_PERSON if is_coco else Skeleton.from_names(names or generic_names)
    edges = _edges(content, n_keypoints, base.edges)
    sigmas = _sigmas(content, n_keypoints, base.sigmas)
    flip_indices = base.flip_indices if flip_idx is None else tuple(flip_idx)
    try:
        return Skeleton(keypoint_names=base.keypoint_names, edges=edges, flip_indices=flip_indices, sigmas=sigmas)
    except PosefoundryError as error:
        raise PosefoundryError(f"flip_idx: {error}") from None


def _keypoint_names(content: dict[str, Any], n_keypoints: int) -> list[str] | None:
    stated = content.get("kpt_names")
    if stated is None:
        return None
    names = stated
    if isinstance(stated, dict):
        names, *others = _by_index("kpt_names", stated) or [None]
        if any(other != names for other in others):
            raise PosefoundryError("kpt_names: expected the same keypoints for each class, got different ones.")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) != n_keypoints
        or len(names) != n_keypoints
    ):
        raise PosefoundryError(f"kpt_names: expected {n_keypoints} distinct names, as kpt_shape says, got {names!r}.")
    return names


def _edges(
    content: dict[str, Any], n_keypoints: int, default: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    stated = content.get("skeleton")
    if stated is None:
        return default
    if not isinstance(stated, list) or not all(
        _is_int_list(edge) and len(edge) == 2 and all(0 <= end < n_keypoints for end in edge) for edge in stated
    ):
        raise PosefoundryError(f"skeleton: expected pairs of keypoints in 0..{n_keypoints - 1}, got {stated!r}.")
    return tuple((a, b) for a, b in stated)


def _sigmas(content: dict[str, Any], n_keypoints: int, default: tuple[float, ...]) -> tuple[float, ...]:
    stated = content.get("sigmas")
    if stated is None:
        return default
    if (
        not isinstance(stated, list)
        or len(stated) != n_keypoints
        or not all(type(sigma) in (int, float) and 0 < sigma < float("inf") for sigma in stated)
    ):
        raise PosefoundryError(f"sigmas: expected {n_keypoints} positive numbers, got {stated!r}.")
    return tuple(float(sigma) for sigma in stated)


def _is_int_list(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int for item in value)
