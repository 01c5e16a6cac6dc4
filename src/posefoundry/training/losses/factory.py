"""Which family learns by which loss."""

from collections.abc import Sequence

from posefoundry.config import Train
from posefoundry.models import PoseModel
from posefoundry.skeleton import Skeleton
from posefoundry.training.losses.criterion import Criterion, SumOverProcesses, Weights, alone, named_weights
from posefoundry.training.losses.yolo26 import Yolo26Criterion
from posefoundry.training.losses.yolov8 import Yolov8Criterion


def build_criterion(
    model: PoseModel,
    skeleton: Skeleton,
    settings: Train,
    sum_over_processes: SumOverProcesses = alone,
    class_names: Sequence[str] = (),
) -> Criterion:
    """Builds the loss of the model's family.

    Args:
        model: What is to learn.
        skeleton: Its keypoints.
        settings: Section `train` of the parameters.
        sum_over_processes: Adds a tensor up over all processes; the identity for a single one.
        class_names: By class index, as `settings.loss.class_weights` has them.

    Raises:
        PosefoundryError: A weight is of a class or keypoint that is not there.
    """
    gains = settings.loss
    weights = Weights(
        classes=named_weights("class_weights", gains.class_weights, class_names) if gains.class_weights else None,
        keypoints=named_weights("keypoint_weights", gains.keypoint_weights, skeleton.keypoint_names),
    )
    if model.head.form.one_to_one:
        return Yolo26Criterion(
            kpt_shape=model.kpt_shape,
            skeleton=skeleton,
            strides_px=model.strides,
            gains=gains,
            weights=weights,
            flow=model.head.flow_model,
            epochs=settings.epochs,
            sum_over_processes=sum_over_processes,
        )
    return Yolov8Criterion(
        kpt_shape=model.kpt_shape,
        sigmas=skeleton.sigmas,
        strides_px=model.strides,
        gains=gains,
        weights=weights,
        sum_over_processes=sum_over_processes,
    )
