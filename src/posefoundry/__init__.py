"""posefoundry: from COCO keypoint annotations to a pose model that is proven better than the one in production."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("posefoundry")
except PackageNotFoundError:  # used from a source tree, for instance on a bare GPU machine
    __version__ = "0.1.0"
