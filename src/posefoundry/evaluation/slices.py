"""The parts of a test set that a model may be good or bad at, each judged by the rules of the whole.

A slice is named `group=value`, or several of them joined by `&`:

- `keypoint=left_wrist`, `visibility=visible`, `visibility=occluded`: as if no other keypoints were labelled. Persons
  without any of these are ignored, as COCO ignores persons without keypoints.
- `size=small`, `size=medium`, `size=large`: COCO's area ranges, below 32^2, 32^2 to 96^2 and above 96^2 px^2.
- `truncation=truncated`, `truncation=whole`: whether the person's box reaches the border of the image.
- `persons=1`, `persons=2-3`, `persons=4+`: images with so many persons to find.
- `class=person`: a class of the model.
- `site=harbour`: a tag of the images, from the user's own table.

Of size and truncation as in COCO: a person outside the slice is ignored, and so is a detection that finds nobody and
lies outside itself.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from posefoundry.datasets.tags import CORRECTED
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.fast_oks import THRESHOLDS, Candidates, KeypointSimilarity, SliceMatches
from posefoundry.evaluation.greedy import Task, match
from posefoundry.evaluation.ground_truth import Detections, GroundTruth

ALL = "all"
# pycocotools: Params.areaRng; both ends belong to the range.
WHOLE_RANGE = (0.0, 1e5**2)
AREA_RANGES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
PERSONS_RANGES = {"1": (1, 1), "2-3": (2, 3), "4+": (4, np.inf)}

Slices = dict[str, tuple[SliceMatches, ...]]


@dataclass(frozen=True)
class Part:
    """One `group=value`: whom and what it counts; None stands for all.

    Attributes:
        keypoints: (N, K) labelled keypoints.
        persons: (N,) persons.
        detections: (M,) detections, of all that were given.
        images: (I,) images.
        category: Place of the class.
    """

    keypoints: np.ndarray | None = None
    persons: np.ndarray | None = None
    detections: np.ndarray | None = None
    images: np.ndarray | None = None
    category: int | None = None


@dataclass(frozen=True)
class Population:
    """Who and what a slice counts.

    Attributes:
        keypoints: (N, K) labelled keypoints that count.
        persons: (N,) persons to find.
        images: (I,) images.
    """

    keypoints: np.ndarray
    persons: np.ndarray
    images: np.ndarray


class Slicer:
    """The slices of one test set and one model's detections on it.

    Args:
        truth: The annotations.
        detections: The detections.
        keypoint_names: K names.
        class_names: C names, in the order of category ids.
        tags: For each tag its value in each of the I images; None where an image has none.
    """

    def __init__(
        self,
        truth: GroundTruth,
        detections: Detections,
        keypoint_names: Sequence[str],
        class_names: Sequence[str],
        tags: Mapping[str, Sequence[str | None]],
    ) -> None:
        self.truth = truth
        low, high = WHOLE_RANGE
        self._possible = (detections.areas >= low) & (detections.areas <= high)
        self._labelled = truth.visibility > 0
        self._similarity: KeypointSimilarity | None = None
        self._matched: Slices = {}
        self.parts = {
            ALL: Part(),
            **_sizes(truth, detections),
            **_keypoints(truth, keypoint_names),
            **_truncation(truth, detections),
            **_persons(truth),
            **{_name("class", name): Part(category=c) for c, name in enumerate(class_names)},
        }
        groups = {name.split("=")[0] for name in self.parts}
        if taken := sorted(groups & set(tags)):
            raise PosefoundryError(
                f"Tags: expected other names than those of the evaluation's own slices, got {taken[0]!r}. Rename it."
            )
        self.parts |= _tags(tags)
        self._may_be_empty = {*tags, CORRECTED}

    def names(self, crossed: Iterable[str] = ()) -> list[str]:
        """Returns the names of all slices, and of crossed ones.

        Args:
            crossed: Slices such as `keypoint=left_wrist&size=medium`, or groups such as `keypoint&size`, which stand
                for all their pairs; a tag that no image has, `corrected` always among them, for none.

        Raises:
            PosefoundryError: There is no such slice.
        """
        names = dict.fromkeys(self.parts)
        for name in crossed:
            choices = [self._values(part, name) for part in name.split("&")]
            names |= dict.fromkeys("&".join(parts) for parts in product(*choices))
        return list(names)

    def population(self, name: str) -> Population:
        """Returns whom a slice counts."""
        truth, parts = self.truth, [self.parts[part] for part in name.split("&")]
        keypoints = _all_of([self._labelled, *(part.keypoints for part in parts)])
        persons = _all_of([~truth.is_ignored, *(part.persons for part in parts)])
        if any(part.keypoints is not None for part in parts):
            persons = persons & keypoints.any(axis=1)
        low, high = WHOLE_RANGE
        persons = persons & (truth.areas >= low) & (truth.areas <= high)
        images = _all_of([np.ones(len(truth.image_ids), bool), *(part.images for part in parts)])
        for part in parts:
            if part.category is not None:
                persons = persons & (truth.category == part.category)
        return Population(keypoints, persons, images)

    def matches(self, found: Candidates, similarity: KeypointSimilarity, names: Sequence[str]) -> Slices:
        """Returns what average precision needs of each slice: one entry a class."""
        if similarity is not self._similarity:
            self._similarity, self._matched = similarity, {}
        # Slices that differ in their images alone are parts of one matching, and each is matched once.
        keys = {name: self._matched_as(name) for name in names}
        tasks, populations, of_keypoints = {}, {}, {}
        for key in dict.fromkeys(keys.values()):
            if key in self._matched:
                continue
            populations[key] = population = self.population(key)
            parts = [self.parts[part] for part in key.split("&")]
            chosen = "&".join(n for n in key.split("&") if self.parts[n].keypoints is not None)
            if chosen not in of_keypoints:
                of_keypoints[chosen] = similarity.oks(population.keypoints)
            outside = ~_all_of([self._possible, *(part.detections for part in parts)])[found.source]
            tasks[key] = Task(of_keypoints[chosen], ~population.persons, outside if outside.any() else None)
        outcomes = match(similarity.pairs, list(tasks.values()), THRESHOLDS) if tasks else []
        for key, outcome in zip(tasks, outcomes, strict=True):
            self._matched[key] = split_by_class(self.truth, found, populations[key].persons, *outcome)
        return {name: self._of_images(self._matched[keys[name]], name) for name in names}

    def _matched_as(self, name: str) -> str:
        kept = [n for n in name.split("&") if self.parts[n].images is None and self.parts[n].category is None]
        return "&".join(kept) or ALL

    def _of_images(self, whole: tuple[SliceMatches, ...], name: str) -> tuple[SliceMatches, ...]:
        parts = [self.parts[part] for part in name.split("&")]
        categories = {part.category for part in parts} - {None}
        images = _all_of([None, *(part.images for part in parts)])
        kept = tuple(m for c, m in enumerate(whole) if not categories or categories == {c})
        return kept if images is None else tuple(m.of_images(images) for m in kept)

    def _values(self, part: str, name: str) -> list[str]:
        values = [part] if part in self.parts else [n for n in self.parts if n.startswith(f"{part}=")]
        if not values and part not in self._may_be_empty:
            groups = dict.fromkeys(n.split("=")[0] for n in self.parts if n != ALL)
            raise PosefoundryError(
                f"Slice {name!r}: expected parts such as size=medium, or one of the groups {', '.join(groups)}, "
                f"joined by '&'; got {part!r}."
            )
        return values


def read_tags(path: Path, file_names: Sequence[str]) -> dict[str, list[str | None]]:
    """Reads tags of images from a CSV: a column `file_name`, each other column a tag. Cells may be empty.

    Args:
        path: The file.
        file_names: The I images.

    Returns:
        For each tag its value in each image; None where an image has none.

    Raises:
        PosefoundryError: It is missing or no CSV in UTF-8, it has no column `file_name`, names an image twice or one
            that is not there.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PosefoundryError(f"Tags: expected a CSV file in UTF-8, got {path}: {reason}.") from None
    rows = list(csv.DictReader(io.StringIO(content)))
    columns = list(rows[0]) if rows else content.splitlines()[0].split(",") if content.strip() else []
    if "file_name" not in columns or None in columns:
        raise PosefoundryError(f"{path}: expected a CSV with a column file_name and a column a tag, got {columns}.")
    tags_of: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, 2):
        name = row.pop("file_name")
        if name in tags_of:
            raise PosefoundryError(f"{path}: line {line}: expected each image once, got {name!r} again.")
        tags_of[name] = row
    if strange := sorted(set(tags_of) - set(file_names)):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise PosefoundryError(f"{path}: expected images of the annotation file, got {strange[0]!r}{more}.")
    tags = [column for column in columns if column != "file_name"]
    return {tag: [(tags_of.get(name, {}).get(tag) or "").strip() or None for name in file_names] for tag in tags}


