"""Sigmas of one's own keypoints, from persons that two people annotated independently.

COCO defines sigma_k^2 = E[d_k^2 / s^2] (cocodataset.org/#keypoints-eval), with d_k the distance of a human's keypoint
from where it truly is and s^2 the person's area, and measured it on redundantly annotated images, "ignoring occasional
outliers". OKS then divides by (2 sigma_k)^2.

Where it truly is, nobody knows; what two annotators give is the vector between them. Their errors are independent, so
its mean square is the sum of both, twice that of one: E[|a - b|^2 / s^2] = 2 sigma^2. Hence

    sigma_k = sqrt(mean(|a_k - b_k|^2 / area) / 2)

over the persons on whom both labelled keypoint k. Taking |a - b| itself for d would give a sigma 1.41 times too large,
and OKS values that flatter. A habit that both annotators share doesn't show in their difference; a habit of one alone
(the hip always higher) does, and is counted as error and told as `offset`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posefoundry.datasets.coco import CocoKeypoints, flat_name, load_coco_keypoints, set_faults_aside
from posefoundry.datasets.pairing import mutual_nearest
from posefoundry.errors import PosefoundryError
from posefoundry.files import sha256_of_file
from posefoundry.skeleton import Skeleton

MIN_IOU = 0.5
MIN_PERSONS = 10  # fewer say next to nothing: with 10, the interval is about +-30 %

# |a - b|^2 / (2 area sigma^2) of Gaussian errors is exponentially distributed with mean 1: its median is ln 2, and
# one in 8,000 is above 9. The median, which gross errors hardly move, gives the scale that the limit is set by.
OUTLIER_LIMIT = 9.0
# A person whose sides the annotators called differently: exchanged, the keypoints are 3 times closer.
MIN_SIDE_PAIRS = 3
SIDE_RATIO = 9.0


@dataclass(frozen=True, kw_only=True)
class DoubleAnnotation:
    """Persons that two annotators labelled.

    Attributes:
        skeleton: The keypoints of the first file.
        image_of_person: (N,) number of the image, 0 to `images` - 1.
        first_xyv: (N, K, 3) keypoints in px, of the first annotator.
        second_xyv: (N, K, 3) of the second.
        areas: (N,) the first annotator's areas in px, by which OKS scales.
        images: Images that both files have.
        left_out: How many records did not take part, by reason.
    """

    skeleton: Skeleton
    image_of_person: np.ndarray
    first_xyv: np.ndarray
    second_xyv: np.ndarray
    areas: np.ndarray
    images: int
    left_out: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class KeypointSigma:
    """One keypoint's estimate.

    Attributes:
        name: The keypoint.
        sigma: As OKS uses it; None where fewer than `MIN_PERSONS` persons have the keypoint.
        low: Lower end of the 95 % interval, by bootstrap over images.
        high: Upper end.
        persons: Persons that the estimate rests on.
        outliers: Further persons, left out because the annotators are too far apart to mean the same point.
        sides_exchanged: Further persons, left out because one annotator's left is the other's right.
        labelled_once: Persons on whom just one annotator labelled it.
        sigma_with_outliers: What sigma were with the persons that were left out.
        offset: Length of the annotators' mean difference in sigmas: near 0 where neither has a habit of his own.
    """

    name: str
    sigma: float | None
    low: float | None
    high: float | None
    persons: int
    outliers: int
    sides_exchanged: int
    labelled_once: int
    sigma_with_outliers: float | None
    offset: float | None


def read_double_annotation(first: Path, second: Path) -> DoubleAnnotation:
    """Pairs the persons of two COCO keypoint files of the same images.

    Images are paired by file name, since tools number them as they like, and persons by their boxes: each other's
    nearest of the same category, with an IoU of at least .5. Crowds take no part.

    Raises:
        PosefoundryError: A file is not of COCO keypoint form, the keypoints differ, or there is not one pair.
    """
    left_out: dict[str, int] = {}
    contents = [_usable(path, left_out, number) for number, path in enumerate((first, second))]
    if contents[0].skeleton.keypoint_names != contents[1].skeleton.keypoint_names:
        raise PosefoundryError(
            f"{second}: expected the keypoints of {first} in the same order, "
            f"{', '.join(contents[0].skeleton.keypoint_names)}, got {', '.join(contents[1].skeleton.keypoint_names)}."
        )
    by_name = [_persons_by_image(content) for content in contents]
    shared = sorted(set(by_name[0]) & set(by_name[1]))
    for ordinal, mine, other in (("first", *by_name), ("second", *reversed(by_name))):
        left_out[f"images only in the {ordinal} file"] = len(set(mine) - set(other))
    pairs = []
    left_out |= {f"persons only in the {ordinal} file": 0 for ordinal in ("first", "second")}
    for number, name in enumerate(shared):
        ours, theirs = by_name[0][name], by_name[1][name]
        found = _pairs_of_image(ours, theirs)
        measured = [(number, a, b) for a, b in found if (a.get("area") or 0) > 0]
        pairs += measured
        left_out["persons without area"] = left_out.get("persons without area", 0) + len(found) - len(measured)
        left_out["persons only in the first file"] += len(ours) - len(found)
        left_out["persons only in the second file"] += len(theirs) - len(found)
    if not pairs:
        raise PosefoundryError(
            f"{second}: expected persons that {first} has too, found none in {len(shared)} images of the same file "
            f"name. Persons are paired by boxes that overlap by {MIN_IOU:.0%} of their union or more."
        )
    k = contents[0].skeleton.n_keypoints
    return DoubleAnnotation(
        skeleton=contents[0].skeleton,
        image_of_person=np.array([number for number, _, _ in pairs]),
        first_xyv=np.array([a["keypoints"] for _, a, _ in pairs], np.float64).reshape(-1, k, 3),
        second_xyv=np.array([b["keypoints"] for _, _, b in pairs], np.float64).reshape(-1, k, 3),
        areas=np.array([a["area"] for _, a, _ in pairs], np.float64),
        images=len(shared),
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def estimate_sigmas(persons: DoubleAnnotation, *, resamples: int = 2000, seed: int = 0) -> list[KeypointSigma]:
    """Estimates the sigma of each keypoint, with a bootstrap interval over images.

    Images are resampled, not persons: one image's persons share its sharpness and its annotators' mood.
    """
    both = (persons.first_xyv[..., 2] > 0) & (persons.second_xyv[..., 2] > 0)
    once = ((persons.first_xyv[..., 2] > 0) ^ (persons.second_xyv[..., 2] > 0)).sum(axis=0)
    difference = (persons.first_xyv - persons.second_xyv)[..., :2] / np.sqrt(persons.areas)[:, None, None]
    square = (difference**2).sum(axis=2) / 2  # (N, K), in mean sigma^2
    exchanged = both & _sides_exchanged(persons, both)
    rng = np.random.default_rng(seed)
    # (resamples, images): how often an image is drawn
    draws = rng.multinomial(persons.images, np.full(persons.images, 1 / persons.images), size=resamples)
    estimates = []
    for k, name in enumerate(persons.skeleton.keypoint_names):
        candidates = both[:, k] & ~exchanged[:, k]
        inside = candidates & (square[:, k] <= _limit(square[candidates, k]))
        n = int(inside.sum())
        sigma = low = high = offset = None
        if n >= MIN_PERSONS:
            sigma = float(np.sqrt(square[inside, k].mean()))
            low, high = _interval(square[inside, k], persons.image_of_person[inside], draws)
            mean_difference = float(np.linalg.norm(difference[inside, k].mean(axis=0)))
            offset = mean_difference / sigma if sigma else 0.0
        estimates.append(
            KeypointSigma(
                name=name,
                sigma=sigma,
                low=low,
                high=high,
                persons=n,
                outliers=int(candidates.sum()) - n,
                sides_exchanged=int(exchanged[:, k].sum()),
                labelled_once=int(once[k]),
                sigma_with_outliers=float(np.sqrt(square[both[:, k], k].mean())) if n >= MIN_PERSONS else None,
                offset=offset,
            )
        )
    return estimates


def describe(estimates: list[KeypointSigma], persons: DoubleAnnotation, files: tuple[Path, Path]) -> dict[str, Any]:
    """Returns the content of a sigmas file; `sigmas` and `kpt_names` are those of a dataset.yaml.

    Raises:
        PosefoundryError: A keypoint has no sigma, so that the list would have a hole.
    """
    missing = [estimate for estimate in estimates if not estimate.sigma]
    if missing:
        named = ", ".join(f"{estimate.name} ({estimate.persons})" for estimate in missing)
        raise PosefoundryError(
            f"Expected {MIN_PERSONS} persons or more, annotated twice and not twice alike, for each keypoint, got "
            f"fewer for {named}. Annotate more images twice; nothing was written."
        )
    return {
        "sigmas": [round(estimate.sigma or 0, 5) for estimate in estimates],
        "kpt_names": [estimate.name for estimate in estimates],
        "rule": "sqrt(mean(distance^2 / area) / 2), distance between two annotators; without outliers",
        "files": [{"path": str(path), "sha256": sha256_of_file(path)} for path in files],
        "images": persons.images,
        "persons": len(persons.areas),
        "left_out": persons.left_out,
        "keypoints": [_rounded(estimate) for estimate in estimates],
    }


def _rounded(estimate: KeypointSigma) -> dict[str, Any]:
    return {
        key: round(value, 5) if isinstance(value, float) else value
        for key, value in vars(estimate).items()
        if value is not None
    }


def _usable(path: Path, left_out: dict[str, int], number: int) -> CocoKeypoints:
    content = load_coco_keypoints(path)
    if number:  # only the first file's areas are asked for
        content.annotations[:] = [{"area": 0.0} | annotation for annotation in content.annotations]
    usable, aside = set_faults_aside(content, "")
    ordinal = ("first", "second")[number]
    left_out[f"faulty records in the {ordinal} file"] = len(aside)
    left_out[f"crowds in the {ordinal} file"] = sum(a["iscrowd"] for a in usable.annotations)
    return usable


def _persons_by_image(content: CocoKeypoints) -> dict[str, list[dict[str, Any]]]:
    category_names = {category["id"]: category["name"] for category in content.categories}
    annotations = content.annotations_of_image()
    return {
        flat_name(image["file_name"]): [
            annotation | {"category_name": category_names[annotation["category_id"]]}
            for annotation in annotations[image["id"]]
            if not annotation["iscrowd"]
        ]
        for image in content.images
    }


def _pairs_of_image(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    pairs = []
    for name in sorted({annotation["category_name"] for annotation in first}):
        ours, theirs = ([a for a in side if a["category_name"] == name] for side in (first, second))
        found = mutual_nearest([a["bbox"] for a in ours], [b["bbox"] for b in theirs], min_iou=MIN_IOU)
        pairs += [(ours[i], theirs[j]) for i, j in found]
    return pairs


def _sides_exchanged(persons: DoubleAnnotation, both: np.ndarray) -> np.ndarray:
    """Returns (N, K): keypoints with a left and a right, of persons whose sides the annotators called differently."""
    flip = np.array(persons.skeleton.flip_indices)
    sided = flip != np.arange(len(flip))
    usable = both & both[:, flip] & sided  # both ends of the pair, by both annotators
    first, second = persons.first_xyv[..., :2], persons.second_xyv[..., :2]
    straight = np.where(usable, ((first - second) ** 2).sum(axis=2), 0).sum(axis=1)
    crossed = np.where(usable, ((first - second[:, flip]) ** 2).sum(axis=2), 0).sum(axis=1)
    is_exchanged = (usable.sum(axis=1) >= 2 * MIN_SIDE_PAIRS) & (straight > SIDE_RATIO * crossed)
    return is_exchanged[:, None] & sided


def _limit(squares: np.ndarray) -> float:
    if len(squares) < MIN_PERSONS:
        return float("inf")
    return OUTLIER_LIMIT * float(np.median(squares)) / float(np.log(2))


def _interval(squares: np.ndarray, images: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    sums = np.bincount(images, squares, minlength=draws.shape[1])
    counts = np.bincount(images, minlength=draws.shape[1])
    drawn = draws @ counts
    sigmas = np.sqrt((draws @ sums)[drawn > 0] / drawn[drawn > 0])
    low, high = np.percentile(sigmas, (2.5, 97.5))
    return float(low), float(high)
