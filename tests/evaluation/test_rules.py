"""The gate's rules, one by one, in both modes."""

import json
import re
from dataclasses import replace

import pytest
from gate_rules import DEMAND, NAN, NOBODY, REJECT, SAME, at_least, compared, gain, gate, no_loss, resampled

from posefoundry.config import DataChecks
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.gate import decide
from posefoundry.evaluation.rules import Evidence, Production


@pytest.mark.parametrize(
    ("candidate", "passed", "sentence"),
    [
        ({"oks_ap": 0.41}, True, "Pose accuracy (OKS AP) is 0.410, and at least 0.400 is required."),
        ({"oks_ap": 0.40}, True, "Pose accuracy (OKS AP) is 0.400, and at least 0.400 is required."),
        ({"oks_ap": 1}, True, "Pose accuracy (OKS AP) is 1.000, and at least 0.400 is required."),
        ({"oks_ap": 0.39}, False, "Pose accuracy (OKS AP) is 0.390, but at least 0.400 is required."),
        ({"oks_ap": 0.39999}, False, "Pose accuracy (OKS AP) is 0.39999, but at least 0.40000 is required."),
        ({"oks_ap": NAN}, False,
         "Pose accuracy (OKS AP) of the candidate is not a number (nan), so it proves nothing."),
        ({"oks_ap": float("inf")}, False,
         "Pose accuracy (OKS AP) of the candidate is not a number (inf), so it proves nothing."),
        ({"oks_ap": "0.9"}, False,
         "Pose accuracy (OKS AP) of the candidate is not a number (0.9), so it proves nothing."),
        ({"oks_ap": True}, False,
         "Pose accuracy (OKS AP) of the candidate is not a number (True), so it proves nothing."),
        ({"oks_ap": None}, False,
         "Pose accuracy (OKS AP) of the candidate has no value on these test images, so it proves nothing."),
        ({}, False, "There is no metric oks_ap of the candidate, so it proves nothing."),
        ({"oks_app": 0.9}, False,
         "There is no metric oks_ap of the candidate, so it proves nothing. Did you mean oks_app?"),
    ],
)  # fmt: skip
def test_a_floor(candidate, passed, sentence):
    decision = decide(gate(at_least(0.4)), Evidence(candidate))
    [rule] = decision.rules
    assert (rule.passed, rule.sentence) == (passed, sentence)
    assert (rule.kind, rule.metric, rule.slice, rule.bound) == ("floor", "oks_ap", "all", 0.4)
    assert decision.passed is passed
    assert decision.verdict == f"{'Passed' if passed else 'Rejected'}: {sentence}"


def test_the_last_bit_of_a_float_decides_nothing():
    assert 0.3 < 0.1 + 0.2
    assert decide(gate(at_least(0.1 + 0.2)), Evidence({"oks_ap": 0.3})).passed


def test_a_floor_in_slices():
    evidence = Evidence(
        {"oks_ap": 0.9},
        slices={"size=small": {"oks_ap": 0.2}, "size=medium": {"oks_ap": 0.4}, "size=large": {"oks_ap": None}},
        names={"size": ["size=small", "size=medium", "size=large"]},
    )
    small, medium = decide(gate(at_least(0.3, slice_name="size")), evidence).rules
    assert small.sentence == "Pose accuracy (OKS AP) of small persons is 0.200, but at least 0.300 is required."
    assert (small.slice, small.passed, medium.slice, medium.passed) == ("size=small", False, "size=medium", True)
    [large] = decide(gate(at_least(0.3, slice_name="size=large")), evidence).rules
    assert not large.passed, "who is named must be there"


# With a spread of 0.01 the 95 % interval reaches 0.0196 to either side.
@pytest.mark.parametrize(
    ("mode", "difference", "margin", "passed", "says"),
    [
        (REJECT, +0.05, 0.00, True, "is 0.550, 0.050 above the 0.500 of version 3; a loss is not proven"),
        (REJECT, -0.01, 0.00, True, "is 0.490, 0.010 below the 0.500 of version 3; a loss is not proven"),
        (REJECT, -0.03, 0.00, False, "is 0.470, 0.030 below the 0.500 of version 3; a loss is proven"),
        (REJECT, -0.03, 0.02, True, "a loss of more than 0.020 is not proven (95 % interval -0.050 to -0.010, p 0.16)"),
        (REJECT, -0.05, 0.02, False, "a loss of more than 0.020 is proven (95 % interval -0.070 to -0.030, p 0.0016)"),
        (DEMAND, +0.05, 0.00, True, "and a loss is ruled out (95 % interval +0.030 to +0.070)"),
        (DEMAND, +0.01, 0.00, False, "but a loss is not ruled out (95 % interval -0.010 to +0.030)"),
        (DEMAND, 0.00, 0.01, False, "equal to version 3 in production, but a loss of more than 0.010 is not ruled out"),
        (DEMAND, 0.00, 0.02, True, "equal to version 3 in production, and a loss of more than 0.020 is ruled out"),
        (DEMAND, -0.03, 0.02, False, "a loss of more than 0.020 is not ruled out (95 % interval -0.050 to -0.010)"),
    ],
)
def test_regression_against_production(mode, difference, margin, passed, says):
    decision = decide(gate(no_loss(margin), mode=mode), compared(all_=resampled(difference, 0.01)))
    comparable, rule = decision.rules
    assert comparable.passed
    assert (rule.passed, decision.passed) == (passed, passed)
    assert says in rule.sentence
    assert rule.candidate == pytest.approx(0.5 + difference)
    assert rule.difference == pytest.approx(difference)
    assert rule.bound == pytest.approx(0.5 - margin)
    assert rule.interval == pytest.approx((difference - 0.0196, difference + 0.0196), abs=1e-4)
    # The verdict is that of the interval: all of it beyond the margin, or none of it.
    ends = rule.interval[1] < -margin if mode == REJECT else not rule.interval[0] > -margin
    assert ends is not passed


