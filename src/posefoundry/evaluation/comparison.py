"""Two models on the same images: what the gate's rules need to know, and what a reader of its decision wants to see."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posefoundry.config import Floor, Gate, Improvement, NoRegression
from posefoundry.evaluation.bootstrap import Resampled, resample_differences
from posefoundry.evaluation.fast_oks import THRESHOLD_OF_AP
from posefoundry.evaluation.intervals import (
    confidence_interval,
    holm,
    p_value_not_above,
    p_value_not_below,
    p_value_two_sided,
)
from posefoundry.evaluation.matching import image_scores, partners
from posefoundry.evaluation.oks import Evaluation, OksEvaluator, average
from posefoundry.evaluation.rules import MIN_IMAGES
from posefoundry.evaluation.slices import ALL, Slicer

CHANGED_IMAGES = 12  # shown of each, those that got better and those that got worse
MAX_SHOWN_VALUES = 20  # of a tag that is shown unasked
LEAST_CHANGE = 0.05  # of an image's score; less is no change that anybody would see


def named_slices(slicer: Slicer, settings: Gate, tags: Mapping[str, Sequence[str | None]]) -> dict[str, list[str]]:
    """Returns for each name of the settings, and for each tag of the images, the slices it stands for.

    Args:
        slicer: The slices that there are.
        settings: Of which slices some are named.
        tags: The images' tags with their values; those of many values are for other uses, and only shown if named.

    Raises:
        PosefoundryError: There is no such slice in this data.
    """
    few = [tag for tag, values in tags.items() if 0 < len(set(values) - {None}) <= MAX_SHOWN_VALUES]
    names = [ALL, *settings.shown_slices, *few]
    for rule in settings.rules:
        if isinstance(rule, Floor | Improvement):
            names.append(rule.slice)
        elif isinstance(rule, NoRegression):
            names += rule.slices
    return {name: _expanded(slicer, name) for name in dict.fromkeys(names)}


def _expanded(slicer: Slicer, name: str) -> list[str]:
    wanted = name.split("&")
    found = []
    for known in slicer.names([name]):
        parts = known.split("&")
        if len(parts) == len(wanted) and all(
            part == w or part.startswith(f"{w}=") for part, w in zip(parts, wanted, strict=True)
        ):
            found.append(known)
    return found


def slice_metrics(evaluation: Evaluation, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Returns AP, AP50 and AP75 of slices."""
    if not names:
        return {}
    matches = evaluation.slicer.matches(evaluation.found, evaluation.similarity, names)
    return {name: {metric: average(matches[name], at) for metric, at in THRESHOLD_OF_AP.items()} for name in names}


def compare(
    candidate: Evaluation, production: Evaluation, settings: Gate, names: Sequence[str]
) -> dict[str, Resampled]:
    """Resamples both models' AP in each slice."""
    of_candidate, of_production = (
        model.slicer.matches(model.found, model.similarity, names) for model in (candidate, production)
    )
    slices = {name: (of_candidate[name], of_production[name]) for name in names}
    return resample_differences(slices, resamples=settings.resamples, seed=settings.seed)


def differences(resampled: Mapping[str, Resampled], confidence: float) -> list[dict[str, Any]]:
    """Returns one row a slice with people in it: both models' AP, its difference, and how sure that is.

    The p values are two-sided; corrected, they are those of looking at all these slices at once. By the corrected ones
    a difference is proven, `better` or `worse` as its interval says, or not, None.
    """
    shown = {name: (entry, entry.of("oks_ap")) for name, entry in resampled.items() if entry.persons}
    p_values = {
        name: p_value_two_sided(difference.resampled, entry.images)
        for name, (entry, difference) in shown.items()
        if entry.images >= MIN_IMAGES
    }
    corrected = holm(p_values)
    return [
        {
            "slice": name,
            "persons": entry.persons,
            "images": entry.images,
            "candidate": difference.candidate,
            "production": difference.production,
            "difference": difference.value,
            "interval": confidence_interval(difference.resampled, confidence, entry.images),
            "p_value": p_values.get(name),
            "p_value_holm": corrected.get(name),
            "proven": _side(difference.resampled, entry.images) if corrected.get(name, 1.0) <= 1 - confidence else None,
        }
        for name, (entry, difference) in shown.items()
    ]


def _side(resampled: np.ndarray, images: int) -> str:
    """Returns on which side of nothing the interval lies; the observed difference may lie outside of it."""
    is_above = p_value_not_above(resampled, 0.0, images) < p_value_not_below(resampled, 0.0, images)
    return "better" if is_above else "worse"


def changed_images(
    evaluator: OksEvaluator, candidate: Evaluation, production: Evaluation
) -> dict[str, list[dict[str, Any]]]:
    """Returns the images that the candidate sees better, and worse, than production; the most changed first.

    Each has of both models the `score` (see `ImageScores`; 1 where nobody is and nobody was seen), by whose difference
    they are ranked, `mean_oks` and `false_positives`.

    Args:
        evaluator: The ground truth.
        candidate: Its evaluation.
        production: Likewise.
    """
    models = {"candidate": candidate, "production": production}
    seen = {name: image_scores(evaluation, *partners(evaluation)) for name, evaluation in models.items()}
    score = {name: np.where(np.isnan(scores.score), 1.0, scores.score) for name, scores in seen.items()}
    names = {image["id"]: image["file_name"] for image in evaluator.images}

    def row(i: int) -> dict[str, Any]:
        image_id = candidate.truth.image_ids[i]
        of_models = {
            name: {
                "score": float(score[name][i]),
                "mean_oks": float(scores.mean_oks[i]) if scores.persons[i] else None,
                "false_positives": int(scores.false_positives[i]),
            }
            for name, scores in seen.items()
        }
        return {"image_id": image_id, "file_name": names[image_id], **of_models}

    change = score["candidate"] - score["production"]
    order = np.argsort(-change, kind="stable").tolist()
    return {
        "better": [row(i) for i in order if change[i] >= LEAST_CHANGE][:CHANGED_IMAGES],
        "worse": [row(i) for i in reversed(order) if change[i] <= -LEAST_CHANGE][:CHANGED_IMAGES],
    }
