"""The page of a decision: one sentence, the rules, where the candidate differs, and what that looks like."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posefoundry.datasets.coco import CocoKeypoints, load_coco_keypoints
from posefoundry.evaluation.comparison import CHANGED_IMAGES, LEAST_CHANGE
from posefoundry.evaluation.html.pictures import by_image, load_photos, person
from posefoundry.evaluation.html.rendering import measure, write_page
from posefoundry.evaluation.html.sources import Folder, number, table_in
from posefoundry.evaluation.matching import SEEN_CONFIDENCE
from posefoundry.evaluation.wording import ERROR_TYPES

PAGE = "index.html"
KINDS = {
    "floor": "reaches a floor",
    "no_regression": "no worse than production",
    "improvement": "better than production",
    "budget": "keeps a budget",
    "parity": "agrees with the PyTorch model",
    "data": "data are sound",
}
MODES = {
    "reject_on_proven_regression": "The candidate is rejected where it is proven to be worse than a rule allows.",
    "demand_non_inferiority": "The candidate passes only where it is proven not to be worse than a rule allows.",
}


def write_decision_page(
    folder: Path, *, annotations: Path, images: Path, candidate_detections: Path | None = None
) -> Path:
    """Writes index.html from the decision.json in a folder, of the gate or of the release.

    Args:
        folder: Holds decision.json and, where there was a model to compare with, production_detections.json; the page
            is written there.
        annotations: The COCO keypoint file that was judged against.
        images: The folder of its images.
        candidate_detections: The candidate's COCO results on these images; without them its pictures have none.

    Returns:
        The page.

    Raises:
        PosefoundryError: The annotations cannot be read.
    """
    source = Folder(folder)
    decision = source.table("decision.json")
    production = source.rows("production_detections.json")
    candidate = Folder(candidate_detections.parent).rows(candidate_detections.name) if candidate_detections else []
    truth = load_coco_keypoints(annotations)
    passed = decision.get("passed") is True
    mode, verdict = (str(decision.get(key) or "") for key in ("mode", "verdict"))
    sentence = str(decision.get("sentence") or verdict or "No decision was found.")
    confidence = number(decision.get("confidence")) or 0.95
    return write_page(
        folder / PAGE,
        "decision.html",
        title="Passed" if passed else "Rejected",
        passed=passed,
        decision=decision,
        sentence=_headline(sentence),
        verdict="" if verdict == sentence else _headline(verdict),
        mode=MODES.get(mode, mode.replace("_", " ")),
        **_rules(_rows(decision, "rules"), must_prove=mode == "demand_non_inferiority"),
        forest=_forest(_rows(decision, "differences"), _margin(decision)),
        confidence=f"{confidence * 100:g} %",
        power=table_in(decision, "power"),
        errors=_errors(table_in(decision, "errors")),
        errors_sentence=table_in(decision, "errors").get("sentence"),
        compares="differences" in decision,
        changed=_changed(table_in(decision, "changed_images"), truth, candidate, production, images),
        least_change=LEAST_CHANGE,
        numbers=_numbers(table_in(decision, "candidate"), table_in(decision, "production")),
        passports=table_in(decision, "passports"),
        absent=source.why_absent,
    )


def _headline(sentence: str) -> str:
    """Returns the sentence without the word that stands large above it."""
    bare = re.sub(r"^(Passed|Rejected)[:.]?\s+(?=\S)", "", sentence)
    return sentence if bare == sentence else bare[:1].upper() + bare[1:]


def _rules(rules: Sequence[Mapping[str, Any]], *, must_prove: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns the rules to show, those that fail first, and apart those that a slice keeps."""
    drawn = [
        (rule, _rule(rule, must_prove=must_prove))
        for rule in sorted(rules, key=lambda rule: rule.get("passed") is True)
    ]
    kept = [row for rule, row in drawn if row["passed"] and rule.get("slice") not in (None, "all")]
    return {"rules": [row for _, row in drawn if row not in kept], "kept_in_slices": kept}


def _rule(rule: Mapping[str, Any], *, must_prove: bool) -> dict[str, Any]:
    """Returns a rule as the table shows it; what was asked and what was measured, in words."""
    value = number(rule.get("candidate", rule.get("value")))
    margin = number(rule.get("margin"))
    parity = rule.get("kind") == "parity"
    interval = rule.get("interval")
    return {
        "name": str(rule.get("name") or ""),
        "artifact": str(rule.get("artifact") or ""),
        "asked": _asked(rule, margin, must_prove=must_prove),
        "measured": "" if value is None else _with_unit(rule, value),
        "reference": number(rule.get("production")),
        "whose": "PyTorch" if parity else "production",
        "difference": number(rule.get("difference")),
        "digits": 4 if parity else 3,
        "interval": interval if isinstance(interval, list) and len(interval) == 2 else None,
        "p_value": next((p for key in ("p_value_holm", "p_value") if (p := number(rule.get(key))) is not None), None),
        "passed": rule.get("passed") is True,
        "unseen": drop if (drop := number(rule.get("visible_drop"))) and margin and drop > margin else None,
        "sentence": str(rule.get("sentence") or ""),
    }


def _asked(rule: Mapping[str, Any], margin: float | None, *, must_prove: bool) -> str:
    """Returns what a rule asks for, in a few words."""
    kind, bound = rule.get("kind"), number(rule.get("bound"))
    if margin is not None and kind == "improvement":
        return f"a gain over {measure(margin)} proven" if margin else "a gain proven"
    if margin is not None:
        loss = f"loss over {measure(margin)}" if margin else "loss"
        return f"a {loss} ruled out" if must_prove else f"no proven {loss}"
    if bound is None:
        return KINDS.get(str(kind), "") if rule.get("metric") or kind == "data" else ""
    if kind == "parity":
        return f"within {measure(bound)} of PyTorch"
    return f"at {'most' if kind in ('budget', 'data') else 'least'} {_with_unit(rule, bound)}"


