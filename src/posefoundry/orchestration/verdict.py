"""Whether the gate's verdict is about the model that is in production now, which DVC cannot see."""

import contextlib
from pathlib import Path
from typing import Any

from posefoundry.config import Improvement, NoRegression
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json
from posefoundry.params import load_params
from posefoundry.registry.ledger import in_words
from posefoundry.registry.versions import CHECKSUM_TAGS, in_production

GATE = "gate"  # the stage of dvc.yaml


def why_outdated(project: Path) -> str | None:
    """Returns why the gate must decide anew although none of its files has changed; None if it need not.

    A candidate that went into production itself is not judged again: there is nothing left to decide.

    Raises:
        PosefoundryError: The registry cannot be asked.
    """
    params = load_params(project / "params.yaml")
    decision = _decision(project)
    compares = any(isinstance(rule, NoRegression | Improvement) for rule in params.gate.rules)
    if not compares or "production_version" not in decision:
        return None
    with contextlib.chdir(project):  # where the embedded registry lies
        now = in_production(params.register_.model_name)
    before, version = decision["production_version"], now.version if now else None
    if version == before:
        return None
    candidate = (decision.get("passports") or {}).get("candidate") or {}
    weights = candidate.get("weights_sha256")
    if now and weights and now.tags.get(CHECKSUM_TAGS["best.safetensors"]) == weights:
        return None
    return f"it compared with {in_words(before)}, and in production is {in_words(version)}"


def _decision(project: Path) -> dict[str, Any]:
    """Returns the gate's last decision; nothing where there is none that can be read, so that DVC runs the stage."""
    try:
        content = read_json(project / "reports" / GATE / "decision.json")
    except PosefoundryError:
        return {}
    return content if isinstance(content, dict) else {}
