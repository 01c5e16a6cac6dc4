"""Each family learns by its own loss."""

from dataclasses import replace

import pytest
import torch

from posefoundry.config import LossGains, Train
from posefoundry.errors import PosefoundryError
from posefoundry.models import HeadOutput, build_model
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training.batch import Batch
from posefoundry.training.losses import PoseLoss, build_criterion
from posefoundry.training.losses.yolo26 import Yolo26Criterion
from posefoundry.training.losses.yolov8 import Yolov8Criterion


@pytest.mark.parametrize(
    ("name", "expected"),
    [("yolov8n-pose", Yolov8Criterion), ("yolo11n-pose", Yolov8Criterion), ("yolo26n-pose", Yolo26Criterion)],
)
def test_the_family_decides(name: str, expected: type) -> None:
    assert type(build_criterion(build_model(name), COCO_PERSON, Train(model=name))) is expected


FAMILIES = ["yolov8n-pose", "yolo26n-pose"]
WRISTS = {"left_wrist": 0.0, "right_wrist": 0.0}


def drawn(name: str, n_classes: int = 1) -> tuple[HeadOutput, Batch]:
    """Outputs of an untrained model for noise, and two persons of which each has all keypoints."""
    torch.manual_seed(0)
    output = build_model(name, n_classes=n_classes).train()(torch.rand(2, 3, 64, 64))
    boxes = torch.tensor([[[8.0, 8, 56, 60]], [[4.0, 16, 40, 60]]])
    xy = boxes[:, :, None, :2] + torch.rand(2, 1, 17, 2) * (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    return output, Batch(
        images=torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        class_ids=torch.tensor([[0], [n_classes - 1]]),
        boxes_xyxy=boxes,
        keypoints_xyv=torch.cat([xy, torch.full((2, 1, 17, 1), 2.0)], -1),
        is_person=torch.ones(2, 1, dtype=torch.bool),
    )


def loss_of(name: str, output: HeadOutput, batch: Batch, skeleton=COCO_PERSON, **loss) -> PoseLoss:
    n_classes = output.scores.shape[1]
    torch.manual_seed(0)
    model = build_model(name, n_classes=n_classes)
    settings = Train(model=name, loss=LossGains(**loss))
    return build_criterion(model, skeleton, settings, class_names=("person", "tiger")[:n_classes])(output, batch)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_keypoint_without_weight_teaches_nothing(name: str) -> None:
    output, batch = drawn(name)
    elsewhere = replace(batch, keypoints_xyv=batch.keypoints_xyv.clone())
    elsewhere.keypoints_xyv[:, :, 9:11, :2] += 9  # both wrists
    terms = ("pose", "rle") if name.startswith("yolo26") else ("pose",)
    # What yolov8 assigns depends on boxes alone; yolo26 assigns by keypoints, which weights do not touch.
    usual, moved = loss_of(name, output, batch), loss_of(name, output, elsewhere)
    without, without_moved = (loss_of(name, output, b, keypoint_weights=WRISTS) for b in (batch, elsewhere))
    assert all(without.terms[term] < usual.terms[term] for term in terms)
    if name.startswith("yolov8"):
        assert usual.terms["pose"] != moved.terms["pose"]
        assert without.terms["pose"] == without_moved.terms["pose"]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_keypoints_add_up(name: str) -> None:
    """The loss is linear in the weights: that of the wrists and that of all others make up the whole."""
    output, batch = drawn(name)
    others = {name: 0.0 for name in COCO_PERSON.keypoint_names if name not in WRISTS}
    whole, of_wrists, of_others, doubled = (
        loss_of(name, output, batch, keypoint_weights=weights).terms["pose"].item()
        for weights in ({}, others, WRISTS, dict.fromkeys(WRISTS, 2.0))
    )
    assert of_wrists > 0
    assert of_wrists + of_others == pytest.approx(whole, rel=1e-5)
    assert doubled == pytest.approx(whole + of_wrists, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_classes_add_up(name: str) -> None:
    output, batch = drawn(name, n_classes=2)
    whole, person, tiger, same = (
        loss_of(name, output, batch, class_weights=weights).terms
        for weights in ({}, {"tiger": 0}, {"person": 0}, {"person": 1, "tiger": 1})
    )
    assert person["cls"] > 0 and tiger["cls"] > 0
    assert (person["cls"] + tiger["cls"]).item() == pytest.approx(whole["cls"].item(), rel=1e-5)
    assert all(whole[term].item() == same[term].item() for term in whole)
    assert whole["box"] == person["box"]


@pytest.mark.parametrize("name", FAMILIES)
def test_sigmas_are_the_skeletons(name: str) -> None:
    output, batch = drawn(name)
    tolerant = replace(COCO_PERSON, sigmas=tuple(3 * sigma for sigma in COCO_PERSON.sigmas))
    pose = loss_of(name, output, batch).terms["pose"]
    assert loss_of(name, output, batch, skeleton=tolerant).terms["pose"] < 0.98 * pose


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"keypoint_weights": {"left_wirst": 2}},
            r"train.loss.keypoint_weights: unknown name 'left_wirst'; did you mean 'left_wrist'",
        ),
        ({"class_weights": {"car": 2}}, r"train.loss.class_weights: unknown name 'car'; the data has: person."),
    ],
)
def test_weights_of_names_that_are_not_there(loss: dict, message: str) -> None:
    output, batch = drawn("yolov8n-pose")
    with pytest.raises(PosefoundryError, match=message):
        loss_of("yolov8n-pose", output, batch, **loss)
