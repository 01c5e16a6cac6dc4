"""The YOLO-pose families in plain PyTorch, and their weights in and out."""

from posefoundry.models.families import MODEL_NAMES, needs_nms
from posefoundry.models.head import HeadOutput
from posefoundry.models.pose_model import PoseModel, build_model

__all__ = ["MODEL_NAMES", "HeadOutput", "PoseModel", "build_model", "needs_nms"]