def split_by_class(
    truth: GroundTruth, found: Candidates, persons: np.ndarray, right: np.ndarray, ignored: np.ndarray
) -> tuple[SliceMatches, ...]:
    """Puts the outcome of one matching, (D,) bits, and the (N,) persons to find into one `SliceMatches` a class."""
    n_categories = len(truth.category_ids)
    # A slice where an index would do: with one class nothing need be copied.
    columns: list[Any] = [slice(None)]
    if n_categories != 1:
        columns = [np.flatnonzero(found.category == c) for c in range(n_categories)]
    return tuple(
        SliceMatches.of_bits(
            image_index=found.image[chosen],
            scores=found.scores[chosen],
            right_bits=right[chosen],
            ignored_bits=ignored[chosen],
            positives_of_image=np.bincount(
                truth.image[persons & (truth.category == c)], minlength=len(truth.image_ids)
            ),
        )
        for c, chosen in enumerate(columns)
    )


def _sizes(truth: GroundTruth, detections: Detections) -> dict[str, Part]:
    return {
        f"size={name}": Part(
            persons=(truth.areas >= low) & (truth.areas <= high),
            detections=(detections.areas >= low) & (detections.areas <= high),
        )
        for name, (low, high) in AREA_RANGES.items()
    }


def _keypoints(truth: GroundTruth, names: Sequence[str]) -> dict[str, Part]:
    parts = {
        _name("keypoint", name): Part(keypoints=np.arange(len(names)) == k)
        for k, name in enumerate(names)
    }  # fmt: skip
    parts["visibility=visible"] = Part(keypoints=truth.visibility >= 2)
    parts["visibility=occluded"] = Part(keypoints=truth.visibility == 1)
    return parts


