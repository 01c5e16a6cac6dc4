import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from posefoundry.export.onnx import export_onnx
from posefoundry.models import ModelInfo, PoseModel, build_model
from posefoundry.skeleton import COCO_PERSON

IMAGE_SIZE_PX = 96


@dataclass(frozen=True)
class Exported:
    model: PoseModel
    info: ModelInfo
    path: Path


def random_model(name: str) -> PoseModel:
    """Returns a model in evaluation mode with BatchNorm statistics of random images and random affine parts.

    So a BatchNorm that is folded wrongly shows, and what an image holds reaches the output instead of fading away.
    """
    torch.manual_seed(7)
    model = build_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = None  # the running statistics are the mean over all that follows
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 96, 96))
        for convolution in model.head.last_convolutions():  # keypoints some 100 px away, as in life, not 1000
            convolution.weight.mul_(0.1)
    return model.eval()


def info_of(model: PoseModel) -> ModelInfo:
    return ModelInfo(
        architecture=model.name,
        class_names=("person",),
        category_ids=(1,),
        kpt_shape=(17, 3),
        skeleton=COCO_PERSON,
        stride_px=32,
        image_size_px=IMAGE_SIZE_PX,
    )


@pytest.fixture(scope="session")
def export_model(tmp_path_factory: pytest.TempPathFactory):
    """Exports a random model of the given name; the model is kept as it was before."""

    def export(name: str, **options) -> Exported:
        model = random_model(name)
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        info = info_of(model)
        exported = copy.deepcopy(model)
        export_onnx(exported, info, path, **({"opset": 18, "weights_sha256": "ab" * 32} | options))
        assert exported.state_dict().keys() == model.state_dict().keys()
        return Exported(model, info, path)

    return export


@pytest.fixture(scope="session")
def exported(export_model) -> Exported:
    return export_model("yolov8n-pose")
