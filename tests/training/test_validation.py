"""Each image of the val split is judged once, whichever process has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posefoundry.files import write_json_atomic
from posefoundry.inference.results import PoseResult
from posefoundry.models import ModelInfo
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.validation import Validator

N_IMAGES = 5  # does not divide by two
SIDE_PX = 64
INFO = ModelInfo(
    architecture="yolov8n-pose", class_names=("person",), category_ids=(1,), kpt_shape=(17, 3), skeleton=COCO_PERSON,
    stride_px=32, image_size_px=SIDE_PX,
)  # fmt: skip
ALONE = ProcessGroup(rank=0, n_processes=1, device=torch.device("cpu"))


def person(number: int) -> np.ndarray:
    """Returns the (17, 3) keypoints of the person in an image."""
    xy = np.random.default_rng(number).uniform(10, 50, (17, 2)).round(1)
    return np.column_stack([xy, np.full(17, 2.0)])


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    images, persons = [], []
    for number in range(N_IMAGES):
        images.append({"id": 7 * number, "file_name": f"{number}.png", "height": SIDE_PX, "width": SIDE_PX})
        box, keypoints = [8, 8, 44, 44], person(number)
        persons.append(
            {"id": number, "image_id": 7 * number, "category_id": 1, "bbox": box, "area": 44 * 44, "iscrowd": 0,
             "num_keypoints": 17, "keypoints": keypoints.ravel().tolist()}
        )  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_PERSON.keypoint_names), "skeleton": []}]
    path = tmp_path / "val.json"
    write_json_atomic(path, {"images": images, "annotations": persons, "categories": categories})
    return path


class Guesser:
    """Stands for a predictor: finds each person, the worse the higher the image's number."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def predict(self, images: Sequence[Path], **_: Any) -> list[PoseResult]:
        self.seen += [image.name for image in images]
        return [self._guess(image) for image in images]

    def _guess(self, path: Path) -> PoseResult:
        number = int(path.stem)
        keypoints = person(number)
        keypoints[:, 0] += 2.0 * number
        box = np.array([[8 + number, 8, 52 + number, 52]], np.float32)
        score = np.array([0.3 + 0.1 * number], np.float32)
        size_hw = (SIDE_PX, SIDE_PX)
        return PoseResult(box, score, np.zeros(1, np.int64), keypoints[None].astype(np.float32), size_hw, path, {})


def judge(
    annotations: Path, group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float | None], list[str]]:
    guesser = Guesser()
    monkeypatch.setattr(Validator, "_predictor", lambda *_: guesser)
    metrics = Validator(annotations, annotations.parent, INFO, group, 2, "float32")(None)  # type: ignore[arg-type]
    return metrics, guesser.seen


def test_two_processes_judge_each_image_once_and_find_what_one_finds(
    annotations: Path, pair: tuple[ProcessGroup, ProcessGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, seen_alone = judge(annotations, ALONE, monkeypatch)
    of_second, seen_by_second = judge(annotations, pair[1], monkeypatch)
    of_main, seen_by_main = judge(annotations, pair[0], monkeypatch)
    assert seen_alone == [f"{number}.png" for number in range(N_IMAGES)]
    assert sorted(seen_by_main + seen_by_second) == seen_alone
    assert abs(len(seen_by_main) - len(seen_by_second)) <= 1
    assert alone["oks_ap"] is not None and 0 < alone["oks_ap"] < 1
    assert of_main == alone
    assert of_second == {}
