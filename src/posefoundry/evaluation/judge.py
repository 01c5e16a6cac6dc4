"""The one path from weights to numbers, taken for the candidate and for the model in production alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate
from posefoundry.datasets.coco import CocoKeypoints, load_coco_keypoints
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.ground_truth import AREA_RULES, AreaRule
from posefoundry.evaluation.oks import Evaluation, OksEvaluator, to_coco_results
from posefoundry.evaluation.passport import conditions_of_test, software_versions
from posefoundry.files import sha256_of_file
from posefoundry.inference.predictor import Predictor

# Ingest keeps persons of area 0, and one of them should not keep all others from being judged.
AREA_RULE: AreaRule = "annotation_else_box"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judgement:
    """What a model did on a test split.

    Attributes:
        truth: The test split's annotations.
        image_paths: Path of each image, by image id.
        evaluator: The prepared ground truth.
        evaluation: Metrics and curves.
        detections: Entries of a COCO results file.
        passport: On what, by which rules and with what the numbers were measured.
    """

    truth: CocoKeypoints
    image_paths: dict[int, Path]
    evaluator: OksEvaluator
    evaluation: Evaluation
    detections: list[dict[str, Any]]
    passport: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: metrics and counts, flat, so that `dvc metrics show` is a table of numbers."""
        return {
            **self.evaluation.metrics,
            "images": len(self.image_paths),
            "persons": len(self.evaluator.persons),
            "detections": len(self.detections),
        }


def judge_weights(
    weights: Path, annotations: Path, images: Path, settings: Evaluate, *, progress: Progress | None = None
) -> Judgement:
    """Lets a model find the persons of all images and compares them with the annotations.

    Args:
        weights: The model's weights or an exported artifact, whatever `Predictor.load` reads.
        annotations: COCO keypoint file of the test split.
        images: The folder of its images.
        settings: Thresholds and batch size.
        progress: Called as images are done, with the number done and of all.

    Raises:
        PosefoundryError: The model or the data cannot be read, or their keypoints differ.
    """
    predictor = Predictor.load(
        weights, confidence=settings.confidence, nms_iou=settings.nms_iou, max_detections=settings.max_detections
    )
    origin = {"weights_sha256": sha256_of_file(weights), **_runtime(weights)}
    return judge(predictor, annotations, images, settings, origin=origin, progress=progress)


def judge(
    predictor: Predictor,
    annotations: Path,
    images: Path,
    settings: Evaluate,
    *,
    origin: dict[str, Any],
    progress: Progress | None = None,
) -> Judgement:
    """Judges like `judge_weights`, with a predictor at hand; `origin` is what the passport says of its weights."""
    truth = load_coco_keypoints(annotations)
    info = predictor.backend.info
    if info.skeleton.keypoint_names != truth.skeleton.keypoint_names:
        raise PosefoundryError(
            f"The model's keypoints are {_enumerated(info.skeleton.keypoint_names)}, but those annotated in "
            f"{annotations} are {_enumerated(truth.skeleton.keypoint_names)}."
        )
    paths = {image["id"]: images / image["file_name"] for image in truth.images}
    evaluator = evaluator_of(annotations, truth)
    results = predictor.predict(list(paths.values()), batch_size=settings.batch_size, progress=progress)
    detections = [
        detection
        for image_id, result in zip(paths, results, strict=True)
        for detection in to_coco_results(result, image_id, info.category_ids)
    ]
    passport = {
        **conditions_of_test(annotations, list(paths.values()), settings, truth.skeleton.sigmas),
        **({"area_rule": AREA_RULES[AREA_RULE]} if evaluator.truth.areas_from_box else {}),
        "model": info.architecture,
        "head": "several boxes a person, thinned out by NMS" if info.needs_nms else "one box a person",
        "input_size_px": predictor.image_size_px,
        **origin,
        "device": predictor.backend.device_name,
        "versions": software_versions(),
    }
    return Judgement(truth, paths, evaluator, evaluator.evaluate_in_detail(detections), detections, passport)


def evaluator_of(annotations: Path, truth: CocoKeypoints) -> OksEvaluator:
    """Prepares the ground truth for all who judge by this path; `truth` is the content of `annotations`."""
    return OksEvaluator(annotations, sigmas=truth.skeleton.sigmas, area_rule=AREA_RULE)


def _runtime(weights: Path) -> dict[str, str]:
    """Returns what runs a model file; weights are run in float32, an exported model in the precision it has."""
    exported = {".onnx": "onnxruntime", ".engine": "tensorrt"}
    runtime = exported.get(weights.suffix, "pytorch")
    return {"runtime": runtime, "precision": "as exported" if weights.suffix in exported else "float32"}


def _enumerated(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
