"""What an evaluation leaves behind for people, for `dvc plots` and for the gate."""

import json
from pathlib import Path

from posefoundry.evaluation.calibration import calibration
from posefoundry.evaluation.confusion import class_confusion
from posefoundry.evaluation.curves import person_csv, precision_recall_csv
from posefoundry.evaluation.error_types import diagnose
from posefoundry.evaluation.image_table import image_rows
from posefoundry.evaluation.judge import Judgement
from posefoundry.evaluation.matching import keypoint_errors, match_persons
from posefoundry.evaluation.overlays import draw_overlays
from posefoundry.evaluation.plots import draw_plots
from posefoundry.evaluation.slice_table import slice_rows
from posefoundry.evaluation.slices import ALL
from posefoundry.evaluation.warnings import flat_sigma_warning
from posefoundry.files import write_json_atomic


def write_report(folder: Path, judgement: Judgement, *, overlay_images: int) -> None:
    """Writes metrics.json and its passport.json, detections.json, tables, plots/ and overlays/.

    The tables are pr_curve.csv, oks_hist.csv, and by slice, image, kind of error, score and class slices.json,
    images.json, errors.json, calibration.json and classes.json.
    warnings.json holds what a reader of the numbers must be told, as a list of sentences.
    """
    evaluator, evaluation, detections = judgement.evaluator, judgement.evaluation, judgement.detections
    matches = match_persons(evaluator, evaluation, detections)
    write_json_atomic(folder / "metrics.json", judgement.metrics)
    write_json_atomic(folder / "passport.json", judgement.passport)
    warning = flat_sigma_warning(evaluator.sigmas.tolist(), evaluation.metrics["oks_ap"], matches)
    write_json_atomic(folder / "warnings.json", [warning] if warning else [])
    # Compact: a COCO results file is for programs, and thousands of detections indented are ten times the lines.
    (folder / "detections.json").write_text(json.dumps(detections, separators=(",", ":"), allow_nan=False))
    write_json_atomic(folder / "slices.json", slice_rows(evaluation, judgement.placement, judgement.settings))
    images = image_rows(evaluator.images, evaluation, judgement.placement, evaluator.tags)
    write_json_atomic(folder / "images.json", images)
    write_json_atomic(folder / "errors.json", diagnose(evaluation, evaluator.keypoint_names))
    write_json_atomic(folder / "calibration.json", calibration(evaluation.slices[ALL]))
    write_json_atomic(folder / "classes.json", class_confusion(evaluation, evaluator.class_names))
    (folder / "pr_curve.csv").write_text(precision_recall_csv(evaluation))
    (folder / "oks_hist.csv").write_text(person_csv(matches))
    skeleton = judgement.truth.skeleton
    title = f"{judgement.passport['model']}, {len(judgement.image_paths)} test images, {len(matches)} persons"
    errors = keypoint_errors(matches, evaluator.sigmas)
    draw_plots(folder / "plots", evaluation, matches, errors, skeleton.keypoint_names, title)
    draw_overlays(
        folder / "overlays", judgement.image_paths, evaluator.annotations, detections, matches, skeleton, overlay_images
    )
