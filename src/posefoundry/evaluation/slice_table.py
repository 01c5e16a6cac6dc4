"""A row for each slice: how many it holds, and how good the model is on them."""

from typing import Any

import numpy as np

from posefoundry.config import Evaluate
from posefoundry.evaluation.fast_oks import THRESHOLD_OF_AP
from posefoundry.evaluation.oks import Evaluation, average
from posefoundry.evaluation.pck import Placement, placement_figures
from posefoundry.evaluation.slices import ALL


def slice_rows(evaluation: Evaluation, placement: Placement, settings: Evaluate) -> list[dict[str, Any]]:
    """Returns the content of slices.json.

    Each row has the name of its `slice`, its `group` and `value`, how many `images` hold how many `persons` of it and
    how many `keypoints` these have labelled, the slice's AP and AR by OKS, and what `placement_figures` measures. A
    figure is None where there is nobody to measure it on.

    Args:
        evaluation: With its slices.
        placement: Of all persons.
        settings: The thresholds of PCK.
    """
    rows = []
    truth = evaluation.truth
    for name, matches in evaluation.slices.items():
        population = evaluation.slicer.population(name)
        persons = population.persons & population.images[truth.image]
        row: dict[str, Any] = {
            "slice": name,
            "group": "&".join(part.split("=")[0] for part in name.split("&")),
            "value": None if name == ALL else ", ".join(part.partition("=")[2] for part in name.split("&")),
            "images": len(np.unique(truth.image[persons])),
            "persons": int(persons.sum()),
            "keypoints": int(population.keypoints[persons].sum()),
            **{metric: average(matches, at) for metric, at in THRESHOLD_OF_AP.items()},
            "oks_ar": average(matches, recall=True),
        }
        rows.append(row | placement_figures(placement, population, truth.image, settings))
    return rows
