"""What a retraining came to, as a page of Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json

HEADLINE_METRICS = ("oks_ap", "oks_ap50", "oks_ap75", "oks_ap_m", "oks_ap_l", "oks_ar", "box_ap", "box_ap50")


@dataclass(frozen=True)
class StageRecord:
    """How one stage fared.

    Attributes:
        name: The stage.
        state: The name of its final state: Completed, Cached, Rejected, Failed, or NotReady where it was not run.
        message: What there is to say about it, if anything.
        seconds: From its start to its end, retries and waiting between them included.
    """

    name: str
    state: str
    message: str
    seconds: float

    @property
    def has_result(self) -> bool:
        """Whether the stage's reports on disk belong to this run."""
        return self.state in ("Completed", "Cached", "Rejected")


def summarise(records: Sequence[StageRecord], project: Path) -> str:
    """Writes the summary: stages, metrics, both gates' rules and differences, the registered version.

    Only reports of stages that have a result are told; a report left by an earlier run is not.
    """
    told = {record.name for record in records if record.has_result}
    parts = ["# Retraining", _stage_table(records)]
    if "evaluate" in told:
        parts += _metrics(project / "reports/evaluate/metrics.json")
    for stage, heading in (("gate", "Gate"), ("release", "Release")):
        if stage in told:
            parts += _decision(heading, project / "reports" / stage / "decision.json")
    if "register" in told:
        parts += _version(project / "reports/register/version.json")
    return "\n\n".join(parts) + "\n"


def _stage_table(records: Sequence[StageRecord]) -> str:
    rows = [
        (
            record.name,
            "not run" if record.state == "NotReady" else record.state,
            f"{record.seconds:.1f} s",
            "" if record.state == "NotReady" else _cell(record.message),
        )
        for record in records
    ]
    return _table(("stage", "outcome", "time", "remark"), rows)


def _metrics(path: Path) -> list[str]:
    metrics = _report(path)
    rows = [(name, f"{metrics[name]:.4f}") for name in HEADLINE_METRICS if isinstance(metrics.get(name), int | float)]
    return ["## Test split", _table(("metric", "value"), rows)] if rows else []


def _decision(heading: str, path: Path) -> list[str]:
    decision = _report(path)
    if not decision:
        return []
    rows = [
        ("yes" if rule.get("passed") else "**no**", _cell(str(rule.get("sentence", rule.get("name", "")))))
        for rule in decision.get("rules", [])
    ]
    texts = [decision.get("sentence"), decision.get("verdict")]
    texts += [(decision.get(part) or {}).get("sentence") for part in ("errors", "power")]
    told = [str(text) for text in texts if text]
    outcome = "passed" if decision.get("passed") else "rejected"
    return [
        f"## {heading}: {outcome}", *dict.fromkeys(told), _table(("holds", "rule"), rows), *_differences(path, decision)
    ]  # fmt: skip


def _differences(path: Path, decision: dict[str, Any]) -> list[str]:
    """The difference from production overall and in the slices where it is proven; the page shows all of them."""
    rows = [row for row in decision.get("differences") or [] if isinstance(row, dict)]
    shown = [row for row in rows if row.get("slice") == "all" or row.get("proven")]
    page = f"Everything, with pictures: `{path.parent.parent.name}/{path.parent.name}/index.html`."
    if not shown:
        return [page]
    cells = [
        (
            _cell(str(row.get("slice"))),
            _number(row.get("candidate")),
            _number(row.get("production")),
            _number(row.get("difference"), "+.3f"),
            " to ".join(_number(end, "+.3f") for end in row.get("interval") or ()) or "n/a",
            str(row.get("proven") or "may be chance"),
        )
        for row in shown
    ]
    counts = {kind: sum(row.get("proven") == kind for row in rows) for kind in ("better", "worse")}
    return [
        f"Of {len(rows)} slices {counts['better']} are proven better than production and {counts['worse']} worse.",
        _table(("slice", "candidate", "production", "difference of AP", "interval", "proven"), cells),
        page,
    ]


def _number(value: Any, form: str = ".3f") -> str:
    return format(value, form) if isinstance(value, int | float) else "n/a"


def _version(path: Path) -> list[str]:
    version = _report(path)
    if not version:
        return []
    return ["## Registered", _table(("field", "value"), [(key, _cell(str(version[key]))) for key in version])]


def _report(path: Path) -> dict[str, Any]:
    """A stage's report, or nothing where it has none: a summary must not fail for want of a part."""
    try:
        content = read_json(path)
    except PosefoundryError:
        return {}
    return content if isinstance(content, dict) else {}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
