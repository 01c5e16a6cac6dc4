"""Which class a person is taken for, who is missed, and what is found where nobody is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from posefoundry.evaluation import fast_oks
from posefoundry.evaluation.fast_oks import MAX_POSES_PER_IMAGE
from posefoundry.evaluation.matching import SEEN_CONFIDENCE
from posefoundry.evaluation.oks import Evaluation

RIGHT_OKS = 0.5


def class_confusion(evaluation: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the content of classes.json.

    Detections with a score of .25 or more, the 20 best of an image, are matched with persons of any class at OKS .50
    or more, the closest pairs first. Rows are the classes of persons and at last the background, columns those of
    detections and at last the missed. What is found on crowds and persons without keypoints does not count.

    Args:
        evaluation: Of all detections.
        class_names: C names, in order of category id.
    """
    truth, detections = evaluation.truth, evaluation.detections
    of_one = replace(truth, category=np.zeros_like(truth.category), category_ids=[0])
    found = fast_oks.candidates(
        of_one, replace(detections, category=np.zeros_like(detections.category)), MAX_POSES_PER_IMAGE
    )
    similarity = fast_oks.keypoint_similarity(of_one, detections, found, evaluation.sigmas, at_least=RIGHT_OKS)
    oks, pairs = similarity.oks(truth.visibility > 0), similarity.pairs
    near = np.flatnonzero((oks >= RIGHT_OKS) & (found.scores[pairs.detection] >= SEEN_CONFIDENCE))
    # Persons who must be found come before the others, and among them the closest.
    near = near[np.lexsort((-oks[near], truth.is_ignored[pairs.person[near]]))]
    partner = np.full(len(truth.image), -1)
    is_used = np.zeros(len(found.scores), bool)
    for person, detection in zip(pairs.person[near].tolist(), pairs.detection[near].tolist(), strict=True):
        if not is_used[detection] and (truth.is_ignored[person] or partner[person] < 0):
            partner[person], is_used[detection] = detection, True
    n = len(class_names)
    matrix = np.zeros((n + 1, n + 1), np.int64)
    said = detections.category[found.source]
    persons = ~truth.is_ignored
    is_met = persons & (partner >= 0)
    np.add.at(matrix, (truth.category[is_met], said[partner[is_met]]), 1)
    matrix[:n, n] = np.bincount(truth.category[persons & ~is_met], minlength=n)
    matrix[n, :n] = np.bincount(said[~is_used & (found.scores >= SEEN_CONFIDENCE)], minlength=n)
    return {"classes": list(class_names), "confusion": matrix.tolist()}
