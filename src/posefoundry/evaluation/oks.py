"""OKS and box average precision by COCO's rules (cocodataset.org/#keypoints-eval), equal to pycocotools in the tests.

What pycocotools does and its callers forget:

- Persons with `num_keypoints` 0 and crowds are neither found nor missed in the OKS figures; in the box figures only
  crowds are set aside, so a person without labelled keypoints counts there.
- Of the detections of an image and category only the 20 with the highest scores count for OKS, 100 for boxes.
- OKS scales distances by the annotation's `area` (the mask's, in COCO's own files). A detection's area, which decides
  whether a false positive falls under `_m` or `_l`, is that of its box. Medium is 32^2 to 96^2 px^2, large is above.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posefoundry.evaluation import fast_oks
from posefoundry.evaluation.fast_oks import (
    MAX_BOXES_PER_IMAGE,
    MAX_POSES_PER_IMAGE,
    RECALLS,
    THRESHOLDS,
    Candidates,
    KeypointSimilarity,
    SliceMatches,
)
from posefoundry.evaluation.greedy import Task, match
from posefoundry.evaluation.ground_truth import AreaRule, Detections, GroundTruth, read_detections, read_ground_truth
from posefoundry.evaluation.slices import ALL, AREA_RANGES, WHOLE_RANGE, Slicer, Slices, split_by_class
from posefoundry.files import read_json

if TYPE_CHECKING:
    from posefoundry.inference.results import PoseResult

# COCOeval.summarize fills `stats` in this order: ten numbers for keypoints, the first six of twelve for boxes.
OKS_METRICS = (
    "oks_ap", "oks_ap50", "oks_ap75", "oks_ap_m", "oks_ap_l", "oks_ar", "oks_ar50", "oks_ar75", "oks_ar_m", "oks_ar_l",
)  # fmt: skip
BOX_METRICS = ("box_ap", "box_ap50", "box_ap75", "box_ap_s", "box_ap_m", "box_ap_l")

Metrics = dict[str, float | None]


def to_coco_results(result: "PoseResult", image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Turns the persons found in one image into entries of a COCO results file.

    Coordinates are rounded to 1/1000 px and scores to six digits, so that what is evaluated is what the file holds.

    Args:
        result: The N persons found, in pixels of the source image.
        image_id: The image's `id` in the annotation file.
        category_ids: The COCO category id of each class of the model.

    Returns:
        N dicts with `image_id`, `category_id`, `bbox` (x, y, width, height), `keypoints` (K times x, y, confidence)
        and `score`.
    """
    boxes_xyxy = np.asarray(result.boxes_xyxy, np.float64).reshape(-1, 4)
    boxes_xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    keypoints = np.asarray(result.keypoints_xyv, np.float64)
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[class_id]),
            "bbox": box,
            "keypoints": points,
            "score": score,
        }
        for class_id, box, points, score in zip(
            np.asarray(result.class_ids, np.int64).tolist(),
            boxes_xywh.round(3).tolist(),
            (points.ravel().tolist() for points in keypoints.round(3)),
            np.asarray(result.scores, np.float64).round(6).tolist(),
            strict=True,
        )
    ]


@dataclass(frozen=True)
class Evaluation:
    """How good detections are, and all that can be asked about it.

    Attributes:
        metrics: The keys of `OKS_METRICS` and `BOX_METRICS`; None where the ground truth has nobody of that kind, and
            of boxes where the detections have none.
        oks_thresholds: (T,) OKS from which a detection counts as right, .50 to .95.
        recalls: (R,) recall levels, 0 to 1.
        precision: (T, R) interpolated keypoint precision, mean over categories; NaN where there is nobody to find.
        truth: The annotations as arrays.
        detections: The detections as arrays.
        found: The detections that count for OKS.
        similarity: Of the pairs that may reach the lowest threshold.
        slicer: Whom and what each slice counts.
        sigmas: (K,) as used.
        crossed: Crossed slices that were asked for.
    """

    metrics: Metrics
    oks_thresholds: np.ndarray
    recalls: np.ndarray
    precision: np.ndarray
    truth: GroundTruth
    detections: Detections
    found: Candidates
    similarity: KeypointSimilarity
    slicer: Slicer
    sigmas: np.ndarray
    crossed: tuple[str, ...]

    @cached_property
    def slices(self) -> Slices:
        """Of each slice what average precision needs, one `SliceMatches` a class."""
        return self.slicer.matches(self.found, self.similarity, self.slicer.names(self.crossed))

    @cached_property
    def every_pair(self) -> KeypointSimilarity:
        """Of all pairs of persons and detections of an image and category, however far apart."""
        return fast_oks.keypoint_similarity(self.truth, self.detections, self.found, self.sigmas, at_least=0)


