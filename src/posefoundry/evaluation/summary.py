"""An evaluation in a few lines, for whoever runs it."""

from collections.abc import Mapping, Sequence
from typing import Any

from posefoundry.evaluation.slices import ALL

MIN_PERSONS = 10  # fewer are no ground for a sentence about a slice
KINDS_SHOWN = 3
REFERENCES = {"box": "the box's longer side", "torso": "the torso"}


def summary(
    metrics: Mapping[str, Any], slices: Sequence[Mapping[str, Any]], errors: Mapping[str, Any], reference: str
) -> list[str]:
    """Returns how exact keypoints are, what kinds of error cost most, and where the model is weakest.

    Args:
        metrics: The content of metrics.json.
        slices: The content of slices.json.
        errors: The content of errors.json.
        reference: What PCK measures a person by, `box` or `torso`.
    """
    lines = []
    exact = {key: value for key, value in metrics.items() if key.startswith(("pck_", "pckh_")) and value is not None}
    if exact:
        shown = ", ".join(f"{key.replace('pck', 'PCK').replace('_', '@')} {value:.3f}" for key, value in exact.items())
        lines.append(f"{shown} of {REFERENCES[reference]}")
    if metrics["mean_error_px"] is not None:
        part = "" if metrics["normalised_error"] is None else f", {metrics['normalised_error']:.1%} of that size"
        lines.append(f"keypoints of persons found are {metrics['mean_error_px']:.1f} px off on average{part}")
    costly = sorted(((lost, kind) for kind, lost in errors["ap_lost"].items() if lost), reverse=True)[:KINDS_SHOWN]
    if any(lost >= 0.0005 for lost, _ in costly):
        shown = ", ".join(f"{kind.replace('_', ' ')} {lost:.3f}" for lost, kind in costly if lost >= 0.0005)
        lines.append(f"AP lost most to: {shown}")
    weakest = [
        f"{row['slice']} AP {row['oks_ap']:.3f} ({row['persons']} persons)"
        for row in (_weakest(slices, is_keypoint=True), _weakest(slices, is_keypoint=False))
        if row
    ]
    if weakest:
        lines.append(f"weakest: {'; '.join(weakest)}")
    return lines


def _weakest(slices: Sequence[Mapping[str, Any]], *, is_keypoint: bool) -> Mapping[str, Any] | None:
    rows = [
        row
        for row in slices
        if (row["group"] == "keypoint") == is_keypoint
        and row["slice"] != ALL
        and row["oks_ap"] is not None
        and row["persons"] >= MIN_PERSONS
    ]
    return min(rows, key=lambda row: row["oks_ap"]) if len(rows) > 1 else None
