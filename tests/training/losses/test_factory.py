"""Each family learns by its own loss."""

import pytest

from posefoundry.config import Train
from posefoundry.models import build_model
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training.losses import build_criterion
from posefoundry.training.losses.yolo26 import Yolo26Criterion
from posefoundry.training.losses.yolov8 import Yolov8Criterion


@pytest.mark.parametrize(
    ("name", "expected"),
    [("yolov8n-pose", Yolov8Criterion), ("yolo11n-pose", Yolov8Criterion), ("yolo26n-pose", Yolo26Criterion)],
)
def test_the_family_decides(name: str, expected: type) -> None:
    assert type(build_criterion(build_model(name), COCO_PERSON, Train(model=name))) is expected
