from pathlib import Path

import numpy as np
import pytest
import torch

from posefoundry.models import ModelInfo, PoseModel, build_model
from posefoundry.skeleton import COCO_PERSON, Skeleton


def info_of(model: PoseModel, image_size_px: int = 64) -> ModelInfo:
    n_keypoints = model.kpt_shape[0]
    names = [f"point_{i}" for i in range(n_keypoints)]
    return ModelInfo(
        architecture=model.name,
        class_names=tuple(f"class_{i}" for i in range(model.n_classes)),
        category_ids=tuple(range(1, model.n_classes + 1)),
        kpt_shape=model.kpt_shape,
        skeleton=COCO_PERSON if n_keypoints == 17 else Skeleton.from_names(names),
        stride_px=max(model.strides),
        image_size_px=image_size_px,
    )


@pytest.fixture(scope="session")
def make_info():
    return info_of


@pytest.fixture(scope="session")
def model() -> PoseModel:
    torch.manual_seed(0)
    return build_model("yolov8n-pose").eval()


@pytest.fixture(scope="session")
def info(model: PoseModel) -> ModelInfo:
    return info_of(model)


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (64, 48), (48, 64), (1, 1), (4, 200), (96, 128), (64, 64), (90, 120)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture(scope="session")
def coco_real() -> Path:
    folder = Path(__file__).parents[2].parent / "shared" / "coco-real"
    if not folder.is_dir():
        pytest.skip("needs ../shared/coco-real, real images with annotations")
    return folder


@pytest.fixture(scope="session")
def published_weights() -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "weights" / "yolov8n-pose.pt"
    if not path.is_file():
        pytest.skip("needs ../shared/weights, published trained weights")
    return path
