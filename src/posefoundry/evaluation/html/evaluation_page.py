"""The page of an evaluation: how good, where not, and what it looks like."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.evaluation.html.charts import Axes, Series, histogram, line_chart, reliability_chart
from posefoundry.evaluation.html.gallery import MEDIUM_PX2, SMALL_PX2, make_gallery
from posefoundry.evaluation.html.rendering import decimal, percent, words, write_page
from posefoundry.evaluation.html.sources import Folder, number, table_in, whole
from posefoundry.evaluation.matching import SEEN_CONFIDENCE
from posefoundry.evaluation.summary import find
from posefoundry.evaluation.wording import ERROR_PLURALS, ERROR_TYPES, where

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "index.html"
HEADLINE = (
    ("oks_ap", "OKS AP", "pose accuracy, mean over OKS .50 to .95"),
    ("oks_ap50", "AP50", "lenient match, OKS .50"),
    ("oks_ap75", "AP75", "strict match, OKS .75"),
    ("oks_ar", "OKS AR", "pose recall"),
    ("box_ap", "Box AP", "person detection"),
)
PRECISION_COLUMNS = (
    ("precision_oks50_95", "OKS .50 to .95, mean", "oks_ap"),
    ("precision_oks50", "OKS .50", "oks_ap50"),
    ("precision_oks75", "OKS .75", "oks_ap75"),
)
SLICE_COLUMNS = (
    ("persons", "persons", "count"), ("oks_ap", "AP", "share"), ("oks_ap50", "AP50", "share"),
    ("oks_ap75", "AP75", "share"), ("oks_ar", "AR", "share"),
    ("mean_error_px", "error px", "px"), ("normalised_error", "error / size", "share"), ("images", "images", "count"),
    ("keypoints", "keypoints", "count"),
)  # fmt: skip


def write_evaluation_page(folder: Path, *, annotations: Path, images: Path) -> Path:
    """Writes index.html from what lies in an evaluation's folder.

    A file that is missing costs its section, in whose place stands why.

    Args:
        folder: Holds metrics.json and what else the evaluation wrote; the page is written there.
        annotations: The COCO keypoint file that was judged against.
        images: The folder of its images.

    Returns:
        The page.

    Raises:
        PosefoundryError: The annotations cannot be read.
    """
    source = Folder(folder)
    truth = load_coco_keypoints(annotations)
    metrics, passport = source.table("metrics.json"), source.table("passport.json")
    slices, errors = source.rows("slices.json"), source.table("errors.json")
    persons, rows = source.csv("oks_hist.csv"), source.rows("images.json")
    calibration, classes = source.table("calibration.json"), source.table("classes.json")
    precision = source.csv("pr_curve.csv")
    gallery = make_gallery(rows, truth, source.rows("detections.json"), persons, images)
    keypoints = [row for row in slices if row.get("group") == "keypoint"]
    return write_page(
        folder / PAGE,
        "evaluation.html",
        title="Evaluation",
        metrics=metrics,
        passport=passport,
        headline=HEADLINE,
        findings=_findings(persons, slices, errors),
        warnings=source.sentences("warnings.json"),
        absent=source.why_absent,
        precision_chart=_precision_chart(precision, metrics),
        oks_charts=_oks_charts(persons),
        keypoints=_keypoint_bars(keypoints),
        error_limit_px=max((number(row.get("mean_error_px")) or 0 for row in keypoints), default=0),
        slices=slices,
        slice_groups=list(dict.fromkeys(str(row.get("group")) for row in slices)),
        slice_columns=_slice_columns(slices),
        errors=_error_bars(errors),
        confusion=_confusion(classes),
        calibration=_calibration(calibration),
        gallery=gallery,
        files=sorted(
            path.name for path in folder.iterdir() if path.suffix in (".json", ".csv") and not path.name.startswith(".")
        ),
    )


def _findings(
    persons: Sequence[Mapping[str, str]], slices: Sequence[Mapping[str, Any]], errors: Mapping[str, Any]
) -> list[str]:
    """Returns what a reader in a hurry should know, in a sentence each."""
    found = []
    oks = [value for row in persons if (value := number(row.get("oks"))) is not None]
    if oks:
        share = sum(value >= 0.5 for value in oks) / len(oks)
        found.append(f"{percent(share)} of {len(oks)} persons are found (OKS of .50 or more at a score from .25).")
    judged = [{**row, "oks_ap": number(row.get("oks_ap")), "persons": whole(row.get("persons"))} for row in slices]
    findings = find(judged, {kind: number(value) for kind, value in table_in(errors, "ap_lost").items()})
    if row := findings.weakest_keypoint:
        figures = f"AP {decimal(row['oks_ap'])} on {row['persons']} persons"
        found.append(f"The weakest keypoint is the {words(row.get('value'))}: {figures}.")
    if row := findings.weakest_slice:
        found.append(f"AP is lowest{where(row['slice'])}: {decimal(row['oks_ap'])} on {row['persons']} persons.")
    if findings.costly:
        kind, lost = findings.costly[0]
        name = ERROR_PLURALS.get(kind, words(kind))
        found.append(f"Most AP is lost to {name}: without, the AP would be {decimal(lost)} higher.")
    return found


def _slice_columns(slices: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Returns key, title and kind of the columns that have a number in any row; PCK's are named by their threshold."""
    keys = dict.fromkeys(key for row in slices for key, value in row.items() if number(value) is not None)
    at = {key: key.partition("_")[::2] for key in keys if key.startswith(("pck_", "pckh_"))}
    exact = [(key, f"{'PCKh' if name == 'pckh' else 'PCK'} {limit}", "share") for key, (name, limit) in at.items()]
    known = [column for column in SLICE_COLUMNS if column[0] in keys]
    split = next((i for i, column in enumerate(known) if not column[0].startswith(("persons", "oks"))), len(known))
    return known[:split] + exact + known[split:]


