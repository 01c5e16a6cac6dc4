"""The smallest drop that the test images can show."""

import numpy as np
import pytest
from gate_rules import DEMAND, SAME, at_least, compared, gain, gate, no_loss, resampled

from posefoundry.config import NoRegression
from posefoundry.evaluation.gate import decide, power_of_gate


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
    assert power(gate(no_loss(0.01)), compared(all_=SAME), 400) is None
    assert power(gate(at_least(0.1)), compared(), 400) is None
