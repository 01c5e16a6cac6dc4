"""The one path from weights to numbers, taken for the candidate and for the model in production alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate
from posefoundry.datasets.coco import CocoKeypoints, load_coco_keypoints
from posefoundry.datasets.tags import read_tags
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.error_types import diagnose
from posefoundry.evaluation.ground_truth import AREA_RULES, PIPELINE_AREA_RULE
from posefoundry.evaluation.matching import SEEN_CONFIDENCE, Match, match_persons
from posefoundry.evaluation.oks import Evaluation, Metrics, OksEvaluator, to_coco_results
from posefoundry.evaluation.passport import SOFTWARE_OF_RUNTIME, conditions_of_test, software_versions
from posefoundry.evaluation.pck import Placement, check_reference, place, placement_figures
from posefoundry.evaluation.slice_table import slice_rows
from posefoundry.evaluation.slices import ALL, tag_columns
from posefoundry.evaluation.summary import summary
from posefoundry.evaluation.warnings import flat_sigma_warning
from posefoundry.files import sha256_of_file
from posefoundry.inference.backends import runtime_of
from posefoundry.inference.predictor import Predictor

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
        settings: By which it was judged.
    """

    truth: CocoKeypoints
    image_paths: dict[int, Path]
    evaluator: OksEvaluator
    evaluation: Evaluation
    detections: list[dict[str, Any]]
    passport: dict[str, Any]
    settings: Evaluate

    @cached_property
    def placement(self) -> Placement:
        """How far each person's keypoints are from where they should be."""
        return place(self.evaluation, self.evaluator.keypoint_names, self.settings.pck_reference)

    @cached_property
    def keypoints(self) -> Metrics:
        """PCK, PCKh and mean errors of all keypoints."""
        everybody = self.evaluation.slicer.population(ALL)
        return placement_figures(self.placement, everybody, self.evaluator.truth.image, self.settings)

    @cached_property
    def matches(self) -> list[Match]:
        """Each person and the detection that speaks for it."""
        return match_persons(self.evaluator, self.evaluation, self.detections)

    @cached_property
    def slices(self) -> list[dict[str, Any]]:
        """The content of slices.json."""
        return slice_rows(self.evaluation, self.placement, self.settings)

    @cached_property
    def errors(self) -> dict[str, Any]:
        """The content of errors.json."""
        return diagnose(self.evaluation, self.evaluator.keypoint_names)

    @cached_property
    def warnings(self) -> list[str]:
        """What a reader of the numbers must be told, in sentences."""
        sigmas, oks_ap = self.evaluator.sigmas.tolist(), self.evaluation.metrics["oks_ap"]
        warning = flat_sigma_warning(sigmas, oks_ap, self.matches)
        return [warning] if warning else []

    @property
    def summary(self) -> list[str]:
        """How exact keypoints are, what costs most, and where the model is weakest, in a few lines."""
        return summary(self.metrics, self.slices, self.errors, self.settings.pck_reference)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: metrics and counts, flat, so that `dvc metrics show` is a table of numbers."""
        return {
            **self.evaluation.metrics,
            **self.keypoints,
            "images": len(self.image_paths),
            "persons": len(self.evaluator.persons),
            "detections": len(self.detections),
        }


def judge_weights(
    weights: Path,
    annotations: Path,
    images: Path,
    settings: Evaluate,
    *,
    tags: Path | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Lets a model find the persons of all images and compares them with the annotations.

    Args:
        weights: The model's weights or an exported artifact, whatever `Predictor.load` reads.
        annotations: COCO keypoint file of the test split.
        images: The folder of its images.
        settings: Thresholds, batch size, and which slices to look at.
        tags: A CSV file with tags of the images, by which to slice as well.
        progress: Called as images are done, with the number done and of all.

    Raises:
        PosefoundryError: The model or the data cannot be read, or their keypoints differ.
    """
    predictor = Predictor.load(
        weights, confidence=settings.confidence, nms_iou=settings.nms_iou, max_detections=settings.max_detections
    )
    origin = {"weights_sha256": sha256_of_file(weights), **_runtime(weights)}
    return judge(predictor, annotations, images, settings, origin=origin, tags=tags, progress=progress)


def judge(
    predictor: Predictor,
    annotations: Path,
    images: Path,
    settings: Evaluate,
    *,
    origin: dict[str, Any],
    tags: Path | None = None,
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
    evaluator = evaluator_of(annotations, truth, tags, settings.crossed_slices)
    check_reference(settings.pck_reference, evaluator.keypoint_names)
    results = predictor.predict(list(paths.values()), batch_size=settings.batch_size, progress=progress)
    detections = [
        detection
        for image_id, result in zip(paths, results, strict=True)
        for detection in to_coco_results(result, image_id, info.category_ids)
    ]
    passport = {
        **conditions_of_test(annotations, list(paths.values()), settings, truth.skeleton.sigmas),
        "model": info.architecture,
        "head": "several boxes a person, thinned out by NMS" if info.needs_nms else "one box a person",
        "input_size_px": predictor.image_size_px,
        **origin,
        "pck_min_score": SEEN_CONFIDENCE,  # told, not compared: models judged before it was told were judged by it too
        **({"area_rule": AREA_RULES[PIPELINE_AREA_RULE]} if evaluator.truth.areas_from_box else {}),
        "device": predictor.backend.device_name,
        "versions": software_versions(*SOFTWARE_OF_RUNTIME.get(origin.get("runtime", ""), ())),
    }
    return Judgement(truth, paths, evaluator, evaluator.evaluate_in_detail(detections), detections, passport, settings)


def evaluator_of(
    annotations: Path, truth: CocoKeypoints, tags: Path | None = None, crossed: Sequence[str] = ()
) -> OksEvaluator:
    """Prepares the ground truth for all who judge by this path.

    Args:
        annotations: COCO keypoint file.
        truth: Its content.
        tags: A CSV file with tags of its images.
        crossed: Crossed slices to look at.

    Raises:
        PosefoundryError: The tags cannot be read or name images that are not there.
    """
    names = [image["file_name"] for image in truth.images]
    values = tag_columns(read_tags(tags, where="tags", file_names=names), names) if tags else {}
    return OksEvaluator(
        annotations, sigmas=truth.skeleton.sigmas, area_rule=PIPELINE_AREA_RULE, tags=values, crossed=crossed
    )


def _runtime(weights: Path) -> dict[str, str]:
    """Returns what runs a model file; weights are run in float32, an exported model in the precision it has."""
    runtime = runtime_of(weights)
    return {"runtime": runtime, "precision": "float32" if runtime == "pytorch" else "as exported"}


def _enumerated(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
