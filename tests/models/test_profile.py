"""Parameters and GFLOPs of all 16 models against the published ones."""

import pytest

from posefoundry.models.families import MODEL_NAMES
from posefoundry.models.profile import published_profiles

# Published sizes (M parameters, GFLOPs at 640 px, 1280 for p6; convolution and BatchNorm fused): yolov8 with one class,
# 11 and 26 with 80.
PUBLISHED = {
    "yolov8n-pose": (3.290, 9.178),
    "yolov8s-pose": (11.616, 30.186),
    "yolov8m-pose": (26.448, 81.022),
    "yolov8l-pose": (44.466, 168.550),
    "yolov8x-pose": (69.462, 263.208),
    "yolov8x-pose-p6": (99.141, 1066.367),
    "yolo11n-pose": (2.900, 7.637),
    "yolo11s-pose": (9.934, 23.343),
    "yolo11m-pose": (20.950, 71.846),
    "yolo11l-pose": (26.199, 90.897),
    "yolo11x-pose": (58.843, 203.649),
    "yolo26n-pose": (2.960, 7.742),
    "yolo26s-pose": (10.390, 24.292),
    "yolo26m-pose": (21.599, 73.664),
    "yolo26l-pose": (25.995, 92.034),
    "yolo26x-pose": (57.649, 202.795),
}


def test_sizes_are_the_published_ones():
    profiles = {profile.name: profile for profile in published_profiles()}
    assert tuple(profiles) == MODEL_NAMES
    assert set(PUBLISHED) == set(MODEL_NAMES)
    for name, (parameters_m, gflops) in PUBLISHED.items():
        assert profiles[name].parameters / 1e6 == pytest.approx(parameters_m, rel=0.001)
        assert profiles[name].gflops == pytest.approx(gflops, rel=0.001)