def test_among_many_slices_one_looks_worse_by_chance():
    slices = {f"keypoint__{i}": resampled(-0.024 if i == 3 else 0.0, 0.01) for i in range(17)}
    evidence = compared(**slices)
    alone = decide(gate(no_loss(0.0, "keypoint=3")), evidence)
    assert not alone.passed
    names = tuple(f"keypoint={i}" for i in range(17))
    together = decide(gate(no_loss(0.0, *names)), evidence)
    assert together.passed
    rule = together.rules[4]
    assert rule.p_value == pytest.approx(0.0086, abs=2e-4)
    assert rule.p_value_holm == pytest.approx(17 * rule.p_value)
    assert "p 0.15 among 17 slices" in rule.sentence
    slices["keypoint__3"] = resampled(-0.04, 0.01)
    proven = decide(gate(no_loss(0.0, *names)), compared(**slices))
    assert [rule.slice for rule in proven.rules if not rule.passed] == ["keypoint=3"]


def test_non_inferiority_is_asked_of_each_slice_by_itself():
    slices = {f"keypoint__{i}": resampled(-0.024 if i == 3 else 0.03, 0.01) for i in range(17)}
    rule = no_loss(0.01, *(f"keypoint={i}" for i in range(17)))
    decision = decide(gate(rule, mode=DEMAND), compared(**slices))
    assert [rule.slice for rule in decision.rules if not rule.passed] == ["keypoint=3"]
    assert {rule.p_value_holm for rule in decision.rules} == {None}


@pytest.mark.parametrize(
    ("difference", "margin", "passed", "says"),
    [(0.03, 0.0, True, "a gain is proven"), (0.01, 0.0, False, "a gain is not proven"),
     (0.03, 0.02, False, "a gain of more than 0.020 is not proven"), (-0.1, 0.0, False, "a gain is not proven")],
)  # fmt: skip
@pytest.mark.parametrize("mode", [REJECT, DEMAND])
def test_an_improvement_must_be_proven_in_either_mode(mode, difference, margin, passed, says):
    decision = decide(gate(gain(margin), mode=mode), compared(all_=resampled(difference, 0.01)))
    assert decision.passed is passed
    assert says in decision.rules[-1].sentence


@pytest.mark.parametrize(("mode", "passed"), [(REJECT, True), (DEMAND, False)])
def test_too_few_images_prove_nothing(mode, passed):
    decision = decide(gate(no_loss(0.0), mode=mode), compared(all_=resampled(-0.3, 0.01, images=19)))
    assert decision.passed is passed
    assert "only 19 images show such persons, and fewer than 20 prove nothing" in decision.rules[-1].sentence
    assert decision.rules[-1].p_value is None
    assert not decide(gate(gain(), mode=mode), compared(all_=resampled(0.3, 0.01, images=19))).passed


def test_a_slice_of_nobody_proves_nothing_unless_it_is_one_of_a_group():
    evidence = compared(all_=resampled(0, 0.01), size__small=NOBODY, size__large=resampled(0, 0.01))
    named = decide(gate(no_loss(0.01, "size=small")), evidence)
    assert not named.passed
    assert "of small persons has no value on these test images, so it proves nothing." in named.verdict
    names = {"size": ["size=small", "size=large"]}
    group = Evidence(evidence.metrics, names=names, production=evidence.production)
    decision = decide(gate(no_loss(0.01, "size")), group)
    assert decision.passed
    assert [rule.slice for rule in decision.rules] == [None, "size=large"]


