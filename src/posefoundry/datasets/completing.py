"""What annotation tools don't give back: a person's area, and a box that holds the person and not just the keypoints.

CVAT derives a skeleton's box from its points, and the area from that box; Label Studio gives no area. Taken at their
word, a corrected person would be judged by other rules than the rest of the data: OKS scales by area.
"""

from typing import Any

import numpy as np

from posefoundry.datasets.areas import area_of_box
from posefoundry.datasets.coco import CocoKeypoints
from posefoundry.datasets.pairing import mutual_nearest

TOLERANCE_PX = 1.0
AREA_TOLERANCE = 0.01
SAME_PERSON_IOU = 0.3
MIN_LABELLED = 5  # of a person whose box tells how far bodies reach beyond their keypoints
_AS_CORRECTED, _OF_PERSON, _OF_DATA = "as corrected", "from the person it corrects", "by the median of the data"


class Completer:
    """Completes corrected annotations by the data they go into.

    - An area that a tool measured (it is not the box's) stays. Otherwise it is the part of the box that the person it
      corrects filled, or that persons of the data fill in the median.
    - A box that is no more than the extent of the keypoints is that of the person it corrects, widened to hold the
      keypoints, or the extent with the margins that persons of the data have in the median. Other boxes stay.

    Args:
        splits: The data before correction.

    Attributes:
        areas: The rule that was taken for each annotation.
        boxes: The same, for boxes.
        area_of_box: The median part.
    """

    def __init__(self, splits: dict[str, CocoKeypoints]) -> None:
        annotations = [annotation for content in splits.values() for annotation in content.annotations]
        self.areas: list[str] = []
        self.boxes: list[str] = []
        self.area_of_box = area_of_box(annotations)
        self._margins = _median_margins(annotations)

    def completed(self, annotation: dict[str, Any], image: dict[str, Any], old: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the annotation with a box and an area.

        Args:
            annotation: A corrected one.
            image: Its image's record.
            old: The image's annotations before.
        """
        persons = [a for a in old if not a.get("iscrowd") and a["category_id"] == annotation["category_id"]]
        pairs = mutual_nearest([annotation["bbox"]], [a["bbox"] for a in persons], min_iou=SAME_PERSON_IOU)
        person = persons[pairs[0][1]] if pairs else None
        given_box_area = annotation["bbox"][2] * annotation["bbox"][3]
        bbox = self._box(annotation, image, person)
        area = annotation.get("area") or 0
        if area > 0 and abs(area - given_box_area) > AREA_TOLERANCE * given_box_area:
            self.areas.append(_AS_CORRECTED)
        else:
            share, rule = self.area_of_box, _OF_DATA
            old_box_area = person["bbox"][2] * person["bbox"][3] if person else 0
            if person and old_box_area > 0 and (person.get("area") or 0) > 0:
                share, rule = min(person["area"] / old_box_area, 1.0), _OF_PERSON
            self.areas.append(rule)
            area = round(share * bbox[2] * bbox[3], 3)
        labelled = sum(v > 0 for v in annotation["keypoints"][2::3])
        return annotation | {
            "bbox": bbox,
            "area": area,
            "num_keypoints": labelled,
            "iscrowd": annotation.get("iscrowd", 0),
        }

    def _box(self, annotation: dict[str, Any], image: dict[str, Any], person: dict[str, Any] | None) -> list[float]:
        extent = _extent_xyxy(annotation["keypoints"])
        x, y, width, height = annotation["bbox"]
        box = np.array([x, y, x + width, y + height], np.float64)
        if extent is None or np.abs(box - extent).max() > TOLERANCE_PX:
            self.boxes.append(_AS_CORRECTED)
            return annotation["bbox"]
        if person is not None:
            self.boxes.append(_OF_PERSON)
            x, y, width, height = person["bbox"]
            low, high = np.minimum([x, y], extent[:2]), np.maximum([x + width, y + height], extent[2:])
        else:
            self.boxes.append(_OF_DATA)
            size = np.tile(extent[2:] - extent[:2], 2)
            low, high = np.split(extent + self._margins * size * [-1, -1, 1, 1], 2)
        border = [image["width"], image["height"]]
        low, high = np.clip(low, 0, border), np.clip(high, 0, border)
        return [*low.round(3).tolist(), *(high - low).round(3).tolist()]


def _extent_xyxy(keypoints: list[float]) -> np.ndarray | None:
    points = np.array(keypoints, np.float64).reshape(-1, 3)
    points = points[points[:, 2] > 0, :2]
    return np.concatenate((points.min(axis=0), points.max(axis=0))) if len(points) else None


def _median_margins(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Returns how far boxes reach beyond the keypoints at left, top, right and bottom, in parts of the extent."""
    margins = []
    for annotation in annotations:
        extent = _extent_xyxy(annotation["keypoints"])
        if extent is None or annotation.get("iscrowd") or annotation.get("num_keypoints", 0) < MIN_LABELLED:
            continue
        size = np.tile(extent[2:] - extent[:2], 2)
        if (size > 0).all():
            x, y, width, height = annotation["bbox"]
            outwards = (np.array([x, y, x + width, y + height]) - extent) * [-1, -1, 1, 1]
            margins.append(outwards / size)
    return np.clip(np.median(margins, axis=0), 0, None) if margins else np.zeros(4)
