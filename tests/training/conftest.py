"""A small dataset of drawn people, made once for all training tests."""

from pathlib import Path

import pytest

from posefoundry.config import Augment, Convert, Ingest, SyntheticSource, Train
from posefoundry.stages import convert, ingest

SIDE_PX = 64
BARE = Augment(
    flip_probability=0,
    rotate_degrees=0,
    translate_fraction=0,
    scale_fraction=0,
    hsv_hue=0,
    hsv_saturation=0,
    hsv_value=0,
    mosaic_probability=0,
    mosaic_off_epochs=0,
)


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/ (COCO form) and yolo/ (label form) of 24 + 4 + 4 images of 64 px."""
    root = tmp_path_factory.mktemp("people")
    synthetic = SyntheticSource(image_size_px=SIDE_PX, train_images=24, val_images=4, test_images=4, max_persons=2)
    ingest.run(Ingest(seed=3, synthetic=synthetic), raw=root / "raw", report=root / "ingest.json")
    convert.run(
        Convert(), raw=root / "raw", yolo=root / "yolo", receipt=root / "receipt.jsonl", report=root / "convert.json"
    )
    return root


@pytest.fixture
def settings() -> Train:
    return Train(
        model="yolov8n-pose",
        epochs=2,
        batch_size=8,
        image_size_px=SIDE_PX,
        device="cpu",
        precision="float32",
        optimizer="adamw",
        learning_rate=0.002,
        warmup_epochs=0.5,
        augment=BARE,
    )
