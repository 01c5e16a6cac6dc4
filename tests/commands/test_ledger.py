"""What the registry's commands print."""

from datetime import UTC, datetime

import pytest

from posefoundry.commands import ledger
from posefoundry.registry.versions import MEASURED_ON, ModelVersion


@pytest.fixture
def listed(monkeypatch, capsys):
    """Lists versions, numbered from 1, the second of which is in production, by what they were measured on."""

    def listing(*measured_on: str | None) -> list[str]:
        found = [
            ModelVersion(
                "posefoundry", str(number), ("production",) if number == 2 else (),
                {"oks_ap": "0.6100", "gate.passed": "true"} | ({MEASURED_ON: test} if test else {}), None,
                datetime(2024, 1, number, tzinfo=UTC),
            )
            for number, test in enumerate(measured_on, 1)
        ]  # fmt: skip
        monkeypatch.setattr(ledger.versions, "list_versions", lambda name: found)
        ledger.show_versions("posefoundry")
        return [line for line in capsys.readouterr().out.splitlines() if "passed" in line or "oks_ap" in line]

    return listing


def test_a_figure_that_does_not_compare_with_productions_is_marked(listed):
    head, other, production, same, unknown = listed("b" * 64, "a" * 64, "a" * 64, None)
    assert "measured on" in head
    assert "other test data" in other and "not known" in unknown
    assert not any("test data" in line or "not known" in line for line in (production, same))


def test_versions_of_one_test_and_those_beside_no_production_are_not_marked(listed):
    for measured_on in (("a", "a", "a"), (None,)):
        assert "measured on" not in listed(*measured_on)[0]
