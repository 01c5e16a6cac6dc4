"""The losses of yolo26 against the published ones, head by head, and against themselves over split batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posefoundry.config import LossGains
from posefoundry.models import HeadOutput, load_model
from posefoundry.models.flow import RealNVP
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training.losses.criterion import Weights
from posefoundry.training.losses.yolo26 import Yolo26Criterion

PARITY = Path(__file__).parents[3].parent / "shared" / "parity"


def criterion(**changes: object) -> Yolo26Criterion:
    arguments = {
        "kpt_shape": (17, 3),
        "skeleton": COCO_PERSON,
        "strides_px": (8, 16, 32),
        "gains": LossGains(),
        "weights": Weights(None, torch.ones(17)),
        "flow": RealNVP(),
        "epochs": 10,
    }
    return Yolo26Criterion(**(arguments | changes))


def test_terms_of_both_heads_equal_the_published(published: Callable) -> None:
    # Origin of the numbers: the published package, version 8.4.190, on CPU in float32.
    # Its named terms are those of the one-to-one head; its total, per term, mixes both heads and counts by the image.
    output, batch, expected = published("yolo26n-pose")
    model, _ = load_model(PARITY / "yolo26n-pose.pt")
    own = criterion(flow=model.head.flow_model)
    mixed = own(output, batch)
    own.one_to_many_weight = 0.0
    one_to_one = own(output, batch)
    for name, total in zip(own.terms, expected["total"].tolist(), strict=True):
        assert one_to_one.terms[name].item() == pytest.approx(expected[f"{name}_loss"].item(), rel=1e-3), name
        assert mixed.terms[name].item() * len(batch.images) == pytest.approx(total, rel=1e-3), name
    assert mixed.total.item() == pytest.approx(expected["total"].sum().item(), rel=1e-3)


def test_the_one_to_many_head_hands_over_to_the_other() -> None:
    own = criterion(epochs=8)
    weights = []
    for epoch in range(8):
        own.start_epoch(epoch)
        weights.append(own.one_to_many_weight)
    assert weights == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    alone = criterion(epochs=1)
    alone.start_epoch(0)
    assert alone.one_to_many_weight == 0.8


@pytest.mark.parametrize("flow_seed", [0, 1])
def test_shares_of_two_processes_add_up_to_the_loss_of_one(
    published: Callable, halves: Callable, flow_seed: int
) -> None:
    output, batch, _ = published("yolo26n-pose")
    torch.manual_seed(flow_seed)
    flow = RealNVP()
    whole = criterion(flow=flow)(output, batch)

    def all_processes(totals: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """Answers with the totals known so far, one call after the other; remembers further ones."""
        return lambda local: totals[len(asked) - 1] if not asked.append(local) and len(asked) <= len(totals) else local

    totals: list[Tensor] = []
    for _ in range(2):  # the second sum, of the likelihoods, needs the first, of the counts
        calls = []
        for part in halves(output, batch):
            asked: list[Tensor] = []
            criterion(flow=flow, sum_over_processes=all_processes(totals))(*part)
            calls.append(asked[len(totals)])
        totals.append(calls[0] + calls[1])
    shares = []
    for part in halves(output, batch):
        asked = []
        shares.append(criterion(flow=flow, sum_over_processes=all_processes(totals))(*part))
    assert sum(share.total.item() for share in shares) == pytest.approx(whole.total.item(), rel=1e-5)
    for name, term in whole.terms.items():
        assert sum(share.terms[name].item() for share in shares) == pytest.approx(term.item(), rel=1e-5), name


def test_likelihood_is_floored_by_the_mean_of_all_processes(published: Callable) -> None:
    output, batch, _ = published("yolo26n-pose")
    free = criterion()(output, batch).terms["rle"]
    assert free > 0
    floored = criterion(sum_over_processes=_MoreNegativeElsewhere())(output, batch)
    assert floored.terms["rle"] == 0
    assert floored.terms["pose"] > 0


class _MoreNegativeElsewhere:
    """Another process whose likelihoods outweigh ours; its counts are nothing."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, local: Tensor) -> Tensor:
        self.calls += 1
        return local if self.calls == 1 else local - 1e6


def test_images_without_persons_teach_only_the_class(published: Callable, nobody: Callable) -> None:
    output, batch, _ = published("yolo26n-pose")
    loss = criterion()(output, nobody(batch))
    assert loss.n_positive_anchors == 0
    assert {name for name, term in loss.terms.items() if term > 0} == {"cls"}


def test_a_person_without_labelled_keypoints_is_learnt_by_its_box(published: Callable) -> None:
    output, batch, _ = published("yolo26n-pose")
    keypoints = batch.keypoints_xyv.clone()
    keypoints[..., 2] = 0
    loss = criterion()(output, replace(batch, keypoints_xyv=keypoints))
    assert loss.terms["box"] > 0
    assert loss.terms["pose"] == loss.terms["rle"] == 0


def test_keypoints_without_visibility_have_no_visibility_loss(published: Callable) -> None:
    def without_visibility(head: HeadOutput) -> HeadOutput:
        raw_xy = head.keypoints.view(2, 17, 3, -1)[:, :, :2].reshape(2, 34, -1)
        return replace(head, keypoints=raw_xy, one_to_one=None)

    output, batch, _ = published("yolo26n-pose")
    two_values = replace(without_visibility(output), one_to_one=without_visibility(output.one_to_one))
    flow = RealNVP()
    with_visibility = criterion(flow=flow)(output, batch)
    without = criterion(flow=flow, kpt_shape=(17, 2))(two_values, batch)
    assert without.terms["kobj"] == 0
    assert without.terms["pose"].item() == pytest.approx(with_visibility.terms["pose"].item(), rel=1e-6)


def test_only_the_one_to_many_head_teaches_the_backbone() -> None:
    from posefoundry.models import build_model

    torch.manual_seed(0)
    model = build_model("yolo26n-pose").train()
    output = model(torch.rand(2, 3, 64, 64))
    sum(t.sum() for t in (output.one_to_one.boxes, output.one_to_one.scores, output.one_to_one.keypoints)).backward()
    assert model.model[0].conv.weight.grad is None
    output.scores.sum().backward()
    assert model.model[0].conv.weight.grad.abs().sum() > 0
