"""`YOLO.val`: the judge of the pipeline, for any model and any data set."""

import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefoundry.api.arguments import ValArguments
from posefoundry.api.data import open_data
from posefoundry.api.folders import results_folder
from posefoundry.api.metrics import PoseMetrics, pose_metrics
from posefoundry.config import Evaluate
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.judge import judge
from posefoundry.evaluation.progress import progress_bar
from posefoundry.evaluation.report import write_tables
from posefoundry.files import sha256_of_file
from posefoundry.inference.backends import runtime_of
from posefoundry.inference.predictor import Predictor
from posefoundry.inference.results import PoseResult

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO


def validate(yolo: "YOLO", arguments: ValArguments) -> PoseMetrics:
    """See `YOLO.val`."""
    remembered = yolo._opened.data
    if arguments.data is None and remembered is None:
        raise PosefoundryError("val: expected data=, because these weights do not say what they were trained on.")
    data = open_data(arguments.data or str(remembered))
    settings = Evaluate(
        confidence=arguments.conf, nms_iou=arguments.iou, max_detections=arguments.max_det, batch_size=arguments.batch,
        pck_thresholds=arguments.pck_thresholds, pck_reference=arguments.pck_reference,
        pckh_threshold=arguments.pckh_threshold,
    )  # fmt: skip
    predictor = _Timed(
        yolo.predictor(
            arguments.device,
            arguments.half,
            arguments.end2end,
            image_size_px=arguments.imgsz,
            confidence=settings.confidence,
            nms_iou=settings.nms_iou,
            max_detections=settings.max_detections,
        )
    )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # What the weights remember is the file they were trained on, which is not the one to judge them by.
        named = data.named_split if arguments.data else None
        split = arguments.split or named or "val"
        truth = data.truth(split, scratch)
        progress = stack.enter_context(progress_bar("val") if arguments.verbose else nullcontext())
        origin = {**_origin(yolo, arguments.half), "data": data.name, "split": split, "area_rule": truth.area_rule}
        judgement = judge(
            predictor, truth.annotations, truth.images, settings, origin=origin, tags=arguments.tags, progress=progress
        )
    metrics = pose_metrics(judgement, yolo.names, yolo.details.category_ids, predictor.mean_speed_ms())
    if arguments.save_json:
        folder = results_folder(arguments, "val")
        write_tables(folder, judgement)
        metrics = metrics.in_folder(folder)
    return metrics


class _Timed(Predictor):
    """A predictor that remembers how long its images took."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(
            predictor.backend,
            image_size_px=predictor.image_size_px,
            confidence=predictor.confidence,
            nms_iou=predictor.nms_iou,
            max_detections=predictor.max_detections,
        )
        self._speeds: list[dict[str, float]] = []

    def predict(self, *args: Any, **kwargs: Any) -> list[PoseResult]:
        """See `Predictor.predict`."""
        results = super().predict(*args, **kwargs)
        self._speeds += [result.speed_ms for result in results]
        return results

    def mean_speed_ms(self) -> dict[str, float]:
        """Returns mean ms an image of each stage."""
        stages = self._speeds[0] if self._speeds else {}
        return {stage: sum(speed[stage] for speed in self._speeds) / len(self._speeds) for stage in stages}


def _origin(yolo: "YOLO", half: bool) -> dict[str, str]:
    path = yolo._opened.path
    runtime = runtime_of(path)
    precision = "as exported" if runtime != "pytorch" else "float16" if half else "float32"
    weights = {"weights_sha256": sha256_of_file(path)} if path and path.is_file() else {}
    return {**weights, "runtime": runtime, "precision": precision}
