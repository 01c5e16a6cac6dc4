"""Which images are most worth a person's time: where the model fails, doubts, or contradicts the one in production."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from posefoundry.datasets.coco import CocoKeypoints
from posefoundry.datasets.pairing import box_iou_xywh
from posefoundry.evaluation.fast_oks import MAX_POSES_PER_IMAGE
from posefoundry.evaluation.ground_truth import PIPELINE_AREA_RULE, read_detections
from posefoundry.evaluation.matching import SEEN_CONFIDENCE, Match, match_persons
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.evaluation.wording import counted

# An image beyond these is fine in that respect, however few are worse.
GOOD_OKS = 0.75
SURE_CONFIDENCE = 0.5
SAME_PERSON_OKS = 0.5
SAME_BOX_IOU = 0.3

Detections = list[dict[str, Any]]
ByImage = dict[int, Detections]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why an image is hard.

    Attributes:
        kind: worst_oks, unannotated_person, low_confidence or disagreement.
        hardness: 0 to 1 and more; comparable within a kind only.
        sentence: For the person who looks at the image.
    """

    kind: str
    hardness: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class HardExample:
    """An image worth correcting.

    Attributes:
        image: Its record in the annotation file.
        reasons: All that hold, the one it was chosen for first.
        detections: What the model found with a score of .25 or more, by falling score.
    """

    image: dict[str, Any]
    reasons: tuple[Reason, ...]
    detections: Detections


def choose_hard_examples(
    truth: CocoKeypoints,
    detections: Detections,
    production: Detections | None = None,
    *,
    count: int = 50,
    called: tuple[str, str, str] = ("annotations", "detections", "production"),
) -> list[HardExample]:
    """Chooses images by worst OKS, persons nobody annotated, low confidence and disagreement, in turn.

    The kinds take turns, so that none fills the list alone. Images that are fine by all of them are never chosen, so
    there may be fewer than `count`. Where nothing is annotated, the first two kinds are silent.

    Args:
        truth: The images, with annotations or without.
        detections: The model's COCO results on them.
        production: Those of the model in production, if there is one.
        count: Images at most.
        called: What the first three are called in messages.

    Raises:
        PosefoundryError: A detection is of an unknown image, or malformed; or a person's annotation is.
    """
    sigmas = np.array(truth.skeleton.sigmas)
    content = {"images": truth.images, "annotations": truth.annotations, "categories": truth.categories}
    evaluator = OksEvaluator(content, sigmas=truth.skeleton.sigmas, area_rule=PIPELINE_AREA_RULE, where=called[0])
    found = read_detections(detections, evaluator.truth, called[1])
    matches = match_persons(evaluator, evaluator.evaluate_arrays(found), detections)
    if production is not None:
        read_detections(production, evaluator.truth, called[2])  # refuses what is not of these images
    seen = seen_by_image(detections)
    kinds: list[dict[int, Reason]] = [
        _worst_oks(matches),
        _unannotated(truth, seen) if truth.annotations else {},
        _low_confidence(detections, seen),
        _disagreement(seen, seen_by_image(production), sigmas) if production is not None else {},
    ]
    images = {image["id"]: image for image in truth.images}

    def ranked(reasons: dict[int, Reason]) -> list[tuple[int, Reason]]:
        return sorted(reasons.items(), key=lambda item: (-item[1].hardness, images[item[0]]["file_name"]))

    chosen: dict[int, Reason] = {}
    for turn in zip_longest(*map(ranked, kinds)):
        for entry in turn:
            if entry is not None and entry[0] not in chosen and len(chosen) < count:
                chosen[entry[0]] = entry[1]
    return [
        HardExample(
            image=images[image_id],
            reasons=(first, *(kind[image_id] for kind in kinds if image_id in kind and kind[image_id] is not first)),
            detections=seen.get(image_id, []),
        )
        for image_id, first in chosen.items()
    ]


def seen_by_image(detections: Detections) -> ByImage:
    """Returns by image what a user gets to see: scores of .25 or more, at most the 20 highest, by falling score."""
    by_image: ByImage = defaultdict(list)
    for detection in detections:
        if detection["score"] >= SEEN_CONFIDENCE:
            by_image[detection["image_id"]].append(detection)
    return {
        image_id: sorted(found, key=lambda entry: -entry["score"])[:MAX_POSES_PER_IMAGE]
        for image_id, found in by_image.items()
    }


def _worst_oks(matches: list[Match]) -> dict[int, Reason]:
    oks_of_image: dict[int, list[float]] = defaultdict(list)
    missed: dict[int, int] = defaultdict(int)
    for match in matches:
        oks_of_image[match.annotation["image_id"]].append(match.oks)
        missed[match.annotation["image_id"]] += match.detection is None
    reasons = {}
    for image_id, values in oks_of_image.items():
        mean = float(np.mean(values))
        if mean < GOOD_OKS:
            lost = f", {missed[image_id]} of them missed" if missed[image_id] else ""
            sentence = f"Low OKS: {mean:.2f} on average over {counted(len(values), 'person')}{lost}."
            reasons[image_id] = Reason(kind="worst_oks", hardness=1 - mean, sentence=sentence)
    return reasons


