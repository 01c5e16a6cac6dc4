"""PCK, PCKh and distances: how far keypoints are from where they should be, beside what OKS makes of it.

- PCK, the share of keypoints that lie within a part of the person's size. The size is the longer side of the person's
  box (Yang and Ramanan, Articulated Human Detection with Flexible Mixtures of Parts, PAMI 2013), or the torso, from a
  shoulder to the opposite hip (Sapp and Taskar, MODEC, CVPR 2013).
- PCKh, the same by the head, from its top to the neck (Andriluka et al., 2D Human Pose Estimation, CVPR 2014), for
  skeletons that have both.

Each person has the detection that `matching.partners` gives it, one with a score of .25 or more where nothing else is
asked for. In PCK the keypoints of a person without any are wrong: who finds easy persons alone should not look exact.
Distances can be measured of persons who were found (OKS of .50 or more) only; they are means over their labelled
keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posefoundry.config import Evaluate
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.ground_truth import GroundTruth
from posefoundry.evaluation.matching import FOUND_OKS, SEEN_CONFIDENCE, partners
from posefoundry.evaluation.oks import Evaluation, Metrics
from posefoundry.evaluation.slices import Population

HEAD_TOP_NAMES = ("head_top", "top_head", "headtop", "top_of_head")
NECK_NAMES = ("neck", "upper_neck", "head_bottom")
TORSO_DIAGONALS = (("left_shoulder", "right_hip"), ("right_shoulder", "left_hip"))


@dataclass(frozen=True)
class Placement:
    """Where the keypoints of N persons were put.

    Attributes:
        distances_px: (N, K) from where they are; infinite where the person was missed.
        size_px: (N,) of the person, as PCK measures it; NaN where it cannot be measured.
        head_px: (N,) of the head; NaN where the skeleton or the person has none.
        is_found: (N,) whether the person's OKS is .50 or more.
        oks: (N,) of the person and its detection; 0 if it was missed.
        partner: (N,) index of its detection in the list that was given; -1 if it was missed.
    """

    distances_px: np.ndarray
    size_px: np.ndarray
    head_px: np.ndarray
    is_found: np.ndarray
    oks: np.ndarray
    partner: np.ndarray


def check_reference(reference: Literal["box", "torso"], keypoint_names: Sequence[str]) -> None:
    """Refuses a torso where the skeleton has none.

    Raises:
        PosefoundryError: The skeleton lacks a shoulder and the opposite hip.
    """
    if reference == "torso" and not _ends(keypoint_names, TORSO_DIAGONALS):
        wanted = " or ".join(f"{shoulder} and {hip}" for shoulder, hip in TORSO_DIAGONALS)
        raise PosefoundryError(
            f"evaluate.pck_reference: a torso needs the keypoints {wanted}, got {', '.join(keypoint_names)}. "
            "Take the box instead: pck_reference: box."
        )


def place(
    evaluation: Evaluation,
    keypoint_names: Sequence[str],
    reference: Literal["box", "torso"],
    min_score: float = SEEN_CONFIDENCE,
) -> Placement:
    """Measures how far the keypoints of all persons are from where they are labelled.

    Args:
        evaluation: Of all detections.
        keypoint_names: K names.
        reference: What PCK takes for a person's size.
        min_score: From which score on a detection counts; a person found by lesser ones alone was missed.
    """
    truth = evaluation.truth
    partner, oks = partners(evaluation, min_score)
    found_xy = evaluation.detections.keypoints_xy[partner] if len(evaluation.detections.scores) else truth.keypoints_xy
    distances = np.linalg.norm(truth.keypoints_xy - found_xy, axis=2)
    distances[partner < 0] = np.inf
    box = truth.boxes_xywh[:, 2:].max(axis=1)
    size = box if reference == "box" else _longest(truth, _ends(keypoint_names, TORSO_DIAGONALS))
    heads = _ends(keypoint_names, [(top, neck) for top in HEAD_TOP_NAMES for neck in NECK_NAMES])
    size, head = (np.where(length > 0, length, np.nan) for length in (size, _longest(truth, heads)))
    return Placement(distances, size, head, oks >= FOUND_OKS, oks, partner)


def placement_figures(
    placement: Placement, population: Population, of_image: np.ndarray, settings: Evaluate
) -> Metrics:
    """Returns PCK, PCKh and the mean distances of those whom a slice counts.

    Args:
        placement: Of all persons.
        population: Whom and which keypoints the slice counts.
        of_image: (N,) place of each person's image.
        settings: The thresholds.

    Returns:
        `pck_T` for each threshold T, `pckh_T`, `mean_error_px`, and `normalised_error`, the mean of the distances as a
        part of the person's size; None where there is nothing to measure.
    """
    counted = population.keypoints & (population.persons & population.images[of_image])[:, None]
    figures: Metrics = {}
    for name, lengths, thresholds in (
        ("pck", placement.size_px, settings.pck_thresholds),
        ("pckh", placement.head_px, (settings.pckh_threshold,)),
    ):
        measured = counted & np.isfinite(lengths)[:, None]
        ratios = placement.distances_px[measured] / np.broadcast_to(lengths[:, None], measured.shape)[measured]
        for threshold in thresholds:
            figures[f"{name}_{threshold:g}"] = float((ratios <= threshold).mean()) if ratios.size else None
    of_found = counted & placement.is_found[:, None]
    pixels = placement.distances_px[of_found]
    parts = (placement.distances_px / placement.size_px[:, None])[of_found & np.isfinite(placement.size_px)[:, None]]
    figures["mean_error_px"] = float(pixels.mean()) if pixels.size else None
    figures["normalised_error"] = float(parts.mean()) if parts.size else None
    return figures


def _ends(keypoint_names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Returns the places of those pairs of keypoints that the skeleton has."""
    place = {name.lower().replace(" ", "_").replace("-", "_"): k for k, name in enumerate(keypoint_names)}
    return [(place[one], place[other]) for one, other in pairs if one in place and other in place]


def _longest(truth: GroundTruth, ends: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns (N,) the longest of some segments of each person, in px; NaN where none has both ends labelled."""
    longest = np.full(len(truth.image), np.nan)
    for one, other in ends:
        length = np.linalg.norm(truth.keypoints_xy[:, one] - truth.keypoints_xy[:, other], axis=1)
        is_labelled = (truth.visibility[:, [one, other]] > 0).all(axis=1)
        longest = np.fmax(longest, np.where(is_labelled, length, np.nan))
    return longest
