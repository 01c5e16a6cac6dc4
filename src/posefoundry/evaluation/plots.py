"""Pictures of an evaluation: precision-recall curves, OKS of persons, exactness of each keypoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posefoundry.evaluation.curves import precision_columns
from posefoundry.evaluation.matching import KeypointErrors, Match
from posefoundry.evaluation.oks import Evaluation

BLUE, ORANGE, GREEN, INK, GRID = "#2563a8", "#e07b39", "#3a8f5c", "#333333", "#d9d9d9"


def draw_plots(
    folder: Path,
    evaluation: Evaluation,
    matches: Sequence[Match],
    errors: KeypointErrors,
    keypoint_names: Sequence[str],
    title: str,
) -> None:
    """Writes precision_recall.png, oks_distribution.png and keypoints.png.

    Args:
        folder: Where to; created if missing.
        evaluation: The curves.
        matches: The persons.
        errors: What `keypoint_errors` measured.
        keypoint_names: K names.
        title: What was judged, shown in each picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _precision_recall(folder / "precision_recall.png", evaluation, title)
    _oks_distribution(folder / "oks_distribution.png", [match.oks for match in matches], title)
    _keypoints(folder / "keypoints.png", errors, keypoint_names, len(matches), title)


def _precision_recall(path: Path, evaluation: Evaluation, title: str) -> None:
    figure, axes = _figure(1, (6.4, 4.8))
    metrics = evaluation.metrics
    labels = {
        "precision_oks50": ("OKS .50", metrics["oks_ap50"], GREEN),
        "precision_oks75": ("OKS .75", metrics["oks_ap75"], ORANGE),
        "precision_oks50_95": ("OKS .50 to .95, mean", metrics["oks_ap"], BLUE),
    }
    for column, precision in precision_columns(evaluation).items():
        label, average, colour = labels[column]
        shown = "no persons" if average is None else f"AP {average:.3f}"
        axes[0].plot(evaluation.recalls, precision, color=colour, linewidth=2, label=f"{label}: {shown}")
        axes[0].fill_between(evaluation.recalls, precision, color=colour, alpha=0.06)
    axes[0].set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].legend(loc="lower left", frameon=False)
    _finish(figure, path, f"Keypoint precision and recall\n{title}")


def _oks_distribution(path: Path, oks: Sequence[float], title: str) -> None:
    figure, axes = _figure(1, (6.4, 4.8))
    values = np.asarray(oks)
    counts, edges = np.histogram(values, bins=20, range=(0, 1))
    axes[0].bar(edges[:-1], counts, width=0.05, align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    top = max(1, int(counts.max())) * 1.15
    for threshold in (0.5, 0.75):
        axes[0].axvline(threshold, color=ORANGE, linestyle="--", linewidth=1.2)
        share = f"{(values >= threshold).mean():.0%}" if values.size else "none"
        axes[0].text(threshold + 0.01, top * 0.94, f"{share} at or\nabove {threshold:.2f}", color=ORANGE, fontsize=9,
                     va="top")  # fmt: skip
    axes[0].set(xlabel="OKS of the closest detection with a score of .25 or more (0: missed)", ylabel="persons")
    axes[0].set(xlim=(0, 1), ylim=(0, top))
    average = f"mean {values.mean():.3f}, median {np.median(values):.3f}" if values.size else "none annotated"
    _finish(figure, path, f"OKS of {values.size} persons: {average}\n{title}")


def _keypoints(path: Path, errors: KeypointErrors, names: Sequence[str], n_persons: int, title: str) -> None:
    figure, axes = _figure(2, (9.6, max(3.2, 0.27 * len(names) + 1.6)))
    rows = np.arange(len(names))
    for axis, values, colour, label, form in (
        (axes[0], errors.similarity, BLUE, "mean similarity (1: exact)", "{:.2f}"),
        (axes[1], errors.error_px, ORANGE, "median distance (px of the source image)", "{:.1f}"),
    ):
        shown = np.nan_to_num(values)
        axis.barh(rows, shown, color=colour, height=0.7)
        limit = 1.12 if axis is axes[0] else max(float(shown.max()) * 1.18, 1e-3)
        for row, value in enumerate(values):
            text = form.format(value) if np.isfinite(value) else "not labelled"
            axis.text(shown[row] + limit * 0.01, row, text, va="center", fontsize=8, color=INK)
        axis.set(xlabel=label, xlim=(0, limit), ylim=(len(names) - 0.4, -0.6))
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(rows, [f"{name.replace('_', ' ')} ({n})" for name, n in zip(names, errors.count, strict=True)])
    axes[1].set_yticks(rows, [""] * len(names))
    found = f"{errors.persons_found} of {n_persons} persons found (OKS at least .50)"
    _finish(figure, path, f"Exactness of each keypoint, labelled counts in brackets; {found}\n{title}")


def _figure(columns: int, size_inch: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # its own canvas: no display, no global state

    figure = Figure(figsize=size_inch, dpi=120, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GRID)
        axis.tick_params(colors=INK, length=0, labelsize=9)
    return figure, axes


def _finish(figure: Any, path: Path, title: str) -> None:
    heading, _, subject = title.partition("\n")
    figure.suptitle(f"{heading}\n", x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.text(0.012, 0.985, f"\n{subject}", ha="left", va="top", fontsize=9, color="#777777", linespacing=1.6)
    # Without the date of drawing, so that the same numbers give the same bytes.
    figure.savefig(path, metadata={"Software": None})