def _precision_chart(rows: Sequence[Mapping[str, str]], metrics: Mapping[str, Any]) -> "tuple[Markup, list] | None":
    series = []
    for index, (column, label, metric) in enumerate(PRECISION_COLUMNS, 1):
        points = [
            (x, y) for row in rows
            if (x := number(row.get("recall"))) is not None and (y := number(row.get(column))) is not None
        ]  # fmt: skip
        if points:
            series.append(Series(label, points, f"series-{index}", f"AP {decimal(metrics.get(metric))}"))
    if not series:
        return None
    described = "; ".join(f"{line.label}: {line.note}" for line in series)
    axes = Axes("recall", "precision")
    return line_chart(series, axes, f"Precision over recall of the keypoint detections. {described}."), series


def _oks_charts(rows: Sequence[Mapping[str, str]]) -> "dict[str, Any] | None":
    persons = [(oks, number(row.get("area_px2")) or 0.0) for row in rows if (oks := number(row.get("oks"))) is not None]
    if not persons:
        return None
    sizes = {
        "all persons": persons,
        "large": [p for p in persons if p[1] >= MEDIUM_PX2],
        "medium": [p for p in persons if SMALL_PX2 <= p[1] < MEDIUM_PX2],
        "small": [p for p in persons if p[1] < SMALL_PX2],
    }
    thresholds = [step / 50 for step in range(1, 51)]  # at 0 stands everybody, found or not
    series = [
        Series(label, [(t, sum(oks >= t for oks, _ in group) / len(group)) for t in thresholds], f"series-{index}",
               f"{len(group)}")
        for index, (label, group) in enumerate(sizes.items(), 1)
        if group
    ]  # fmt: skip
    counts = [0] * 20
    for oks, _ in persons:
        counts[min(int(oks * 20), 19)] += 1
    mean = sum(oks for oks, _ in persons) / len(persons)
    share = percent(sum(oks >= 0.5 for oks, _ in persons) / len(persons))
    survival_axes = Axes("at least this OKS", "share of persons")
    columns_axes = Axes("OKS of a person (0: missed)", "persons", y_max=max(5, -(-max(counts) // 5) * 5), y_digits=0)
    return {
        "survival": line_chart(
            series, survival_axes, f"Share of persons found with at least an OKS; at .50 it is {share}."
        ),
        "series": series,
        "histogram": histogram(counts, columns_axes, f"OKS of {len(persons)} persons; the mean is {mean:.2f}."),
        "mean": mean,
    }


def _keypoint_bars(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sides = ("left", "right")
    return [{**row, "side": next((s for s in sides if s in str(row.get("value")).lower()), "middle")} for row in rows]


def _error_bars(errors: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts, lost = table_in(errors, "counts"), table_in(errors, "ap_lost")
    names = [*ERROR_TYPES, *sorted({*counts, *lost} - {*ERROR_TYPES})]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "explained": ERROR_TYPES.get(name, ""),
            "count": number(counts.get(name)),
            "lost": number(lost.get(name)),
        }
        for name in names
        if name in counts or name in lost
    ]
    most = max((number(n) or 0 for name, n in counts.items() if name != "good"), default=0)
    worst = max((number(n) or 0 for n in lost.values()), default=0)
    for row in rows:
        row["count_share"] = min((number(row["count"]) or 0) / most, 1.0) if most else 0.0
        row["lost_share"] = max((number(row["lost"]) or 0) / worst, 0.0) if worst else 0.0
    return rows


def _confusion(classes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the matrix with each cell's share of its row; rows are what is there, columns what was said."""
    matrix = classes.get("confusion", classes.get("matrix"))
    if not isinstance(matrix, list) or not all(isinstance(row, list) for row in matrix) or not matrix:
        return None
    names = classes.get("labels", classes.get("classes"))
    names = [str(name) for name in names] if isinstance(names, list) else []
    row_names = [*names, "background"][: len(matrix)] if len(names) < len(matrix) else names
    column_names = [*names, "missed"] if len(names) < len(matrix[0]) else names
    rows = []
    for name, row in zip(row_names, matrix, strict=False):
        total = sum(whole(value) for value in row)
        rows.append((name, [(whole(value), whole(value) / total if total else 0.0) for value in row]))
    return {"columns": column_names, "rows": rows}


def _calibration(content: Mapping[str, Any]) -> dict[str, Any] | None:
    listed = content.get("bins")
    bins = []
    for row in [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []:
        score, right = number(row.get("mean_score")), number(row.get("fraction_right"))
        if score is not None and right is not None:
            bins.append((score, right, whole(row.get("detections"))))
    if not bins:
        return None
    error = number(content.get("expected_calibration_error"))
    seen = [(score - right, n) for score, right, n in bins if score >= SEEN_CONFIDENCE]
    gap = sum(difference * n for difference, n in seen) / max(sum(n for _, n in seen), 1)
    lean = "" if abs(gap) < 0.01 else "too sure of itself" if gap > 0 else "too modest"
    description = f"How often detections of a score are right. Expected calibration error {decimal(error)}."
    chart = reliability_chart(bins, Axes("score", "share that is right"), description)
    return {"chart": chart, "error": error, "lean": lean}
