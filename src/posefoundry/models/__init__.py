"""The YOLO-pose families in plain PyTorch, and their weights in and out."""

from posefoundry.models.families import MODEL_NAMES, needs_nms
from posefoundry.models.head import HeadOutput
from posefoundry.models.info import ModelInfo
from posefoundry.models.pose_model import PoseModel, build_model
from posefoundry.models.weights import TransferReport, load_model, save_weights, transfer_weights

__all__ = [
    "MODEL_NAMES",
    "HeadOutput",
    "ModelInfo",
    "PoseModel",
    "TransferReport",
    "build_model",
    "load_model",
    "needs_nms",
    "save_weights",
    "transfer_weights",
]
