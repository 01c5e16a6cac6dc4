"""Each image of the val split is judged once, whichever process has it, and read once where there is room."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.files import write_json_atomic
from posefoundry.inference.predictor import FittedImage
from posefoundry.inference.results import PoseResult
from posefoundry.models import ModelInfo, build_model
from posefoundry.skeleton import COCO_PERSON
from posefoundry.training import validation
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.image_cache import ImageCache
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


def test_a_second_validation_reads_no_file_and_finds_the_same(annotations: Path) -> None:
    # Of many sizes, so that every one is padded otherwise; a model that has learnt nothing finds something everywhere.
    rng = np.random.default_rng(0)
    paths = [annotations.parent / f"{number}.png" for number in range(N_IMAGES)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), rng.integers(0, 256, (40 + 9 * number, 75, 3), np.uint8))
    torch.manual_seed(0)
    model = build_model("yolov8n-pose")
    found: list[list[dict[str, Any]]] = []
    uncached, short, cached = (Validator(annotations, annotations.parent, INFO, ALONE, 2, "float32") for _ in range(3))
    image_bytes = SIDE_PX * SIDE_PX * 3  # no fitted one is larger
    rooms = [ImageCache(3 + N_IMAGES, SIDE_PX, limit_bytes=n * image_bytes) for n in (2, N_IMAGES)]
    for validator, room in zip((short, cached), rooms, strict=True):
        validator.images.keep_in(room, first_number=3)
    for validator in (uncached, short, short, cached):
        validator.evaluator.evaluate = lambda detections: found.append(detections) or {}  # type: ignore[method-assign]
        validator(model)
    assert 0 < rooms[0].bytes_kept <= 2 * image_bytes < rooms[1].bytes_kept
    assert [rooms[1].get(number) is None for number in range(3 + N_IMAGES)] == [True] * 3 + [False] * N_IMAGES
    for path in paths:
        path.unlink()
    cached(model)
    assert len(found[0]) > N_IMAGES
    assert len(found) == 5
    assert all(detections == found[0] for detections in found)
    for validator in (uncached, short):
        with pytest.raises(PosefoundryError, match="found no file"):
            validator(model)


class Guesser:
    """Stands for a predictor: finds each person, the worse the higher the image's number."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def predict(self, images: Sequence[FittedImage], **_: Any) -> list[PoseResult]:
        paths = [image.path for image in images if image.path is not None]
        self.seen += [path.name for path in paths]
        return [self._guess(path) for path in paths]

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
    monkeypatch.setattr(validation, "read_image_bgr", lambda path: np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))
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
