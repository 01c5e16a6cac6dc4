"""Which images an evaluation shows, and what is drawn on them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posefoundry.datasets.coco import CocoKeypoints
from posefoundry.evaluation.ground_truth import touches_border
from posefoundry.evaluation.html.pictures import Photo, by_image, error_lines, load_photos, person
from posefoundry.evaluation.html.rendering import decimal
from posefoundry.evaluation.html.sources import number, whole
from posefoundry.evaluation.matching import SEEN_CONFIDENCE
from posefoundry.evaluation.slices import AREA_RANGES

if TYPE_CHECKING:
    from markupsafe import Markup

PER_GROUP = 12
# A filter should find something, so each of its values brings its own first images.
PER_FACET_VALUE, MAX_PER_GROUP = 2, 24
MAX_FACET_VALUES = 12  # a tag with more is a name rather than a kind
MAX_PERSONS_DRAWN = 40
MIN_LABELLED_BOX = 40  # units of the picture: in a crowd, words would hide what they speak of
SMALL_PX2, MEDIUM_PX2 = AREA_RANGES["medium"]


@dataclass(frozen=True)
class Card:
    """An image of the gallery with what is drawn on it; the photograph's id is new where it is shown first."""

    row: Mapping[str, Any]
    facets: list[str]
    photo: Photo
    photo_id: str
    is_first: bool
    truth: "Markup"
    found: "Markup"
    errors: "Markup"
    sentence: str


@dataclass(frozen=True)
class Group:
    """A part of the gallery: `key` and `title`, what it is ordered by, and its cards."""

    key: str
    title: str
    order: str
    cards: list[Card]


@dataclass(frozen=True)
class Gallery:
    """All that the gallery shows: groups, and for each facet its values."""

    groups: list[Group]
    facets: dict[str, list[str]]


def make_gallery(
    rows: Sequence[Mapping[str, Any]],
    truth: CocoKeypoints,
    detections: Sequence[Mapping[str, Any]],
    persons: Sequence[Mapping[str, str]],
    images: Path,
) -> Gallery:
    """Chooses images and draws them.

    Args:
        rows: Entries of images.json.
        truth: The annotations.
        detections: COCO results.
        persons: Rows of oks_hist.csv.
        images: The folder of the images.
    """
    names = {image["id"]: image["file_name"] for image in truth.images}
    rows = [row for row in rows if row.get("image_id") in names]
    facets_of = _facets(rows, truth, persons)
    chosen = {
        key: _chosen([row for row in rows if number(row.get(column)) is not None], order, facets_of)
        for key, _, _, column, order in _GROUPS
    }
    # Taken in turns, so that a page out of room leaves out the last of each group and not a whole group.
    turns = [group[turn] for turn in range(MAX_PER_GROUP) for group in chosen.values() if turn < len(group)]
    photos = load_photos({row["image_id"]: images / names[row["image_id"]] for row in turns})
    layers = _Layers(truth, detections, persons, photos)
    seen: set[int] = set()
    groups = []
    for key, title, order_text, _, _ in _GROUPS:
        cards = []
        for row in chosen[key]:
            image_id = row["image_id"]
            cards.append(layers.card(row, facets_of[image_id], names[image_id], is_first=image_id not in seen))
            seen.add(image_id)
        groups.append(Group(key, title, order_text, cards))
    return Gallery([group for group in groups if group.cards], _values([c.facets for g in groups for c in g.cards]))


def _rank(column: str, sign: int) -> Callable[[Mapping[str, Any]], tuple[float, str]]:
    return lambda row: (sign * (number(row.get(column)) or 0.0), str(row.get("file_name")))


# Key, title, what it is ordered by, the column that an image must have, and the order.
_GROUPS = (
    ("worst", "Worst", "lowest score: OKS of its persons, a missed one 0, shared among persons and false positives",
     "score", _rank("score", 1)),
    ("uncertain", "Most uncertain", "lowest mean score of the persons it found", "mean_score", _rank("mean_score", 1)),
    ("best", "Best", "highest score", "score", _rank("score", -1)),
)  # fmt: skip


def _chosen(
    rows: Sequence[Mapping[str, Any]],
    order: Callable[[Mapping[str, Any]], Any],
    facets_of: Mapping[int, list[str]],
) -> list[Mapping[str, Any]]:
    ranked = sorted(rows, key=order)
    taken = {row["image_id"] for row in ranked[:PER_GROUP]}
    brought: Counter[str] = Counter(facet for image_id in taken for facet in facets_of[image_id])
    for row in ranked[PER_GROUP:]:
        wanted = [facet for facet in facets_of[row["image_id"]] if brought[facet] < PER_FACET_VALUE]
        if wanted and len(taken) < MAX_PER_GROUP:
            taken.add(row["image_id"])
            brought.update(facets_of[row["image_id"]])
    return [row for row in ranked if row["image_id"] in taken]


def _facets(
    rows: Sequence[Mapping[str, Any]], truth: CocoKeypoints, persons: Sequence[Mapping[str, str]]
) -> dict[int, list[str]]:
    """Returns what each image can be filtered by, as `name=value`."""
    of_persons = _facets_of_persons(truth, persons)
    tag_values: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for tag, value in _tags(row).items():
            tag_values[tag].add(value)
    facets = {}
    for row in rows:
        image_id, n = row["image_id"], whole(row.get("persons"))
        crowd = str(n) if n < 2 else "2-3" if n < 4 else "4+"
        found = [f"persons={crowd}", *of_persons[image_id]]
        found += [f"{t}={value}" for t, value in _tags(row).items() if len(tag_values[t]) <= MAX_FACET_VALUES]
        facets[image_id] = found
    return facets


