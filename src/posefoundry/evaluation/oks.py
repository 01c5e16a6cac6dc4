"""OKS and box average precision by pycocotools, the reference implementation of cocodataset.org/#keypoints-eval.

What pycocotools does and its callers forget:

- Persons with `num_keypoints` 0 and crowds are neither found nor missed in the OKS figures; in the box figures only
  crowds are set aside, so a person without labelled keypoints counts there.
- Of the detections of an image and category only the 20 with the highest scores count for OKS, 100 for boxes.
- OKS scales distances by the annotation's `area` (the mask's, in COCO's own files). A detection's area, which decides
  whether a false positive falls under `_m` or `_l`, is that of its box. Medium is 32^2 to 96^2 px^2, large is above.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json

if TYPE_CHECKING:
    from posefoundry.inference.results import PoseResult

# COCOeval.summarize fills `stats` in this order: ten numbers for keypoints, the first six of twelve for boxes.
OKS_METRICS = (
    "oks_ap", "oks_ap50", "oks_ap75", "oks_ap_m", "oks_ap_l", "oks_ar", "oks_ar50", "oks_ar75", "oks_ar_m", "oks_ar_l",
)  # fmt: skip
BOX_METRICS = ("box_ap", "box_ap50", "box_ap75", "box_ap_s", "box_ap_m", "box_ap_l")

MAX_POSES_PER_IMAGE = 20  # pycocotools: Params.setKpParams

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


def evaluate_detections(
    annotations: Path | dict[str, Any], detections: list[dict[str, Any]], *, sigmas: Sequence[float]
) -> Metrics:
    """Evaluates detections once; `OksEvaluator` does it many times on the same ground truth."""
    return OksEvaluator(annotations, sigmas=sigmas).evaluate(detections)


@dataclass(frozen=True)
class Evaluation:
    """What pycocotools found.

    Attributes:
        metrics: The keys of `OKS_METRICS` and `BOX_METRICS`; None where the ground truth has nobody of that kind.
        oks_thresholds: (T,) OKS from which a detection counts as right, .50 to .95.
        recalls: (R,) recall levels, 0 to 1.
        precision: (T, R) interpolated keypoint precision, mean over categories; NaN where there is nobody to find.
        oks_of_image: For each image and category with persons and detections, ((D, G) OKS, G annotation indices,
            D detection indices), detections in order of falling score, indices into the lists that were given.
    """

    metrics: Metrics
    oks_thresholds: np.ndarray
    recalls: np.ndarray
    precision: np.ndarray
    oks_of_image: dict[tuple[int, int], tuple[np.ndarray, list[int], list[int]]]


class OksEvaluator:
    """Ground truth, prepared once and evaluated against as often as needed.

    Args:
        annotations: A COCO keypoint annotation file, or its content, which is left as it is.
        sigmas: K standard deviations of annotation relative to object scale (`Skeleton.sigmas`).

    Attributes:
        images: The entries of the file.
        annotations: The entries of the file.
        persons: Indices of the annotations that must be found: no crowds, at least one labelled keypoint.
        sigmas: (K,) as given.

    Raises:
        PosefoundryError: An annotation names an unknown image or category, lacks its box or area, or has not K * 3
            finite keypoint numbers.
    """

    def __init__(self, annotations: Path | dict[str, Any], *, sigmas: Sequence[float]) -> None:
        where = str(annotations) if isinstance(annotations, Path) else "annotations"
        content = read_json(annotations) if isinstance(annotations, Path) else annotations
        self.sigmas = np.asarray(sigmas, np.float64)
        self.images: list[dict[str, Any]] = content["images"]
        self.annotations: list[dict[str, Any]] = content["annotations"]
        self._image_ids = {image["id"] for image in self.images}
        self._category_ids = {category["id"] for category in content["categories"]}
        self._categories = [{"id": category["id"]} for category in content["categories"]]
        ground_truth = [self._ground_truth(i, annotation, where) for i, annotation in enumerate(self.annotations)]
        self.persons = [i for i, entry in enumerate(ground_truth) if entry["num_keypoints"] and not entry["iscrowd"]]
        self._ground_truth_index = self._index(ground_truth)

    def evaluate(self, detections: list[dict[str, Any]]) -> Metrics:
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

    def evaluate_in_detail(self, detections: list[dict[str, Any]]) -> Evaluation:
        """Evaluates like `evaluate` and returns the curves and the OKS of each pair as well."""
        self._check_ids(detections)
        results_index = self._index([self._result(i, detection) for i, detection in enumerate(detections)])
        poses = COCOeval(self._ground_truth_index, results_index, "keypoints")
        poses.params.kpt_oks_sigmas = self.sigmas
        boxes = COCOeval(self._ground_truth_index, results_index, "bbox")
        metrics: Metrics = {}
        for evaluation, keys in ((poses, OKS_METRICS), (boxes, BOX_METRICS)):
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            # -1 is pycocotools' word for "no such ground truth", which no reader should average or compare.
            values = evaluation.stats[: len(keys)]
            metrics |= {key: None if value < 0 else float(value) for key, value in zip(keys, values, strict=True)}
            if evaluation is poses:
                oks_of_image = self._oks_of_image(poses)
        precision = poses.eval["precision"][:, :, :, 0, 0]  # (T, R, categories) of all areas, 20 detections
        annotated = (precision > -1).any(axis=(0, 1))
        return Evaluation(
            metrics=metrics,
            oks_thresholds=poses.params.iouThrs,
            recalls=poses.params.recThrs,
            precision=precision[:, :, annotated].mean(axis=2)
            if annotated.any()
            else np.full(precision.shape[:2], np.nan),
            oks_of_image=oks_of_image,
        )

    def _ground_truth(self, index: int, annotation: dict[str, Any], where: str) -> dict[str, Any]:
        """Returns a copy with what pycocotools needs and nothing it would trip over."""
        n_numbers = 3 * len(self.sigmas)
        name = f"{where}: annotation {annotation.get('id', f'number {index}')}"
        keypoints = annotation.get("keypoints") or [0] * n_numbers  # as of a person nobody put keypoints on
        if len(keypoints) != n_numbers or not _are_finite(keypoints):
            raise PosefoundryError(f"{name}: expected {n_numbers} finite keypoint numbers, got {keypoints}.")
        for key in ("area", "bbox"):
            if not _are_finite(annotation.get(key)):
                raise PosefoundryError(f"{name}: expected a finite {key!r}, got {annotation.get(key)}.")
        if annotation["image_id"] not in self._image_ids or annotation["category_id"] not in self._category_ids:
            raise PosefoundryError(
                f"{name}: expected an image and a category of the same file, got image_id {annotation['image_id']}, "
                f"category_id {annotation['category_id']}."
            )
        return {
            # Its own numbers: pycocotools takes a person with id 0 for one that was never found.
            "id": index + 1,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": annotation["area"],
            "iscrowd": int(annotation.get("iscrowd") or 0),
            "keypoints": keypoints,
            "num_keypoints": annotation.get("num_keypoints", int(np.count_nonzero(keypoints[2::3]))),
        }

    def _result(self, index: int, detection: dict[str, Any]) -> dict[str, Any]:
        box, keypoints, score = detection["bbox"], detection["keypoints"], detection["score"]
        n_numbers = 3 * len(self.sigmas)
        # A NaN distance would count as a match: pycocotools asks whether it is below the threshold, and no NaN is.
        if len(box) != 4 or len(keypoints) != n_numbers or not _are_finite([score, *box, *keypoints]):
            raise PosefoundryError(
                f"Detection {index}, of image {detection['image_id']}: expected a score, 4 box and {n_numbers} "
                f"keypoint numbers, all finite, got score {score}, bbox {box}, keypoints {keypoints}."
            )
        return {
            "id": index + 1,
            "image_id": detection["image_id"],
            "category_id": detection["category_id"],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "keypoints": keypoints,
            "score": score,
        }

    def _check_ids(self, detections: list[dict[str, Any]]) -> None:
        for key, known in (("image_id", self._image_ids), ("category_id", self._category_ids)):
            unknown = sorted({detection[key] for detection in detections} - known, key=str)
            if unknown:
                named = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
                raise PosefoundryError(
                    f"Expected detections with a known {key} ({len(known)} in the annotations), got {named}. "
                    "Evaluate detections with the annotation file of the images they were made on."
                )

    def _index(self, entries: list[dict[str, Any]]) -> COCO:
        index = COCO()
        index.dataset = {"images": self.images, "categories": self._categories, "annotations": entries}
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index

    def _oks_of_image(self, poses: COCOeval) -> dict[tuple[int, int], tuple[np.ndarray, list[int], list[int]]]:
        found = {}
        for key, oks in poses.ious.items():
            if len(oks):
                by_score = sorted(poses._dts[key], key=lambda entry: -entry["score"])[: len(oks)]
                persons = [entry["id"] - 1 for entry in poses._gts[key]]
                found[key] = (oks, persons, [entry["id"] - 1 for entry in by_score])
        return found


def _are_finite(numbers: Any) -> bool:
    try:
        return bool(np.isfinite(np.asarray(numbers, np.float64)).all())
    except (TypeError, ValueError):
        return False
