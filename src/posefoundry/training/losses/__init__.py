"""The published losses of the three families; `build_criterion` picks a model's."""

from posefoundry.training.losses.criterion import Criterion, PoseLoss
from posefoundry.training.losses.factory import build_criterion

__all__ = ["Criterion", "PoseLoss", "build_criterion"]