def _with_unit(rule: Mapping[str, Any], value: float) -> str:
    metric = str(rule.get("metric") or "")
    if rule.get("kind") == "data":
        return f"{value:.0f} warning{'' if value == 1 else 's'}"
    unit = " ms" if metric.endswith("_ms") else " MB" if metric.endswith("_mb") else ""
    return f"{value:.1f}{unit}" if unit else measure(value)


def _margin(decision: Mapping[str, Any]) -> float | None:
    """Returns the margin of the rule about all persons, which the plot of differences shows."""
    rules = [rule for rule in _rows(decision, "rules") if rule.get("slice") in (None, "all")]
    return next((m for rule in rules if (m := number(rule.get("margin"))) is not None), None)


def _forest(rows: Sequence[Mapping[str, Any]], margin: float | None) -> dict[str, Any] | None:
    """Returns the plot of differences: where each lies in per cent of the plot's width, and what it says."""
    known = []
    for row in rows:
        if (difference := number(row.get("difference"))) is not None:
            interval = row.get("interval")
            ends = [number(end) for end in interval] if isinstance(interval, list) and len(interval) == 2 else []
            low, high = (end if end is not None else difference for end in ends or (difference, difference))
            known.append((row, difference, low, high))
    if not known:
        return None
    reach = max(max(abs(low), abs(high)) for *_, low, high in known)
    reach = max(reach, margin or 0.0, 1e-3) * 1.06

    def at(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    plotted = [
        {
            **row,
            "difference": difference,
            "low": low,
            "high": high,
            "at": at(difference),
            "left": at(low),
            "width": round(at(high) - at(low), 2),
            "has_interval": low < high,
            "change": row["proven"] if row.get("proven") in ("better", "worse") else "open",
        }
        for row, difference, low, high in known
    ]
    tick = _round_step(reach)
    ticks = [step * tick for step in range(-4, 5) if abs(step * tick) <= reach]
    return {
        "rows": plotted,
        "ticks": [(at(value), value) for value in ticks],
        "digits": 3 if tick < 0.01 else 2,
        "margin": None if not margin else (at(-margin), margin),
        "counts": {kind: sum(row["change"] == kind for row in plotted) for kind in ("better", "worse", "open")},
    }


def _round_step(reach: float) -> float:
    """Returns a round distance between ticks, so that two to four stand on each side."""
    steps = [mantissa * 10.0**exponent for exponent in range(-4, 1) for mantissa in (1, 2, 5)]
    return next((step for step in steps if reach / step <= 3.5), 1.0)


def _numbers(
    candidate: Mapping[str, Any], production: Mapping[str, Any]
) -> list[tuple[str, float | None, float | None]]:
    wanted = ("oks_ap", "oks_ap50", "oks_ap75", "oks_ap_m", "oks_ap_l", "oks_ar", "box_ap")
    return [
        (name, number(candidate.get(name)), number(production.get(name)))
        for name in wanted
        if number(candidate.get(name)) is not None or number(production.get(name)) is not None
    ]


def _errors(errors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns by kind of error the AP that both models lose to it; nothing without two models."""
    ours, theirs = (table_in(table_in(errors, whose), "ap_lost") for whose in ("candidate", "production"))
    rows = []
    for name, explained in ERROR_TYPES.items():
        candidate, production = number(ours.get(name)), number(theirs.get(name))
        if candidate is not None and production is not None:
            row = {"name": name, "explained": explained, "candidate": candidate, "production": production}
            rows.append(row | {"difference": candidate - production})
    return rows


def _changed(
    listed: Mapping[str, Any],
    truth: CocoKeypoints,
    candidate: Sequence[Mapping[str, Any]],
    production: Sequence[Mapping[str, Any]],
    images: Path,
) -> list[dict[str, Any]]:
    """Returns the images that got worse and better, each with what both models found and what is there."""
    names = {image["id"]: image["file_name"] for image in truth.images}
    groups = {
        key: [row for row in _rows(listed, key) if row.get("image_id") in names][:CHANGED_IMAGES]
        for key in ("worse", "better")
    }
    turns = [group[turn] for turn in range(CHANGED_IMAGES) for group in groups.values() if turn < len(group)]
    photos = load_photos({row["image_id"]: images / names[row["image_id"]] for row in turns})
    shown = set(photos)
    seen = [d for d in candidate if (number(d.get("score")) or 0) >= SEEN_CONFIDENCE]
    seen_before = [d for d in production if (number(d.get("score")) or 0) >= SEEN_CONFIDENCE]
    layers = {
        "production": by_image(seen_before, shown),
        "candidate": by_image(seen, shown),
        "truth": by_image(truth.annotations, shown),
    }
    titles = (
        (
            "worse",
            "Worse than in production",
            "largest fall of the score: OKS of the persons, shared among persons and false positives",
        ),
        ("better", "Better than in production", "largest rise of the same"),
    )
    result = []
    for key, title, order in titles:
        cards = []
        for row in groups[key]:
            photo = photos[row["image_id"]]
            panels = {
                layer: [person(entry, truth.skeleton, photo.scale) for entry in entries[row["image_id"]]]
                for layer, entries in layers.items()
            }
            now, before = (number(table_in(row, model).get("score")) for model in ("candidate", "production"))
            change = None if now is None or before is None else now - before
            of_image = {"file_name": names[row["image_id"]], "photo": photo, "panels": panels, "change": change}
            cards.append({**row, **of_image})
        result.append({"key": key, "title": title, "order": order, "cards": cards})
    return [group for group in result if group["cards"]]


def _rows(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list | tuple) else []