@pytest.mark.parametrize("mode", [REJECT, DEMAND])
@pytest.mark.parametrize("rule", [at_least(0.9, slice_name="corrected"), no_loss(0.01, "corrected")])
@pytest.mark.parametrize("production", [None, Production("3", {}, {})])
def test_where_no_rule_has_anything_to_judge_nothing_passes(rule, mode, production):
    evidence = Evidence({"oks_ap": 0.1}, names={"corrected": []}, production=production)
    decision = decide(gate(rule, mode=mode), evidence)
    if rule.rule == "no_regression" and production is None:
        assert decision.passed, "the first model has none to fall behind"
        return
    assert not decision.passed and decision.rules == ()
    assert (
        "no rule finds anything to judge" in decision.verdict and "no rule finds anything to judge" in decision.sentence
    )
    assert decision.sentence.endswith(
        "Add one on all persons to the rules, such as {rule: floor, metric: oks_ap, at_least: 0.3}."
    )
    beside = decide(gate(rule, at_least(0.1), mode=mode), evidence)
    assert beside.passed and [rule.slice for rule in beside.rules] == ["all"]


@pytest.mark.parametrize("mode", [REJECT, DEMAND])
def test_a_gain_of_nobody_is_not_proven(mode):
    better = resampled(0.05, 0.01)
    evidence = replace(compared(all_=better, size__small=NOBODY, size__large=better), names={
        "corrected": [], "size": ["size=small", "size=large"], "size=small": ["size=small"],
    })  # fmt: skip
    decision = decide(gate(gain(slice_name="corrected"), mode=mode), evidence)
    assert not decision.passed
    assert decision.verdict == (
        "Rejected: No person in the test images belongs to a slice of corrected, so no gain is proven there."
    )
    named = decide(gate(gain(slice_name="size=small"), mode=mode), evidence)
    assert not named.passed and "has no value on these test images" in named.verdict
    of_group = decide(gate(gain(slice_name="size"), mode=mode), evidence)
    assert of_group.passed and [rule.slice for rule in of_group.rules] == [None, "size=large"]


@pytest.mark.parametrize(
    ("rule", "mode", "says"),
    [
        (no_loss(0.1), REJECT, "To prove a loss in a slice shown by 25 images, at confidence 0.99"),
        (no_loss(0.1), DEMAND, "To rule out a loss in a slice shown by 25 images, at confidence 0.99"),
        (gain(), REJECT, "To prove a gain in a slice shown by 25 images, at confidence 0.99"),
        (gain(), DEMAND, "To prove a gain in a slice shown by 25 images, at confidence 0.99"),
        (no_loss(0.1, "size=small", "size=large"), DEMAND, "in each of 2 slices, of which the least is shown by 25 "),
        (gain(slice_name="size"), REJECT, "in each of 2 slices, of which the least is shown by 25 images"),
    ],
)
def test_resamples_that_could_prove_nothing_are_an_error_that_says_how_many_it_takes(rule, mode, says):
    clearly = resampled(0.4, 0.001, images=25)
    evidence = compared(all_=clearly, size__small=clearly, size__large=resampled(0.4, 0.001, images=400))
    evidence = replace(evidence, names={"size": ["size=small", "size=large"]})
    settings = gate(rule, mode=mode, confidence=0.99, resamples=200)
    with pytest.raises(PosefoundryError, match=re.escape(says)) as error:
        decide(settings, evidence)
    [needed] = map(int, re.findall(r"gate.resamples of at least (\d+), got 200", str(error.value)))
    assert decide(gate(rule, mode=mode, confidence=0.99, resamples=needed), evidence).passed


def test_the_first_model_has_none_to_fall_behind():
    decision = decide(gate(at_least(0.4), no_loss(0.01), gain()), Evidence({"oks_ap": 0.5}))
    assert decision.passed
    assert decision.rules[-1].sentence == "No model is in production yet, so there is none to fall behind."
    assert decision.verdict == "Passed: all 2 rules hold."
    assert decision.sentence == "The candidate may be the first in production: its OKS AP is 0.500."


@pytest.mark.parametrize(("choice", "passed"), [("reject", False), ("waive", True)])
def test_production_that_cannot_be_compared(choice, passed):
    production = Production("3", {}, {}, "its keypoints differ.")
    settings = gate(at_least(0.4), no_loss(0.01), gain(), incomparable_production=choice)
    decision = decide(settings, Evidence({"oks_ap": 0.9}, production=production))
    assert decision.passed is passed
    says = "Version 3 in production could not be compared: its keypoints differ."
    assert decision.rules[-1].sentence.startswith(says)
    if passed:
        assert "waives the comparison" in decision.rules[-1].sentence
    else:
        assert decision.verdict == f"Rejected: {says}"
        assert decision.sentence == f"The candidate must not follow version 3 in production: v{says[1:]}"


def test_production_does_not_matter_where_no_rule_compares():
    assert decide(gate(at_least(0.4)), Evidence({"oks_ap": 0.9}, production=Production("3", {}, {}, "gone."))).passed