def _unannotated(truth: CocoKeypoints, seen: ByImage) -> dict[int, Reason]:
    """Finds confident detections where nobody is annotated, not even a crowd: an error of the model, or a gap."""
    reasons = {}
    for image_id, annotations in truth.annotations_of_image().items():
        sure = [entry for entry in seen.get(image_id, []) if entry["score"] >= SURE_CONFIDENCE]
        scores = [entry["score"] for entry in sure if not _is_annotated(entry["bbox"], annotations)]
        if scores:
            sentence = f"Found but not annotated: {counted(len(scores), 'person')}, score up to {max(scores):.2f}."
            reasons[image_id] = Reason(kind="unannotated_person", hardness=float(sum(scores)), sentence=sentence)
    return reasons


def _is_annotated(bbox: list[float], annotations: list[dict[str, Any]]) -> bool:
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    if (box_iou_xywh(np.array(bbox), boxes) >= SAME_BOX_IOU).any():
        return True
    centre = np.array(bbox[:2]) + np.array(bbox[2:]) / 2
    crowds = boxes[[bool(a.get("iscrowd")) for a in annotations]]
    return bool(((centre >= crowds[:, :2]) & (centre <= crowds[:, :2] + crowds[:, 2:])).all(axis=1).any())


def _low_confidence(detections: Detections, seen: ByImage) -> dict[int, Reason]:
    """Rates images by the mean score of what is seen; where nothing is, by the best score below the threshold."""
    best: dict[int, float] = defaultdict(float)
    for detection in detections:
        best[detection["image_id"]] = max(best[detection["image_id"]], detection["score"])
    reasons = {}
    for image_id, highest in best.items():
        scores = [entry["score"] for entry in seen.get(image_id, [])]
        if scores and (mean := float(np.mean(scores))) < SURE_CONFIDENCE:
            sentence = f"Low confidence: {counted(len(scores), 'person')} found with a mean score of {mean:.2f}."
            reasons[image_id] = Reason(kind="low_confidence", hardness=1 - mean, sentence=sentence)
        elif not scores and highest >= SEEN_CONFIDENCE / 2:
            sentence = f"Low confidence: nobody found, but a person all but found, with a score of {highest:.2f}."
            # The nearer to the threshold, the greater the doubt; one that is far below it is a clear no.
            hardness = 1 - SEEN_CONFIDENCE - (SEEN_CONFIDENCE - highest)
            reasons[image_id] = Reason(kind="low_confidence", hardness=hardness, sentence=sentence)
    return reasons


def _disagreement(candidate: ByImage, production: ByImage, sigmas: np.ndarray) -> dict[int, Reason]:
    """Compares what two models see: the mean OKS of persons both see, 0 for those that one alone sees."""
    reasons = {}
    for image_id in sorted(set(candidate) | set(production)):
        ours, theirs = candidate.get(image_id, []), production.get(image_id, [])
        similar = _pair_up(detection_oks(ours, theirs, sigmas))
        alone = len(ours) + len(theirs) - 2 * len(similar)
        agreement = sum(similar) / (len(similar) + alone)
        if agreement < GOOD_OKS:
            parts = [f"{counted(len(similar), 'person')} alike by OKS {np.mean(similar):.2f}"] if similar else []
            parts += [f"{counted(alone, 'person')} seen by one of the two models only"] if alone else []
            sentence = f"Disagreement with production: {', '.join(parts)}."
            reasons[image_id] = Reason(kind="disagreement", hardness=1 - agreement, sentence=sentence)
    return reasons


def detection_oks(ours: Detections, theirs: Detections, sigmas: np.ndarray) -> np.ndarray:
    """Returns the (N, M) OKS of detections, by all keypoints and the area of the mean box; 0 across categories."""
    k = len(sigmas)
    a, b = (np.array([d["keypoints"] for d in side], np.float64).reshape(-1, k, 3)[..., :2] for side in (ours, theirs))
    area_a, area_b = (
        np.array([d["bbox"][2] * d["bbox"][3] for d in side], np.float64).reshape(-1) for side in (ours, theirs)
    )
    same = np.array([d["category_id"] for d in ours])[:, None] == np.array([d["category_id"] for d in theirs])[None]
    square = ((a[:, None] - b[None]) ** 2).sum(axis=3)  # (N, M, K)
    area = ((area_a[:, None] + area_b[None]) / 2 + np.spacing(1))[..., None]
    return np.exp(-square / (2 * area * (2 * sigmas) ** 2)).mean(axis=2) * same


def _pair_up(oks: np.ndarray) -> list[float]:
    """Returns the OKS of pairs by falling OKS, each side once, down to .50."""
    pairs, rows, columns = [], set(), set()
    for flat in np.argsort(-oks, axis=None, kind="stable"):
        row, column = divmod(int(flat), oks.shape[1])
        if oks[row, column] < SAME_PERSON_OKS:
            break
        if row not in rows and column not in columns:
            pairs.append(float(oks[row, column]))
            rows.add(row)
            columns.add(column)
    return pairs
