"""What an evaluation leaves behind for people, for `dvc plots` and for the gate."""

import json
from pathlib import Path
from typing import Any

from posefoundry.evaluation.calibration import calibration
from posefoundry.evaluation.confusion import class_confusion
from posefoundry.evaluation.curves import person_csv, precision_recall_csv
from posefoundry.evaluation.image_table import image_rows
from posefoundry.evaluation.judge import Judgement
from posefoundry.evaluation.matching import keypoint_errors
from posefoundry.evaluation.overlays import draw_overlays
from posefoundry.evaluation.plots import draw_plots
from posefoundry.evaluation.slices import ALL
from posefoundry.files import write_json_atomic


def write_report(folder: Path, judgement: Judgement, *, overlay_images: int) -> None:
    """Writes the tables of `write_tables`, plots/ and overlays/."""
    rows = write_tables(folder, judgement)
    evaluator, evaluation, matches = judgement.evaluator, judgement.evaluation, judgement.matches
    skeleton = judgement.truth.skeleton
    title = f"{judgement.passport['model']}, {len(judgement.image_paths)} test images, {len(matches)} persons"
    errors = keypoint_errors(matches, evaluator.sigmas)
    draw_plots(folder / "plots", evaluation, matches, errors, skeleton.keypoint_names, title)
    draw_overlays(
        folder / "overlays", judgement.image_paths, evaluator.annotations, judgement.detections, matches, rows,
        skeleton, overlay_images,
    )  # fmt: skip


def write_tables(folder: Path, judgement: Judgement) -> list[dict[str, Any]]:
    """Writes metrics.json, its passport.json, detections.json, and tables; returns the rows of images.json.

    The tables are slices.json, images.json, errors.json by kind of error, calibration.json by score, classes.json,
    pr_curve.csv and oks_hist.csv by person. warnings.json holds what a reader of the numbers must be told, as a list of
    sentences.
    """
    evaluator, evaluation = judgement.evaluator, judgement.evaluation
    rows = image_rows(evaluator.images, evaluation, judgement.placement, evaluator.tags)
    content = {
        "metrics": judgement.metrics,
        "passport": judgement.passport,
        "warnings": judgement.warnings,
        "slices": judgement.slices,
        "images": rows,
        "errors": judgement.errors,
        "calibration": calibration(evaluation.slices[ALL]),
        "classes": class_confusion(evaluation, evaluator.class_names),
    }
    for name, value in content.items():
        write_json_atomic(folder / f"{name}.json", value)
    # Compact: a COCO results file is for programs, and thousands of detections indented are ten times the lines.
    detections = json.dumps(judgement.detections, separators=(",", ":"), allow_nan=False)
    (folder / "detections.json").write_text(detections)
    (folder / "pr_curve.csv").write_text(precision_recall_csv(evaluation))
    (folder / "oks_hist.csv").write_text(person_csv(judgement.matches))
    return rows
