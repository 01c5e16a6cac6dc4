"""Which family learns by which loss."""

from posefoundry.config import Train
from posefoundry.models import PoseModel
from posefoundry.skeleton import Skeleton
from posefoundry.training.losses.criterion import Criterion, SumOverProcesses, alone
from posefoundry.training.losses.yolo26 import Yolo26Criterion
from posefoundry.training.losses.yolov8 import Yolov8Criterion


def build_criterion(
    model: PoseModel, skeleton: Skeleton, settings: Train, sum_over_processes: SumOverProcesses = alone
) -> Criterion:
    """Builds the loss of the model's family.

    Args:
        model: What is to learn.
        skeleton: Its keypoints.
        settings: Section `train` of the parameters.
        sum_over_processes: Adds a tensor up over all processes; the identity for a single one.
    """
    if model.head.form.one_to_one:
        return Yolo26Criterion(
            kpt_shape=model.kpt_shape,
            skeleton=skeleton,
            strides_px=model.strides,
            gains=settings.loss,
            flow=model.head.flow_model,
            epochs=settings.epochs,
            sum_over_processes=sum_over_processes,
        )
    return Yolov8Criterion(
        kpt_shape=model.kpt_shape,
        sigmas=skeleton.sigmas,
        strides_px=model.strides,
        gains=settings.loss,
        sum_over_processes=sum_over_processes,
    )
