"""The decision that the rules add up to, and how it is told."""

import json
from dataclasses import replace

from gate_rules import DEMAND, at_least, compared, gate, no_loss, resampled

from posefoundry.config import DataChecks
from posefoundry.evaluation.gate import decide
from posefoundry.evaluation.rules import Evidence, Production


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


def test_a_waived_comparison_is_told_in_the_sentence():
    apart = Evidence({"oks_ap": 0.5}, production=Production("3", {}, {}, "its file is broken."))
    settings = gate(no_loss(0.01), incomparable_production="waive")
    assert decide(settings, apart).sentence == (
        "The candidate may follow version 3 in production: its OKS AP is 0.500; it could not be compared, which "
        "gate.incomparable_production waives."
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