def _truncation(truth: GroundTruth, detections: Detections) -> dict[str, Part]:
    if not np.isfinite(truth.image_sizes_wh).all():
        return {}
    persons = truth.touches_border(truth.image, truth.boxes_xywh)
    found = truth.touches_border(detections.image, detections.boxes_xywh)
    return {
        "truncation=truncated": Part(persons=persons, detections=found),
        "truncation=whole": Part(persons=~persons, detections=~found),
    }


def _persons(truth: GroundTruth) -> dict[str, Part]:
    count = np.bincount(truth.image[~truth.is_ignored], minlength=len(truth.image_ids))
    return {
        f"persons={name}": Part(images=(count >= low) & (count <= high))
        for name, (low, high) in PERSONS_RANGES.items()
    }  # fmt: skip


def _tags(tags: Mapping[str, Sequence[str | None]]) -> dict[str, Part]:
    return {
        _name(tag, value): Part(images=np.array([v == value for v in values]))
        for tag, values in tags.items()
        for value in sorted({v for v in values if v is not None})
    }


def _name(group: str, value: str) -> str:
    """Returns a part's name; `&` joins parts, and so has no place in one."""
    return f"{group}={value}".replace("&", "+")


def _all_of(flags: Iterable[np.ndarray | None]) -> Any:
    result = None
    for flag in flags:
        if flag is not None:
            result = flag if result is None else result & flag
    return result
