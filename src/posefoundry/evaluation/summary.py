"""An evaluation in a few lines, for whoever runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posefoundry.evaluation.slices import ALL
from posefoundry.evaluation.wording import where

MIN_PERSONS = 10  # fewer are no ground for a sentence about a slice
MIN_LOST = 0.0005  # less AP than this would be told as 0.000
KINDS_SHOWN = 3
REFERENCES = {"box": "the box's longer side", "torso": "the torso"}


@dataclass(frozen=True)
class Findings:
    """What stands out in an evaluation.

    Attributes:
        weakest_keypoint: The row of slices.json with the least AP of all keypoints; None without two to choose from.
        weakest_slice: The same of all other slices.
        costly: The kinds of error that cost AP and how much, the most costly first.
    """

    weakest_keypoint: Mapping[str, Any] | None
    weakest_slice: Mapping[str, Any] | None
    costly: tuple[tuple[str, float], ...]


def find(slices: Sequence[Mapping[str, Any]], ap_lost: Mapping[str, float | None]) -> Findings:
    """Finds where the model is weakest and what costs most.

    Args:
        slices: Rows of slices.json.
        ap_lost: By kind of error, how much higher AP were without it; None where not known.
    """
    costly = sorted(((lost, kind) for kind, lost in ap_lost.items() if lost and lost >= MIN_LOST), reverse=True)
    return Findings(
        _weakest(slices, is_keypoint=True),
        _weakest(slices, is_keypoint=False),
        tuple((kind, lost) for lost, kind in costly),
    )


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
    found = find(slices, errors["ap_lost"])
    if found.costly:
        shown = ", ".join(f"{kind.replace('_', ' ')} {lost:.3f}" for kind, lost in found.costly[:KINDS_SHOWN])
        lines.append(f"AP lost most to: {shown}")
    weakest = [
        f"{where(row['slice']).strip()} AP {row['oks_ap']:.3f} ({row['persons']} persons)"
        for row in (found.weakest_keypoint, found.weakest_slice)
        if row
    ]
    if weakest:
        lines.append(f"weakest: {'; '.join(weakest)}")
    return lines


def _weakest(slices: Sequence[Mapping[str, Any]], *, is_keypoint: bool) -> Mapping[str, Any] | None:
    rows = [
        row
        for row in slices
        if (row.get("group") == "keypoint") == is_keypoint
        and row.get("slice") not in (None, ALL)
        and row["oks_ap"] is not None
        and row["persons"] >= MIN_PERSONS
    ]
    return min(rows, key=lambda row: row["oks_ap"]) if len(rows) > 1 else None
