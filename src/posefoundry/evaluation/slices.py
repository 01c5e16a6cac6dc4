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

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from posefoundry.datasets.coco import flat_name
from posefoundry.datasets.tags import CORRECTED, Tags
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.fast_oks import THRESHOLDS, Candidates, KeypointSimilarity, SliceMatches
from posefoundry.evaluation.greedy import Task, match
from posefoundry.evaluation.ground_truth import Detections, GroundTruth

ALL = "all"  # the slice of everybody
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
            **{name: Part(category=c) for c, name in enumerate(_names("class", class_names))},
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


def tag_columns(tags: Tags, file_names: Sequence[str]) -> dict[str, list[str | None]]:
    """Returns for each tag its value in each of the I images; None where an image has none.

    Args:
        tags: By bare file name, as `read_tags` returns them.
        file_names: The I images.
    """
    rows = [tags.get(flat_name(name), {}) for name in file_names]
    return {tag: [row.get(tag) or None for row in rows] for tag in next(iter(tags.values()), {})}


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
        name: Part(keypoints=np.arange(len(names)) == k)
        for k, name in enumerate(_names("keypoint", names))
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
    parts = {}
    for tag, values in tags.items():
        distinct = sorted({v for v in values if v is not None})
        for name, value in zip(_names(tag, distinct), distinct, strict=True):
            parts[name] = Part(images=np.array([v == value for v in values]))
    return parts


def _names(group: str, values: Sequence[str]) -> list[str]:
    """Returns the names of a group's parts; `&` joins parts, and so has no place in one."""
    names = [f"{group}={value}".replace("&", "+") for value in values]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise PosefoundryError(
            f"Slices: expected distinct names, got {repeated[0]!r} twice, '&' being '+'. Rename one."
        )
    return names


def _all_of(flags: Iterable[np.ndarray | None]) -> Any:
    result = None
    for flag in flags:
        if flag is not None:
            result = flag if result is None else result & flag
    return result
