"""When the gate has to decide anew though none of its files has changed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from posefoundry.files import write_json_atomic
from posefoundry.orchestration import verdict
from posefoundry.orchestration.verdict import why_outdated
from posefoundry.registry.versions import ModelVersion

COMPARING = "gate: {rules: [{rule: no_regression, margin: 0.01}]}\n"


@pytest.fixture
def decided(tmp_path, monkeypatch):
    """A project whose gate compared with one version while another is in production."""

    def prepare(compared_with: str | None, version: str | None, *, weights: str = "others", params: str = COMPARING):
        def in_production(model_name: str) -> ModelVersion | None:
            assert (Path.cwd(), model_name) == (tmp_path, "posefoundry"), "the embedded registry lies in the project"
            tags = {"sha256.weights": weights}
            return ModelVersion(model_name, version, (), tags, None, datetime.now(UTC)) if version else None

        monkeypatch.setattr(verdict, "in_production", in_production)
        (tmp_path / "params.yaml").write_text(params)
        decision = {"production_version": compared_with, "passports": {"candidate": {"weights_sha256": "ours"}}}
        write_json_atomic(tmp_path / "reports/gate/decision.json", decision)
        return tmp_path

    return prepare


@pytest.mark.parametrize(
    ("compared_with", "version", "why"),
    [
        ("3", "3", None),
        ("3", "4", "it compared with version 3, and in production is version 4"),
        ("3", None, "it compared with version 3, and in production is nothing"),
        (None, "4", "it compared with nothing, and in production is version 4"),
        (None, None, None),
    ],
)
def test_a_verdict_is_outdated_where_another_version_is_in_production(decided, compared_with, version, why):
    assert why_outdated(decided(compared_with, version)) == why


def test_a_candidate_that_went_into_production_is_not_judged_against_itself(decided):
    assert why_outdated(decided("3", "4", weights="ours")) is None


def test_nobody_is_asked_where_no_rule_compares_or_nothing_was_decided(decided, monkeypatch):
    project = decided("3", "4", params="gate: {rules: [{rule: floor, at_least: 0.3}]}\n")
    monkeypatch.setattr(verdict, "in_production", lambda name: pytest.fail("asked"))
    assert why_outdated(project) is None
    (project / "params.yaml").write_text(COMPARING)
    (project / "reports/gate/decision.json").write_text("[1, 2")
    assert why_outdated(project) is None
    (project / "reports/gate/decision.json").unlink()
    assert why_outdated(project) is None
