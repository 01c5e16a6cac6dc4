"""A row for each image: who is in it, who was found, and how well."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posefoundry.evaluation.matching import SEEN_CONFIDENCE, image_scores
from posefoundry.evaluation.oks import Evaluation
from posefoundry.evaluation.pck import Placement


def image_rows(
    images: Sequence[Mapping[str, Any]],
    evaluation: Evaluation,
    placement: Placement,
    tags: Mapping[str, Sequence[str | None]],
) -> list[dict[str, Any]]:
    """Returns the content of images.json, in order of image id.

    A person is found if its detection has an OKS of .50 or more. `score`, `mean_oks` and `false_positives` are those of
    `ImageScores`, None where there is nothing to score; so is `mean_score` where nothing was seen.

    Args:
        images: The entries of the annotation file.
        evaluation: Of all detections.
        placement: Who was found.
        tags: For each tag its value in each image, in order of id.
    """
    truth, found = evaluation.truth, evaluation.found
    n, must = len(truth.image_ids), ~truth.is_ignored
    scores = image_scores(evaluation, placement.partner, placement.oks)
    n_found = np.bincount(truth.image[must & placement.is_found], minlength=n)
    least = np.full(n, np.nan)
    np.fmin.at(least, truth.image[must], placement.oks[must])
    is_seen = found.scores >= SEEN_CONFIDENCE
    n_seen = np.bincount(found.image[is_seen], minlength=n)
    score_sum = np.bincount(found.image[is_seen], found.scores[is_seen], minlength=n)
    name_of = {image["id"]: image["file_name"] for image in images}
    return [
        {
            "image_id": image_id,
            "file_name": name_of[image_id],
            "persons": int(scores.persons[i]),
            "found": int(n_found[i]),
            "missed": int(scores.persons[i] - n_found[i]),
            "false_positives": int(scores.false_positives[i]),
            "score": _or_none(scores.score[i]),
            "mean_oks": _or_none(scores.mean_oks[i]),
            "min_oks": _or_none(least[i]),
            "mean_score": float(score_sum[i] / n_seen[i]) if n_seen[i] else None,
            "tags": {tag: values[i] for tag, values in tags.items() if values[i] is not None},
        }
        for i, image_id in enumerate(truth.image_ids)
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