@pytest.mark.parametrize(
    ("report", "warnings", "passed"),
    [
        ({"passed": True, "failed_errors": 0, "failed_warnings": 2, "checks": [1, 2, 3]}, None, True),
        ({"passed": True, "failed_errors": 0, "failed_warnings": 2, "checks": [1, 2, 3]}, 2, True),
        ({"passed": True, "failed_errors": 0, "failed_warnings": 2, "checks": [1, 2, 3]}, 1, False),
        ({"passed": False, "failed_errors": 1, "failed_warnings": 0, "checks": [1]}, None, False),
        ({"passed": True, "failed_errors": 1, "failed_warnings": 0, "checks": [1]}, None, False),
        ({"passed": "yes"}, None, False),
        (None, None, False),
    ],
)
def test_data_checks(report, warnings, passed):
    rule = DataChecks(rule="data_checks", warnings=warnings)
    assert decide(gate(rule), Evidence({}, data_checks=report)).passed is passed


# Every rule, in both modes, on every kind of evidence; R and D: passes in reject_on_proven_regression,
# demand_non_inferiority. The interval reaches 0.0197 to either side of the difference.
OUTCOMES = {
    # evidence:                       floor  no_regression .02  improvement  no_regression in a slice
    "none in production":             ("RD", "RD", "RD", "RD"),
    "production does not load":       ("RD", "", "", ""),
    "the same, waived":               ("RD", "RD", "RD", "RD"),
    "nobody in the images":           ("RD", "", "", ""),
    "19 images, clearly worse":       ("RD", "R", "", "R"),
    "19 images, clearly better":      ("RD", "R", "", "R"),
    "the same model":                 ("RD", "RD", "", "RD"),
    "better, proven":                 ("RD", "RD", "RD", "RD"),
    "better, not proven":             ("RD", "RD", "", "RD"),
    "worse within the margin":        ("RD", "RD", "", "RD"),
    "worse, beyond it not ruled out": ("RD", "R", "", "R"),
    "worse beyond it, not proven":    ("RD", "R", "", "R"),
    "worse beyond it, proven":        ("RD", "", "", ""),
    "resamples that prove nothing":   ("RD", "error", "error", "error"),
    "nobody but in a slice":          ("", "", "", "RD"),
    "nothing to judge":               ("", "", "", ""),
}  # fmt: skip


def evidence_of(case: str) -> Evidence:
    metrics = {"oks_ap": 0.5}
    if case == "none in production":
        return Evidence(metrics)
    if case == "nothing to judge":
        return replace(compared(), names={"all": [], "size=small": []})
    if case == "nobody but in a slice":
        return replace(compared(all_=NOBODY, size__small=resampled(0.01, 0.01)), metrics={"oks_ap": None})
    if case in ("production does not load", "the same, waived"):
        return Evidence(metrics, production=Production("3", {}, {}, "its file is broken."))
    known = {
        "nobody in the images": NOBODY,
        "19 images, clearly worse": resampled(-0.3, 0.01, images=19),
        "19 images, clearly better": resampled(0.3, 0.01, images=19),
        "the same model": SAME,
        "better, proven": resampled(0.03, 0.01),
        "better, not proven": resampled(0.01, 0.01),
        "worse within the margin": resampled(-0.01, 0.004),
        "worse, beyond it not ruled out": resampled(-0.01, 0.01),
        "worse beyond it, not proven": resampled(-0.03, 0.01),
        "worse beyond it, proven": resampled(-0.05, 0.01),
        "resamples that prove nothing": resampled(0.4, 0.001, images=20),
    }[case]
    return compared(all_=known, size__small=known)


@pytest.mark.parametrize("mode", [REJECT, DEMAND])
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("case", OUTCOMES)
def test_every_rule_in_every_mode_on_every_evidence(case, column, mode):
    rule = (at_least(0.4), no_loss(0.02), gain(), no_loss(0.02, "size=small"))[column]
    settings = gate(rule, mode=mode, incomparable_production="waive" if "waived" in case else "reject")
    if case == "resamples that prove nothing":
        settings = settings.model_copy(update={"confidence": 0.99, "resamples": 200})
    if OUTCOMES[case][column] == "error":
        with pytest.raises(PosefoundryError, match=r"expected gate\.resamples of at least \d+, got 200"):
            decide(settings, evidence_of(case))
        return
    decision = decide(settings, evidence_of(case))
    assert decision.passed is ({REJECT: "R", DEMAND: "D"}[mode] in OUTCOMES[case][column])
    assert decision.sentence.startswith("The candidate m") and "nan" not in decision.sentence
    for outcome in decision.rules:
        assert re.fullmatch(r"[A-Z].*\.", outcome.sentence, re.DOTALL), outcome.sentence
    json.dumps(decision.to_dict(), allow_nan=False)
