"""posefoundry: from COCO keypoint annotations to a pose model that is proven better than the one in production."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO as YOLO

try:
    __version__ = version("posefoundry")
except PackageNotFoundError:  # used from a source tree, for instance on a bare GPU machine
    __version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `YOLO`, and PyTorch with it, when it is first asked for."""
    if name == "YOLO":
        from posefoundry.api.yolo import YOLO

        return YOLO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