def _facets_of_persons(truth: CocoKeypoints, persons: Sequence[Mapping[str, str]]) -> dict[int, list[str]]:
    """Returns for each image the kinds of persons in it: their size, truncation, visibility and class."""
    class_names = {category["id"]: category["name"] for category in truth.categories}
    sizes_wh = {image["id"]: (number(image.get("width")), number(image.get("height"))) for image in truth.images}
    # The areas that scaled OKS; an annotation may have none of its own.
    area_px2 = {row.get("annotation_id"): number(row.get("area_px2")) for row in persons}
    kinds: dict[int, set[str]] = defaultdict(set)
    for annotation in truth.annotations:
        if not annotation.get("num_keypoints") or annotation.get("iscrowd"):
            continue
        of_image = kinds[annotation["image_id"]]
        area = area_px2.get(str(annotation["id"]))
        if area is not None:
            of_image.add(f"size={'small' if area < SMALL_PX2 else 'medium' if area < MEDIUM_PX2 else 'large'}")
        width, height = sizes_wh[annotation["image_id"]]
        if width is not None and height is not None:
            is_cut = touches_border(np.array([annotation["bbox"]]), np.array([[width, height]]))[0]
            of_image.add(f"truncation={'truncated' if is_cut else 'whole'}")
        visibilities = set(annotation["keypoints"][2::3])
        of_image.update(
            f"visibility={name}" for value, name in ((1, "occluded"), (2, "visible")) if value in visibilities
        )
        if len(class_names) > 1:
            of_image.add(f"class={class_names.get(annotation['category_id'])}")
    return defaultdict(list, {image_id: sorted(found) for image_id, found in kinds.items()})


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    tags = row.get("tags")
    return {str(tag): str(value) for tag, value in tags.items()} if isinstance(tags, dict) else {}


def _values(facet_lists: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Returns the values of each facet that tells images apart."""
    values: dict[str, set[str]] = defaultdict(set)
    for facet in (facet for facets in facet_lists for facet in facets):
        name, _, value = facet.partition("=")
        values[name].add(value)
    known_order = {"small": "0", "medium": "1", "large": "2"}
    return {
        name: sorted(found, key=lambda value: known_order.get(value, value))
        for name, found in values.items()
        if len(found) > 1
    }


class _Layers:
    """Draws the persons of the images that are shown."""

    def __init__(
        self,
        truth: CocoKeypoints,
        detections: Sequence[Mapping[str, Any]],
        persons: Sequence[Mapping[str, str]],
        photos: Mapping[int, Photo],
    ) -> None:
        self._skeleton = truth.skeleton
        self._photos = photos
        self._truth_of = by_image(truth.annotations, set(photos))
        seen = [d for d in detections if (number(d.get("score")) or 0.0) >= SEEN_CONFIDENCE]
        self._found_of = by_image(seen, set(photos))
        self._oks_of = {row.get("annotation_id"): row for row in persons}

    def card(self, row: Mapping[str, Any], facets: list[str], name: str, *, is_first: bool) -> Card:
        from markupsafe import Markup

        image_id = row["image_id"]
        photo = self._photos[image_id]
        truth, found, errors = [], [], []
        free = sorted(self._found_of[image_id], key=lambda entry: -entry["score"])[:MAX_PERSONS_DRAWN]
        for annotation in self._truth_of[image_id][:MAX_PERSONS_DRAWN]:
            matched = self._oks_of.get(str(annotation["id"]))
            if matched is None:  # need not be found
                label = "crowd" if annotation.get("iscrowd") else ""
                truth.append(self._person(annotation, photo, label, "ignored", boxed=True))
                continue
            detection = _partner(free, matched.get("score"))
            oks = number(matched.get("oks")) or 0.0
            if detection is None:
                is_wide = annotation["bbox"][2] * photo.scale > MIN_LABELLED_BOX
                truth.append(self._person(annotation, photo, "missed" if is_wide else "", "missed", boxed=True))
                continue
            free.remove(detection)
            truth.append(self._person(annotation, photo, f"OKS {oks:.2f}", "poor" if oks < 0.5 else ""))
            found.append(self._person(detection, photo, f"{detection['score']:.2f}", "poor" if oks < 0.5 else ""))
            errors.append(error_lines(annotation, detection, photo.scale))
        style = "unmatched" if self._oks_of else ""
        found += [self._person(d, photo, f"{d['score']:.2f}", style, boxed=bool(style)) for d in free]
        return Card(
            row, facets, photo, f"photo-{image_id}", is_first, Markup().join(truth), Markup().join(found),
            Markup().join(errors), _sentence(row, name),
        )  # fmt: skip

    def _person(
        self, entry: Mapping[str, Any], photo: Photo, label: str, style: str, *, boxed: bool = False
    ) -> "Markup":
        return person(entry, self._skeleton, photo.scale, label=label, style=style, boxed=boxed)


def _partner(free: Sequence[Mapping[str, Any]], score: str | None) -> Mapping[str, Any] | None:
    """Returns the detection that oks_hist.csv names by its score."""
    wanted = number(score)
    return next((entry for entry in free if wanted is not None and abs(entry["score"] - wanted) < 1e-9), None)


def _sentence(row: Mapping[str, Any], name: str) -> str:
    return (
        f"{name}: {whole(row.get('found'))} of {whole(row.get('persons'))} persons found, "
        f"{whole(row.get('false_positives'))} false positives, mean OKS {decimal(row.get('mean_oks'), 2)}."
    )
