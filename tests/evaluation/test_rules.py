"""The gate's rules, one by one, in both modes, and the decision they add up to."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from posefoundry.config import DataChecks, Floor, Gate, Improvement, NoRegression
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.bootstrap import Resampled
from posefoundry.evaluation.comparison import differences
from posefoundry.evaluation.gate import decide, power_of_gate
from posefoundry.evaluation.passport import COMPARABLE_FIELDS, fingerprint_of_test, first_difference
from posefoundry.evaluation.rules import Evidence, Production
from posefoundry.evaluation.wording import where

NAN = float("nan")
REJECT, DEMAND = "reject_on_proven_regression", "demand_non_inferiority"


def gate(*rules, mode=REJECT, **settings) -> Gate:
    return Gate(mode=mode, rules=rules, **settings)


def at_least(bound, metric="oks_ap", slice_name="all") -> Floor:
    return Floor(rule="floor", metric=metric, slice=slice_name, at_least=bound)


def no_loss(margin, *slices) -> NoRegression:
    return NoRegression(rule="no_regression", margin=margin, slices=slices or ("all",))


def gain(margin=0.0, slice_name="all") -> Improvement:
    return Improvement(rule="improvement", margin=margin, slice=slice_name)


def resampled(difference, spread, *, production=0.5, images=400) -> Resampled:
    """A difference known to `spread`, by 10,000 resamples that are exactly normal."""
    from statistics import NormalDist

    draws = [NormalDist(difference, spread).inv_cdf((i + 0.5) / 10_000) for i in range(10_000)]
    differences = np.repeat(np.array(draws)[:, None], 10, axis=1)
    return Resampled(np.full(10, production + difference), np.full(10, production), differences, 2 * images, images)


def compared(**slices) -> Evidence:
    """A candidate beside version 3; `all_`, and others by names whose __ stands for =."""
    named = {name.replace("all_", "all").replace("__", "="): value for name, value in slices.items()}
    return Evidence({"oks_ap": 0.5}, production=Production("3", {"oks_ap": 0.5}, {}, resampled=named))


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
    nobody = Resampled(np.full(10, NAN), np.full(10, NAN), np.full((100, 10), NAN), 0, 0)
    evidence = compared(all_=resampled(0, 0.01), size__small=nobody, size__large=resampled(0, 0.01))
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


def test_all_rules_are_judged_and_the_verdict_names_those_that_fail():
    rules = at_least(0.4), at_least(0.9, "box_ap"), no_loss(0.0)
    evidence = compared(all_=resampled(-0.1, 0.01))
    evidence = Evidence({"oks_ap": 0.45, "box_ap": 0.5}, production=evidence.production)
    decision = decide(gate(*rules), evidence)
    assert [rule.passed for rule in decision.rules] == [True, False, True, False]
    assert decision.verdict == (
        "Rejected: 2 of 4 rules fail: pose accuracy (OKS AP) fell behind; person detection (box AP) below its floor."
    )
    assert decision.sentence == (
        "The candidate must not follow version 3 in production: over all persons it is 0.100 AP below version 3, "
        "proven; 1 other rule fails."
    )


def test_the_headline_is_one_sentence_about_the_worst_failure():
    slices = {"all_": resampled(-0.05, 0.01), "keypoint__left_wrist": resampled(-0.347, 0.01)}
    rules = DataChecks(rule="data_checks", warnings=0), at_least(0.9), no_loss(0.01, "all", "keypoint=left_wrist")
    report = {"passed": True, "failed_errors": 0, "failed_warnings": 1, "checks": [1, 2]}

    def decided(settings, **changed):
        return decide(settings, replace(compared(**slices), data_checks=report, **changed))

    regressed = decided(gate(*rules))
    head = "The candidate must not follow version 3 in production: "
    assert regressed.sentence == (
        f"{head}at the left wrist it is 0.347 AP below version 3, proven; 3 other rules fail."
    )
    assert regressed.verdict == (
        "Rejected: 4 of 5 rules fail: pose accuracy (OKS AP) at the left wrist fell behind; pose accuracy (OKS AP) "
        "fell behind; pose accuracy (OKS AP) below its floor; the data checks."
    )
    assert decided(gate(*rules, mode=DEMAND)).sentence == (
        f"{head}at the left wrist it is 0.347 AP below version 3, and a loss over 0.010 is not ruled out; 3 other "
        "rules fail."
    )
    apart = Production("3", {}, {}, "The seed was 1 and is 2. Evaluate again.")
    assert decided(gate(*rules), production=apart).sentence == (
        f"{head}version 3 in production could not be compared: The seed was 1 and is 2; 2 other rules fail."
    )
    assert decided(gate(*rules[:2])).sentence == (
        f"{head}pose accuracy (OKS AP) is 0.500, but at least 0.900 is required; 1 other rule fails."
    )


def test_a_list_of_many_failures_ends():
    slices = {f"keypoint__{i}": resampled(-0.1 - 0.01 * i, 0.01) for i in range(8)}
    decision = decide(gate(no_loss(0.0, *(f"keypoint={i}" for i in range(8)))), compared(**slices))
    assert decision.verdict.startswith("Rejected: 8 of 9 rules fail: pose accuracy (OKS AP) at keypoint 7 fell behind;")
    assert decision.verdict.endswith("at keypoint 3 fell behind; and 3 more.")


def test_the_sentence_of_a_candidate_that_passes_tells_the_difference():
    evidence = compared(all_=resampled(0.012, 0.01))
    evidence = Evidence({"oks_ap": 0.512}, production=evidence.production)
    assert decide(gate(no_loss(0.01)), evidence).sentence == (
        "The candidate may follow version 3 in production: its OKS AP is 0.512 against 0.500, a difference of +0.012 "
        "(95 % interval -0.008 to +0.032)."
    )
    evidence = compared(all_=resampled(-0.03, 0.01))
    told = decide(gate(no_loss(0.02)), Evidence({"oks_ap": 0.47}, production=evidence.production)).sentence
    assert told.endswith(
        "a difference of -0.030 (95 % interval -0.050 to -0.010). That it is worse is proven; that it is worse by more "
        "than the rules allow is not."
    )


def test_a_decision_is_plain_json():
    decision = decide(gate(at_least(0.4), no_loss(0.01)), compared(all_=resampled(0, 0.01)))
    content = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert set(content) == {"passed", "verdict", "sentence", "rules"}
    assert {frozenset(rule) for rule in content["rules"]} == {
        frozenset({
            "name", "kind", "slice", "artifact", "metric", "candidate", "production", "bound", "difference", "interval",
            "p_value", "p_value_holm", "margin", "passed", "sentence", "visible_drop",
        })
    }  # fmt: skip


def power(settings, evidence, images):
    return power_of_gate(settings, evidence, decide(settings, evidence), images)


def test_power_is_the_drop_that_would_be_proven_in_four_cases_of_five():
    spread = 0.0074
    evidence = compared(all_=resampled(0.0, spread, images=150))
    told = power(gate(no_loss(0.01)), evidence, 150)
    # 1.976: the table's 97.5 % quantile of t with 149 degrees of freedom
    assert told.smallest_visible_drop == pytest.approx((1.976 * (150 / 149) ** 0.5 + 0.8416) * spread, rel=1e-3)
    assert not told.is_enough
    assert told.images_needed == pytest.approx(654, abs=3)
    assert told.sentence == (
        "With 150 images a drop under 0.021 AP cannot be seen (95 % confidence, four cases in five); to see the "
        "0.010 of the margin takes about 660. So a loss is as surely rejected only from 0.031 AP on."
    )
    assert power(gate(no_loss(0.01), mode=DEMAND), evidence, 150).sentence.endswith(
        "So a candidate that is just as good will often fail to prove it."
    )
    enough = power(gate(no_loss(0.05)), evidence, 150)
    assert enough.is_enough and enough.sentence.endswith("four cases in five).")
    assert power(gate(gain()), evidence, 150).images_needed is None
    ap75 = NoRegression(rule="no_regression", metric="oks_ap75", margin=0.01)
    assert "a drop under 0.021 AP75 cannot be seen" in power(gate(ap75), evidence, 150).sentence


def test_of_candidates_that_are_worse_by_the_visible_drop_four_in_five_are_rejected():
    settings, spread = gate(no_loss(0.01)), 0.0075
    drop = power(settings, compared(all_=resampled(0.0, spread)), 400).smallest_visible_drop
    differences = np.random.default_rng(0).normal(-0.01 - drop, spread, 300)
    rejected = [not decide(settings, compared(all_=resampled(d, spread))).passed for d in differences]
    assert np.mean(rejected) == pytest.approx(0.8, abs=0.06)


def test_power_tells_in_which_slices_the_images_are_too_few():
    slices = {"all_": 0.002, "size__small": 0.02, "keypoint__left_wrist": 0.004, "size__large": 0.015}
    evidence = compared(**{name: resampled(0.0, spread) for name, spread in slices.items()})
    names = ("keypoint=left_wrist", "size=small", "size=large")
    told = power(gate(no_loss(0.01), no_loss(0.03, *names)), evidence, 400)
    assert told.blind_slices == ("size=small", "size=large")
    assert told.sentence == (
        "With 400 images a drop under 0.007 AP cannot be seen (95 % confidence, four cases in five, among 4 slices). "
        "In 2 of 3 slices the images are too few for the margin, most of all of small persons: there a drop under "
        "0.067 AP cannot be seen."
    )


def test_models_that_find_the_same_do_not_tell_how_much_is_luck():
    same = Resampled(np.full(10, 0.5), np.full(10, 0.5), np.zeros((1000, 10)), 800, 400)
    assert power(gate(no_loss(0.01)), compared(all_=same), 400) is None
    assert power(gate(at_least(0.1)), compared(), 400) is None


# Every rule, in both modes, on every kind of evidence; R and D: passes in reject_on_proven_regression,
# demand_non_inferiority. The interval reaches 0.0197 to either side of the difference.
NOBODY = Resampled(np.full(10, NAN), np.full(10, NAN), np.full((1000, 10), NAN), 0, 0)
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
        "the same model": Resampled(np.full(10, 0.5), np.full(10, 0.5), np.zeros((10_000, 10)), 800, 400),
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


@pytest.mark.parametrize(
    ("slice_name", "words"),
    [
        ("all", ""),
        ("keypoint=left_wrist&size=small", " at the left wrist of small persons"),
        ("visibility=occluded", " at occluded keypoints"),
        ("keypoint=nose&visibility=visible", " at the visible nose"),
        ("keypoint=3", " at keypoint 3"),
        ("size=large&truncation=truncated", " of large persons cut off by the border"),
        ("truncation=whole", " of persons wholly in the picture"),
        ("class=dog&size=small", " of small persons of class dog"),
        ("persons=1", " in images of 1 person"),
        ("persons=4+&size=small", " of small persons in images of 4 or more persons"),
        ("corrected=yes", " in corrected images"),
        ("keypoint=nose&camera=north&site=hall_2", " at the nose in images with camera north and site hall_2"),
    ],
)
def test_slices_are_read_aloud(slice_name, words):
    assert where(slice_name) == words


def test_differences_are_proven_by_their_corrected_p_value():
    slices = {"all": (0.03, 400), "size=small": (-0.05, 400), "size=large": (0.024, 400), "site=hall": (-0.3, 19)}
    rows = differences({name: resampled(d, 0.01, images=n) for name, (d, n) in slices.items()}, 0.95)
    assert {row["slice"]: row["proven"] for row in rows} == {
        "all": "better", "size=small": "worse", "size=large": "better", "site=hall": None,
    }  # fmt: skip
    many = {f"keypoint={i}": resampled(0.002, 0.01) for i in range(18)}
    many |= {"keypoint=0": resampled(0.05, 0.01), "keypoint=17": resampled(0.024, 0.01)}
    proven = {row["slice"]: row["proven"] for row in differences(many, 0.95)}
    assert (proven["keypoint=0"], proven["keypoint=17"], proven["keypoint=3"]) == ("better", None, None)
    same = Resampled(np.full(10, 0.5), np.full(10, 0.5), np.zeros((1000, 10)), 800, 400)
    [row] = differences({"all": same}, 0.95)
    assert row["proven"] is None and row["interval"] == (0, 0)


def test_the_side_of_a_proven_difference_is_that_of_its_interval():
    below = resampled(-0.03, 0.005)
    observed_above = replace(below, candidate=np.full(10, 0.5), production=np.full(10, 0.49))
    [row] = differences({"all": observed_above}, 0.95)
    assert row["difference"] > 0 > row["interval"][1]
    assert row["proven"] == "worse"


def test_a_waived_comparison_is_told_in_the_sentence():
    settings = gate(no_loss(0.01), incomparable_production="waive")
    assert decide(settings, evidence_of("the same, waived")).sentence == (
        "The candidate may follow version 3 in production: its OKS AP is 0.500; it could not be compared, which "
        "gate.incomparable_production waives."
    )


@pytest.mark.parametrize("field", COMPARABLE_FIELDS)
def test_passports_that_differ_in_the_test_itself_are_not_comparable(field):
    passport = dict.fromkeys(COMPARABLE_FIELDS, "same") | {"input_size_px": 640, "model": "yolov8n-pose"}
    assert first_difference(passport, passport | {field: "other"}) == field
    assert first_difference(passport, {key: value for key, value in passport.items() if key != field}) == field


def test_passports_may_differ_in_what_belongs_to_the_model():
    passport = dict.fromkeys(COMPARABLE_FIELDS, "same") | {"input_size_px": 640, "model": "yolov8n-pose"}
    assert first_difference(passport, passport | {"input_size_px": 320, "model": "yolo11s-pose"}) is None


def test_a_passport_without_a_model_compares_with_its_like():
    of_file = {"annotations_sha256": "a", "area_rule": "box", "sigmas": [0.1], "max_poses_per_image": 20}
    assert first_difference(of_file, dict(of_file)) is None
    assert first_difference(of_file, of_file | {"confidence": 0.1}) == "confidence"
    assert first_difference({}, {}) == "annotations_sha256", "nothing known is nothing alike"


def test_the_fingerprint_of_a_test_is_that_of_what_must_be_equal():
    passport = {"annotations_sha256": "a", "confidence": 0.1, "device": "cpu"}
    assert fingerprint_of_test(passport) == fingerprint_of_test(passport | {"device": "cuda"})
    assert fingerprint_of_test(passport) != fingerprint_of_test(passport | {"confidence": 0.2})
    assert fingerprint_of_test({"device": "cpu"}) is None
