"""Stage evaluate: how good the best weights are on images that nobody has trained or chosen by."""

from pathlib import Path

from posefoundry.config import Evaluate
from posefoundry.datasets.tags import TAGS_NAME
from posefoundry.evaluation.html import write_evaluation_page
from posefoundry.evaluation.judge import judge_weights
from posefoundry.evaluation.progress import progress_bar
from posefoundry.evaluation.report import write_report
from posefoundry.files import atomic_directory
from posefoundry.registry.runs import log_to_run
from posefoundry.stages import forget_finished_trainings
from posefoundry.stages.runner import run_as_command

SPLIT = "test"
LOGGED = (
    "index.html", "metrics.json", "passport.json", "warnings.json", "slices.json", "images.json", "errors.json",
    "calibration.json", "classes.json", "pr_curve.csv", "oks_hist.csv", "plots", "overlays",
)  # fmt: skip


def run(settings: Evaluate, *, raw: Path, weights: Path, run: Path, checkpoints: Path, report: Path) -> None:
    """Judges the best weights on the test split: OKS and box AP, curves, and pictures of the worst and best images."""
    forget_finished_trainings(checkpoints)  # DVC has recorded what they made
    annotations, images = raw / "annotations" / f"{SPLIT}.json", raw / "images" / SPLIT
    with progress_bar("evaluate") as progress:
        judgement = judge_weights(weights, annotations, images, settings, tags=raw / TAGS_NAME, progress=progress)
    with atomic_directory(report) as folder:
        write_report(folder, judgement, overlay_images=settings.overlay_images)
        write_evaluation_page(folder, annotations=annotations, images=images)
    metrics = judgement.evaluation.metrics
    log_to_run(
        run,
        {f"{SPLIT}_{name}": value for name, value in judgement.metrics.items()},
        [report / name for name in LOGGED],
        {"test_images_sha256": judgement.passport["images_sha256"]},
        stage="evaluate",
    )
    shown = {"OKS AP": "oks_ap", "AP50": "oks_ap50", "AP75": "oks_ap75", "AR": "oks_ar", "box AP": "box_ap"}
    figures = (f"{name} {'n/a' if (value := metrics[key]) is None else f'{value:.3f}'}" for name, key in shown.items())
    print(f"{len(judgement.image_paths)} test images: {', '.join(figures)} -> {report}")
    for line in judgement.summary:
        print(f"  {line}")
    for sentence in judgement.warnings:
        print(f"Warning: {sentence}")


if __name__ == "__main__":
    run_as_command("evaluate", run)
