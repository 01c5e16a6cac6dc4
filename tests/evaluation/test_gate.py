"""The gate's rules, one by one, and the decision they add up to."""

import json

import pytest

from posefoundry.evaluation.gate import Production, decide
from posefoundry.evaluation.passport import COMPARABLE_FIELDS, first_difference

NAN = float("nan")
IN_PRODUCTION = Production("3", {"oks_ap": 0.50, "box_ap": 0.70, "oks_ap_l": None, "oks_ap_m": NAN}, {})


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
    decision = decide(candidate, None, floors={"oks_ap": 0.4}, max_regression={})
    [rule] = decision.rules
    assert (rule.passed, rule.sentence) == (passed, sentence)
    assert (rule.metric, rule.bound) == ("oks_ap", 0.4)
    assert decision.passed is passed
    assert decision.verdict == f"{'Passed' if passed else 'Rejected'}: {sentence}"


def test_the_last_bit_of_a_float_decides_nothing():
    assert 0.3 < 0.1 + 0.2
    assert decide({"oks_ap": 0.3}, None, floors={"oks_ap": 0.1 + 0.2}, max_regression={}).passed


@pytest.mark.parametrize(
    ("value", "passed", "sentence"),
    [
        (0.60, True, "Pose accuracy (OKS AP) is 0.600, 0.100 above the 0.500 of version 3 in production."),
        (0.50, True, "Pose accuracy (OKS AP) is 0.500, equal to version 3 in production."),
        (0.485, True, "Pose accuracy (OKS AP) is 0.485, 0.015 below the 0.500 of version 3 in production."),
        (0.48, True, "Pose accuracy (OKS AP) is 0.480, 0.020 below the 0.500 of version 3 in production."),
        (0.47, False, "Pose accuracy (OKS AP) is 0.470, 0.030 below the 0.500 of version 3 in production, "
                      "but at most 0.020 below is allowed."),
        (NAN, False, "Pose accuracy (OKS AP) of the candidate is not a number (nan), so it proves nothing."),
        (None, False, "Pose accuracy (OKS AP) of the candidate has no value on these test images, "
                      "so it proves nothing."),
    ],
)  # fmt: skip
def test_regression_against_production(value, passed, sentence):
    decision = decide({"oks_ap": value}, IN_PRODUCTION, floors={}, max_regression={"oks_ap": 0.02})
    comparable, rule = decision.rules
    assert comparable.passed
    assert (rule.passed, rule.sentence) == (passed, sentence)
    assert decision.passed is passed


def test_without_a_margin_nothing_below_is_allowed():
    decision = decide({"oks_ap": 0.4999}, IN_PRODUCTION, floors={}, max_regression={"oks_ap": 0.0})
    assert decision.verdict == (
        "Rejected: Pose accuracy (OKS AP) is 0.4999, 0.0001 below the 0.5000 of version 3 in production, "
        "but nothing below is allowed."
    )
    assert decide({"oks_ap": 0.5}, IN_PRODUCTION, floors={}, max_regression={"oks_ap": 0.0}).passed


@pytest.mark.parametrize("metric", ["oks_ap_l", "oks_ap_m", "oks_ar"])
def test_a_figure_that_production_lacks_proves_nothing(metric):
    decision = decide({metric: 0.9}, IN_PRODUCTION, floors={}, max_regression={metric: 0.01})
    assert not decision.passed
    assert "version 3 in production" in decision.verdict


def test_the_first_model_has_none_to_fall_behind():
    decision = decide({"oks_ap": 0.5}, None, floors={"oks_ap": 0.4}, max_regression={"oks_ap": 0.01})
    assert decision.passed
    assert decision.rules[-1].sentence == "No model is in production yet, so there is none to fall behind."
    assert decision.verdict == "Passed: all 2 rules hold."


def test_production_that_cannot_be_compared_rejects():
    production = Production("3", {}, {}, "its keypoints differ.")
    decision = decide({"oks_ap": 0.9}, production, floors={"oks_ap": 0.4}, max_regression={"oks_ap": 0.01})
    assert not decision.passed
    assert decision.verdict == "Rejected: Version 3 in production could not be compared: its keypoints differ."


def test_production_does_not_matter_where_no_regression_is_limited():
    assert decide({"oks_ap": 0.9}, Production("3", {}, {}, "gone."), floors={"oks_ap": 0.4}, max_regression={}).passed


def test_a_gate_without_rules_proves_nothing():
    decision = decide({"oks_ap": 0.9}, None, floors={}, max_regression={})
    assert not decision.passed
    assert "gate.floors" in decision.verdict


def test_all_rules_are_judged_and_the_verdict_names_those_that_fail():
    floors = {"oks_ap": 0.4, "box_ap": 0.9, "nonsense": 0.1}
    decision = decide({"oks_ap": 0.45, "box_ap": 0.5}, IN_PRODUCTION, floors=floors, max_regression={"oks_ap": 0.01})
    assert [rule.passed for rule in decision.rules] == [True, False, False, True, False]
    assert decision.verdict == (
        "Rejected: 3 of 5 rules fail (box_ap reaches its floor; nonsense reaches its floor; "
        "oks_ap keeps up with production)."
    )


def test_a_decision_is_plain_json():
    decision = decide({"oks_ap": 0.45}, IN_PRODUCTION, floors={"oks_ap": 0.4}, max_regression={"oks_ap": 0.01})
    content = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert set(content) == {"passed", "verdict", "rules"}
    assert {frozenset(rule) for rule in content["rules"]} == {
        frozenset({"name", "metric", "value", "bound", "passed", "sentence"})
    }


@pytest.mark.parametrize("field", COMPARABLE_FIELDS)
def test_passports_that_differ_in_the_test_itself_are_not_comparable(field):
    passport = dict.fromkeys(COMPARABLE_FIELDS, "same") | {"input_size_px": 640, "model": "yolov8n-pose"}
    assert first_difference(passport, passport | {field: "other"}) == field
    assert first_difference(passport, {key: value for key, value in passport.items() if key != field}) == field


def test_passports_may_differ_in_what_belongs_to_the_model():
    passport = dict.fromkeys(COMPARABLE_FIELDS, "same") | {"input_size_px": 640, "model": "yolov8n-pose"}
    assert first_difference(passport, passport | {"input_size_px": 320, "model": "yolo11s-pose"}) is None
