"""The passport of a number: on what, by which rules and with what it was measured. Without it, no AP is comparable."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate
from posefoundry.evaluation.fast_oks import MAX_BOXES_PER_IMAGE, MAX_POSES_PER_IMAGE
from posefoundry.evaluation.ground_truth import AREA_RULES
from posefoundry.files import sha256_of_file

SOFTWARE = ("posefoundry", "torch", "numpy", "opencv-python-headless", "pycocotools")

# Of `SOFTWARE` too where it is what runs the model.
SOFTWARE_OF_RUNTIME = {"onnxruntime": ("onnxruntime",), "tensorrt": ("tensorrt",)}

# Numbers compare only if these are equal; see `first_difference`.
COMPARABLE_FIELDS = (
    "images_sha256",
    "annotations_sha256",
    "area_rule",
    "sigmas",
    "max_poses_per_image",
    "max_boxes_per_image",
    "max_detections",
    "confidence",
    "nms_iou",
    "pck_reference",
    "runtime",
    "precision",
)


def conditions_of_test(
    annotations: Path, images: Sequence[Path], settings: Evaluate, sigmas: Sequence[float]
) -> dict[str, Any]:
    """Returns the part of a passport that must be equal for two models: the data and the rules."""
    return {
        "images": len(images),
        "images_sha256": sha256_of_files(images),
        "annotations_sha256": sha256_of_file(annotations),
        "area_rule": AREA_RULES["annotation"],
        "sigmas": [float(sigma) for sigma in sigmas],
        "max_poses_per_image": MAX_POSES_PER_IMAGE,
        "max_boxes_per_image": MAX_BOXES_PER_IMAGE,
        "max_detections": settings.max_detections,
        "confidence": settings.confidence,
        "nms_iou": settings.nms_iou,
        "pck_reference": settings.pck_reference,
    }


def sha256_of_files(paths: Sequence[Path]) -> str:
    """Returns one fingerprint of the names and contents of files, whatever their order and folder."""
    lines = sorted(f"{sha256_of_file(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def software_versions(*more: str) -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide the numbers, and of `more` that are installed."""
    versions = {"python": platform.python_version()}
    for package in (*SOFTWARE, *more):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Returns the first field that keeps the numbers of two passports from being compared, or None if none does.

    What was asked must be equal, `COMPARABLE_FIELDS`: the images and the annotations by their content; the rules, which
    are the area rule, the sigmas, how many poses and boxes of an image count and what PCK measures a person by; the
    thresholds on scores and overlaps and the most detections, without which a model could shine by saying more or less;
    and the runtime and its precision, so that nobody takes rounding for a better model. The release gate, which is
    there to compare runtimes, leaves these two out. A field that only one passport has differs; one that neither has,
    such as the thresholds of a file of detections, differs only if it is the annotations.

    Who answered may be whoever it is: the model's weights and architecture, its head and the input size it was made
    for are the model, and a larger input that gives better numbers is a better model, whose cost the budgets of
    latency show. Device and versions of software differ between honest measurements of one model; they are there to
    be looked up when two numbers that should be equal are not.
    """
    fields = [field for field in COMPARABLE_FIELDS if field in one or field in other or field == "annotations_sha256"]
    return next((f for f in fields if f not in one or f not in other or one[f] != other[f]), None)


def fingerprint_of_test(passport: Mapping[str, Any]) -> str | None:
    """Returns one hash of all that `first_difference` compares; None if the passport doesn't name its annotations."""
    if "annotations_sha256" not in passport:
        return None
    compared = {field: passport[field] for field in COMPARABLE_FIELDS if field in passport}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()