class OksEvaluator:
    """Ground truth, prepared once and evaluated against as often as needed.

    Args:
        annotations: A COCO keypoint annotation file, or its content, which is left as it is.
        sigmas: K standard deviations of annotation relative to object scale (`Skeleton.sigmas`).
        area_rule: Whose area scales OKS; see `read_ground_truth`.
        tags: For each tag its value in each of the images, in the order of the file; None where an image has none.
        crossed: Crossed slices to look at, such as `keypoint=left_wrist&size=small` or `keypoint&size`.
        where: What the annotations are called in messages; by default their path.

    Attributes:
        images: The entries of the file.
        annotations: The entries of the file.
        persons: Indices of the annotations that must be found: no crowds, at least one labelled keypoint.
        sigmas: (K,) as given.
        truth: The annotations as arrays.
        tags: For each tag its value in each image, in order of image id.

    Raises:
        PosefoundryError: An annotation names an unknown image or category, lacks its box or area, or has not K * 3
            finite keypoint numbers; or an id comes twice; or there is no such slice.
    """

    def __init__(
        self,
        annotations: Path | dict[str, Any],
        *,
        sigmas: Sequence[float],
        area_rule: AreaRule = "annotation",
        tags: Mapping[str, Sequence[str | None]] | None = None,
        crossed: Sequence[str] = (),
        where: str | None = None,
    ) -> None:
        where = where or (str(annotations) if isinstance(annotations, Path) else "annotations")
        content = read_json(annotations) if isinstance(annotations, Path) else annotations
        self.sigmas = np.asarray(sigmas, np.float64)
        self.truth = read_ground_truth(content, len(self.sigmas), where, area_rule)
        self.images: list[dict[str, Any]] = content["images"]
        self.annotations: list[dict[str, Any]] = content["annotations"]
        self.persons: list[int] = np.flatnonzero(~self.truth.is_ignored).tolist()
        self.keypoint_names, self.class_names = _names(content["categories"], len(self.sigmas))
        by_id = sorted(range(len(self.images)), key=lambda i: self.images[i]["id"])
        self.tags = {tag: [values[i] for i in by_id] for tag, values in (tags or {}).items()}
        self._crossed = tuple(crossed)
        self._slicer(read_detections([], self.truth)).names(self._crossed)  # refuses unknown ones at once

    def evaluate(self, detections: Sequence[dict[str, Any]]) -> Metrics:
        """Returns OKS and box AP and AR of COCO results, which are left as they are.

        Args:
            detections: Entries of a COCO results file: `image_id`, `category_id`, `bbox`, `keypoints`, `score`.

        Returns:
            The keys of `OKS_METRICS` and `BOX_METRICS`, each 0 to 1, or None where nobody of that kind is annotated.
            Without detections, 0.

        Raises:
            PosefoundryError: A detection is for an unknown image or category, or its numbers are not finite or not
                as many as they must be.
        """
        return self.evaluate_in_detail(detections).metrics

    def evaluate_in_detail(self, detections: Sequence[dict[str, Any]]) -> Evaluation:
        """Evaluates like `evaluate` and returns curves, slices and the OKS of each pair as well."""
        return self.evaluate_arrays(read_detections(detections, self.truth))

    def evaluate_arrays(self, detections: Detections) -> Evaluation:
        """Evaluates like `evaluate_in_detail` what `read_detections` has read."""
        truth = self.truth
        found = fast_oks.candidates(truth, detections, MAX_POSES_PER_IMAGE)
        similarity = fast_oks.keypoint_similarity(truth, detections, found, self.sigmas, at_least=THRESHOLDS[0])
        slicer = self._slicer(detections)
        matches = slicer.matches(found, similarity, [ALL, "size=medium", "size=large"])
        precision = fast_oks.over_classes([fast_oks.precision_at_recalls(m) for m in matches[ALL]])
        return Evaluation(
            metrics=_oks_metrics(matches) | _box_metrics(truth, detections, found),
            oks_thresholds=THRESHOLDS,
            recalls=RECALLS,
            precision=precision,
            truth=truth,
            detections=detections,
            found=found,
            similarity=similarity,
            slicer=slicer,
            sigmas=self.sigmas,
            crossed=self._crossed,
        )

    def _slicer(self, detections: Detections) -> Slicer:
        return Slicer(self.truth, detections, self.keypoint_names, self.class_names, self.tags)


