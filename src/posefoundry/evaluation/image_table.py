"""A row for each image: who is in it, who was found, and how well."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posefoundry.evaluation.matching import FOUND_OKS, SEEN_CONFIDENCE
from posefoundry.evaluation.oks import Evaluation
from posefoundry.evaluation.pck import Placement


def image_rows(
    images: Sequence[Mapping[str, Any]],
    evaluation: Evaluation,
    placement: Placement,
    tags: Mapping[str, Sequence[str | None]],
) -> list[dict[str, Any]]:
    """Returns the content of images.json, in order of image id.

    A person is found if its detection has an OKS of .50 or more. A false positive is a detection with a score of .25 or
    more, of the 20 best of its image, that found nobody and lies on no crowd or person without keypoints. `mean_oks`
    counts a missed person 0; it is None where nobody is to be found, and `mean_score` where nothing was seen.

    Args:
        images: The entries of the annotation file.
        evaluation: Of all detections.
        placement: Who was found.
        tags: For each tag its value in each image, in order of id.
    """
    truth, found = evaluation.truth, evaluation.found
    n, must = len(truth.image_ids), ~truth.is_ignored
    persons = np.bincount(truth.image[must], minlength=n)
    n_found = np.bincount(truth.image[must & placement.is_found], minlength=n)
    oks_sum = np.bincount(truth.image[must], placement.oks[must], minlength=n)
    least = np.full(n, np.inf)
    np.minimum.at(least, truth.image[must], placement.oks[must])
    is_seen = found.scores >= SEEN_CONFIDENCE
    n_seen = np.bincount(found.image[is_seen], minlength=n)
    score_sum = np.bincount(found.image[is_seen], found.scores[is_seen], minlength=n)
    is_right = np.isin(found.source, placement.partner[placement.is_found])
    is_wrong = is_seen & ~is_right & ~_on_ignored(evaluation)
    n_wrong = np.bincount(found.image[is_wrong], minlength=n)
    name_of = {image["id"]: image["file_name"] for image in images}
    return [
        {
            "image_id": image_id,
            "file_name": name_of[image_id],
            "persons": int(persons[i]),
            "found": int(n_found[i]),
            "missed": int(persons[i] - n_found[i]),
            "false_positives": int(n_wrong[i]),
            "mean_oks": float(oks_sum[i] / persons[i]) if persons[i] else None,
            "min_oks": float(least[i]) if persons[i] else None,
            "mean_score": float(score_sum[i] / n_seen[i]) if n_seen[i] else None,
            "tags": {tag: values[i] for tag, values in tags.items() if values[i] is not None},
        }
        for i, image_id in enumerate(truth.image_ids)
    ]


def _on_ignored(evaluation: Evaluation) -> np.ndarray:
    """Returns (D,) whether a detection lies on somebody who need not be found."""
    similarity = evaluation.every_pair
    oks = similarity.oks(evaluation.truth.visibility > 0)
    pairs = similarity.pairs
    on = np.zeros(len(evaluation.found.scores), bool)
    on[pairs.detection[(oks >= FOUND_OKS) & evaluation.truth.is_ignored[pairs.person]]] = True
    return on
