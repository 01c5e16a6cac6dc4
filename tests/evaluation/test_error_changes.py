"""Which kinds of error are named as what a worse AP comes from, and when none is."""

import pytest

from posefoundry.evaluation.error_changes import error_changes
from posefoundry.evaluation.rules import Outcome

KINDS = dict.fromkeys(("jitter", "inversion", "swap", "miss", "background", "duplicate", "missed_person"), 0.01)
WORSE = [{"slice": "all", "difference": -0.05, "proven": None}]
BETTER = [{"slice": "all", "difference": 0.05, "proven": "better"}]


def told(changes, differences=WORSE, rules=()):
    return error_changes({"ap_lost": KINDS | changes}, {"ap_lost": KINDS}, rules, differences)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inversion": 0.052}, "AP lost to inversions rose from 0.010 to 0.052."),
        ({"inversion": 0.052, "miss": 0.02}, "AP lost to inversions rose from 0.010 to 0.052."),
        ({"missed_person": 0.04, "background": 0.052, "swap": 0.0},
         "AP lost to false positives in the background rose from 0.010 to 0.052, to missed persons from 0.010 to "
         "0.040."),
        ({"jitter": 0.0149}, None),
        ({"jitter": 0.016}, "AP lost to jitter rose from 0.010 to 0.016."),
        ({"miss": None, "swap": 0.0}, None),
    ],
)  # fmt: skip
def test_what_rose_most_is_named(changes, sentence):
    assert told(changes) == sentence


def test_only_of_a_candidate_that_is_worse_somewhere():
    risen = {"inversion": 0.052}
    assert told(risen, BETTER) is None
    assert told(risen, [*BETTER, {"slice": "size=small", "difference": -0.1, "proven": "worse"}])
    assert told(risen, [*BETTER, {"slice": "size=small", "difference": -0.1, "proven": None}]) is None
    fails = Outcome("", "no_regression", False, "", "oks_ap", "size=small", difference=-0.1)
    assert told(risen, BETTER, [fails])
    assert error_changes({"ap_lost": KINDS | risen}, None, (), WORSE) is None, "no model to compare with"