def average(matches: Sequence[SliceMatches], threshold: float | None = None, *, recall: bool = False) -> float | None:
    """Returns a slice's AP, or AR, over all thresholds or at one; None where there is nobody to find."""
    of_class = fast_oks.average_recall if recall else fast_oks.average_precision
    values = fast_oks.over_classes([of_class(m) for m in matches])
    return _mean(values, threshold)


def _mean(values: np.ndarray, threshold: float | None) -> float | None:
    mean = float(fast_oks.mean_over_thresholds(values, threshold))
    return None if np.isnan(mean) else mean


def _oks_metrics(matches: Slices) -> Metrics:
    values: list[float | None] = []
    for of_class in (fast_oks.average_precision, fast_oks.average_recall):
        whole, medium, large = (
            fast_oks.over_classes([of_class(m) for m in matches[name]]) for name in (ALL, "size=medium", "size=large")
        )
        values += [_mean(whole, None), _mean(whole, 0.5), _mean(whole, 0.75), _mean(medium, None), _mean(large, None)]
    return dict(zip(OKS_METRICS, values, strict=True))


def _box_metrics(truth: GroundTruth, detections: Detections, poses: Candidates) -> Metrics:
    """Box AP: only crowds are ignored here, and the 100 best boxes of an image and class count."""
    if not detections.have_boxes:
        return dict.fromkeys(BOX_METRICS)
    found = poses
    if len(poses.source) < len(detections.scores):  # some image has more boxes than poses that count
        found = fast_oks.candidates(truth, detections, MAX_BOXES_PER_IMAGE)
    iou = fast_oks.box_iou(truth, detections, found)
    tasks, persons = {}, {}
    for name, (low, high) in {ALL: WHOLE_RANGE, **AREA_RANGES}.items():
        persons[name] = ~truth.is_crowd & (truth.areas >= low) & (truth.areas <= high)
        areas = detections.areas[found.source]
        tasks[name] = Task(iou, ~persons[name], (areas < low) | (areas > high))
    matched = dict(zip(tasks, match(found.pairs, list(tasks.values()), THRESHOLDS), strict=True))
    values = {
        name: fast_oks.over_classes(
            [fast_oks.average_precision(m) for m in split_by_class(truth, found, persons[name], *matched[name])]
        )
        for name in tasks
    }
    whole = values[ALL]
    by_size = [_mean(values[size], None) for size in ("small", "medium", "large")]
    return dict(zip(BOX_METRICS, [_mean(whole, None), _mean(whole, 0.5), _mean(whole, 0.75), *by_size], strict=True))


def _names(categories: list[dict[str, Any]], n_keypoints: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns names of keypoints and, in order of id, of classes; numbers where the file has no names of its own."""
    by_id = sorted(categories, key=lambda category: category["id"])
    classes = tuple(str(category.get("name", category["id"])) for category in by_id)
    if len(set(classes)) < len(classes):
        classes = tuple(str(category["id"]) for category in by_id)
    keypoints = tuple(next((c["keypoints"] for c in by_id if c.get("keypoints")), ()))
    if len(keypoints) != n_keypoints or len(set(keypoints)) != n_keypoints:
        keypoints = tuple(str(k) for k in range(n_keypoints))
    return keypoints, classes
