"""The tables behind the plots, as CSV that spreadsheets and `dvc plots` read."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from posefoundry.evaluation.matching import Match
from posefoundry.evaluation.oks import Evaluation


def precision_recall_csv(evaluation: Evaluation) -> str:
    """Returns interpolated keypoint precision at recall 0 to 1, at OKS .50, .75 and as the mean over .50 to .95.

    The mean of a column over its 101 rows is oks_ap50, oks_ap75 and oks_ap.
    """
    columns = precision_columns(evaluation)
    rows = zip(evaluation.recalls.round(2).tolist(), *(c.round(6).tolist() for c in columns.values()), strict=True)
    return _csv(["recall", *columns], rows)


def precision_columns(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Returns the three (R,) precision columns by name."""
    thresholds = evaluation.oks_thresholds.round(2).tolist()
    return {
        "precision_oks50": evaluation.precision[thresholds.index(0.5)],
        "precision_oks75": evaluation.precision[thresholds.index(0.75)],
        "precision_oks50_95": evaluation.precision.mean(axis=0),
    }


def person_csv(matches: Sequence[Match]) -> str:
    """Returns one row a person: OKS and score of the detection matched to it; OKS 0 and no score if it was missed."""
    rows = (
        (m.annotation["image_id"], m.annotation["id"], m.area_px2, round(m.oks, 6),
         m.detection["score"] if m.detection else "")
        for m in matches
    )  # fmt: skip
    return _csv(["image_id", "annotation_id", "area_px2", "oks", "score"], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
