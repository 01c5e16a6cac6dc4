"""What the page of a decision shows."""

import json
import re

import numpy as np
import pytest

from posefoundry.evaluation.html.decision_page import _forest
from posefoundry.files import write_json_atomic


def test_the_decision_page_shows_what_the_decision_says(decision_page, sections):
    text = decision_page().read_text()
    page = sections(text)
    assert "<h1>The left wrist got worse.</h1>" in text
    assert "passes only where it is proven not to be worse" in text
    assert "left wrist, size small" in page["differences"]
    assert text.count("With 6 images little can be seen.") == 1
    assert text.index("<h1>") < text.index("With 6 images little can be seen.") < text.index('<section id="rules"')
    assert page["changed"].count("<figure") == 2, "an image that is not in the annotations is not shown"
    assert page["changed"].count('class="panel"') == 6
    assert "candidate <b>OKS 0.40, 1 false</b>" in page["changed"]
    assert '<b class="change">−0.40</b>' in page["changed"]  # noqa: RUF001


@pytest.mark.parametrize(
    ("mode", "asked", "strictly"),
    [
        ("reject_on_proven_regression", "no proven loss over 0.030", "no proven loss"),
        ("demand_non_inferiority", "a loss over 0.030 ruled out", "a loss ruled out"),
    ],
)
def test_what_was_asked_is_what_the_mode_asks(gate, decision_page, sections, mode, asked, strictly):
    decision = json.loads((gate / "decision.json").read_text())
    kept = {"kind": "no_regression", "passed": True, "difference": -0.049, "margin": 0.03}
    strict = decision["rules"][0] | {"name": "strict", "margin": 0.0}
    decision["rules"] = [
        kept | {"name": "kept", "slice": "size=small"},
        kept | {"name": "whole", "slice": "all"},
        strict,
    ]
    write_json_atomic(gate / "decision.json", decision | {"mode": mode})
    shown = sections(decision_page().read_text())["rules"]
    assert re.findall(r'<td data-title="asked"><div>([^<]*)<', shown) == [strictly, asked, asked]
    names = [shown.index(f'<th scope="row">{name}') for name in ("strict", "whole", "kept")]
    assert names == sorted(names), "what fails comes first"
    assert shown.count("<details") == 1 and names[1] < shown.index("<details") < names[2]
    assert "1 rule is kept in its slice" in shown


def test_images_change_only_against_a_model_in_production(gate, decision_page, sections):
    decision = json.loads((gate / "decision.json").read_text()) | {"changed_images": {"better": [], "worse": []}}
    write_json_atomic(gate / "decision.json", decision)
    page = sections(decision_page().read_text())
    assert "rose or fell by 0.05 or more" in page["changed"]
    write_json_atomic(gate / "decision.json", decision | {"differences": []})
    assert "changed" not in sections(decision_page().read_text())


@pytest.mark.parametrize(
    ("interval", "proven", "change"),
    [
        ([0.01, 0.05], "better", "better"),
        ([-0.05, -0.01], "worse", "worse"),
        ([0.01, 0.05], None, "open"),  # not after the correction for many slices
        (None, "perhaps", "open"),
        ([None, 0.4], None, "open"),
    ],
)
def test_a_difference_is_coloured_only_where_it_is_proven(interval, proven, change):
    row = {"slice": "all", "difference": np.mean(interval).item() if interval and None not in interval else 0.4}
    plot = _forest([{**row, "interval": interval, "proven": proven}], None)
    assert plot is not None
    assert [drawn["change"] for drawn in plot["rows"]] == [change]
    assert all(0 <= drawn["left"] <= drawn["left"] + drawn["width"] <= 100 for drawn in plot["rows"])
