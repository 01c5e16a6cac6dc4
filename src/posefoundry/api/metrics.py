"""Average precision as people of YOLO read it: `metrics.box.map`, `metrics.pose.map50`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posefoundry.evaluation.ground_truth import PIPELINE_AREA_RULE
from posefoundry.evaluation.judge import Judgement
from posefoundry.evaluation.oks import Metrics, OksEvaluator


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """AP of boxes (by IoU) or of poses (by OKS), by COCO's rules; NaN where the data has nobody of that kind.

    Attributes:
        map: Mean over the thresholds .50, .55, ... .95, and over the classes.
        map50: At .50.
        map75: At .75.
        maps: `map` of each class, by class index.
    """

    map: float
    map50: float
    map75: float
    maps: list[float]


@dataclass(frozen=True, kw_only=True)
class PoseMetrics:
    """What `val` found.

    Attributes:
        box: AP of the boxes.
        pose: AP of the keypoints, by OKS.
        names: Class index -> name.
        speed: Mean ms an image for `preprocess`, `inference`, `postprocess`.
        coco: All numbers of COCO's two tables, as `oks_ap_m`; None where the data has nobody of that kind.
        keypoints: PCK, PCKh and mean errors of the keypoints; None where there is nothing to measure.
        slices: For each slice its counts and figures, as slices.json of an evaluation's report.
        errors: How often each kind of error is, and the AP it costs, as errors.json.
        summary: How exact keypoints are, what costs most and where the model is weakest, in a few lines.
        warnings: What a reader of the numbers must be told, in sentences.
        passport: On what, by which rules and with what it was measured.
        save_dir: Where the weights or reports of this run are; None if nothing was written.
    """

    box: AveragePrecision
    pose: AveragePrecision
    names: dict[int, str]
    speed: dict[str, float]
    coco: Metrics
    keypoints: Metrics
    slices: list[dict[str, Any]]
    errors: dict[str, Any]
    summary: list[str]
    warnings: list[str]
    passport: dict[str, Any]
    save_dir: Path | None = None

    @property
    def results_dict(self) -> dict[str, float]:
        """The main numbers by the field's names."""
        return {
            "metrics/mAP50(B)": self.box.map50,
            "metrics/mAP50-95(B)": self.box.map,
            "metrics/mAP50(P)": self.pose.map50,
            "metrics/mAP50-95(P)": self.pose.map,
            "fitness": self.fitness,
        }

    @property
    def fitness(self) -> float:
        """What decides which weights are best: OKS AP."""
        return self.pose.map

    def in_folder(self, save_dir: Path) -> "PoseMetrics":
        """Returns the same with `save_dir`."""
        return replace(self, save_dir=save_dir)

    def __str__(self) -> str:
        rows = [("box", self.box), ("pose", self.pose)]
        lines = [f"{name:5} mAP50-95 {ap.map:.3f}  mAP50 {ap.map50:.3f}  mAP75 {ap.map75:.3f}" for name, ap in rows]
        judged = f"{self.passport['images']} images, {self.passport['split']} of {self.passport['data']}"
        return "\n".join([*lines, *self.summary, f"{judged}; {self.passport['area_rule']}"])


def pose_metrics(judgement: Judgement, names: dict[int, str], category_ids: tuple[int, ...], speed: dict[str, float]) \
        -> PoseMetrics:  # fmt: skip
    """Puts a judgement into the field's form."""
    overall = judgement.evaluation.metrics
    by_class = [overall] if len(names) == 1 else [_of_category(judgement, category) for category in category_ids]
    return PoseMetrics(
        box=_average_precision("box_ap", overall, by_class),
        pose=_average_precision("oks_ap", overall, by_class),
        names=names,
        speed=speed,
        coco=overall,
        keypoints=judgement.keypoints,
        slices=judgement.slices,
        errors=judgement.errors,
        summary=judgement.summary,
        warnings=judgement.warnings,
        passport=judgement.passport,
    )


def _average_precision(key: str, overall: Metrics, by_class: list[Metrics]) -> AveragePrecision:
    return AveragePrecision(
        map=_number(overall[key]),
        map50=_number(overall[f"{key}50"]),
        map75=_number(overall[f"{key}75"]),
        maps=[_number(metrics[key]) for metrics in by_class],
    )


def _of_category(judgement: Judgement, category_id: int) -> Metrics:
    truth = judgement.truth
    content = {
        "images": truth.images,
        "annotations": [entry for entry in truth.annotations if entry["category_id"] == category_id],
        "categories": [{"id": category_id}],
    }
    detections = [entry for entry in judgement.detections if entry["category_id"] == category_id]
    sigmas = judgement.evaluator.sigmas.tolist()
    return OksEvaluator(content, sigmas=sigmas, area_rule=PIPELINE_AREA_RULE).evaluate(detections)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
