"""Label Studio's own JSON, written as tasks with predictions and read back as exported (labelstud.io/guide/export).

A person is a rectangle; each keypoint is a region whose parent is the rectangle (`parentID`). Coordinates are percent
of the image's width and height. Label Studio's COCO export rounds keypoints to whole pixels and parts them from their
boxes, so it is the JSON export that comes back.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from posefoundry.datasets.coco import CocoKeypoints
from posefoundry.errors import PosefoundryError

BOXES, KEYPOINTS, VISIBILITY, IMAGE = "person", "keypoints", "visibility", "image"
HIDDEN = "hidden"

# What Label Studio puts before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def labelling_config(category_names: list[str], keypoint_names: tuple[str, ...]) -> str:
    """Returns the labelling interface that the tasks are made for."""
    keypoints = "\n".join(
        f'    <Label value={quoteattr(name)} model_index="{index}"/>' for index, name in enumerate(keypoint_names)
    )
    boxes = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in category_names)
    return (
        f'<View>\n  <Text name="reason" value="$reason"/>\n  <Image name="{IMAGE}" value="$image" zoom="true"/>\n'
        f'  <RectangleLabels name="{BOXES}" toName="{IMAGE}">\n{boxes}\n  </RectangleLabels>\n'
        f'  <KeyPointLabels name="{KEYPOINTS}" toName="{IMAGE}" strokeWidth="2">\n{keypoints}\n  </KeyPointLabels>\n'
        f'  <Choices name="{VISIBILITY}" toName="{IMAGE}" perRegion="true" whenTagName="{KEYPOINTS}">\n'
        f'    <Choice value="{HIDDEN}"/>\n  </Choices>\n</View>\n'
    )


def task_of_image(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    category_names: dict[int, str],
    keypoint_names: tuple[str, ...],
    *,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Returns one task whose prediction is what COCO annotations say.

    Its picture is taken from local storage: Label Studio's document root is the folder that holds `images/`.

    Args:
        image: A COCO image record.
        annotations: Its persons, with a `score` each.
        category_names: Names by category id.
        keypoint_names: K names.
        extra: Further data of the task.
    """
    width, height = image["width"], image["height"]
    common = {"to_name": IMAGE, "original_width": width, "original_height": height, "image_rotation": 0}
    regions: list[dict[str, Any]] = []
    for annotation in annotations:
        x, y, box_width, box_height = annotation["bbox"]
        box_id = f"p{annotation['id']}"
        box = {"x": 100 * x / width, "y": 100 * y / height, "rotation": 0}
        box |= {"width": 100 * box_width / width, "height": 100 * box_height / height}
        value = {**box, "rectanglelabels": [category_names[annotation["category_id"]]]}
        regions.append(
            {"id": box_id, "type": "rectanglelabels", "from_name": BOXES, "value": value, **common}
            | {"score": annotation["score"]}
        )
        triples = zip(*(iter(annotation["keypoints"]),) * 3, strict=True)
        for name, (px, py, v) in zip(keypoint_names, triples, strict=True):
            if v:
                point = {"x": 100 * px / width, "y": 100 * py / height, "width": 0.5}
                region = {"id": f"{box_id}-{name}", "parentID": box_id, **common}
                regions.append(
                    region
                    | {"type": "keypointlabels", "from_name": KEYPOINTS, "value": {**point, "keypointlabels": [name]}}
                )
                if v == 1:
                    hidden = {**point, "choices": [HIDDEN]}
                    regions.append(region | {"type": "choices", "from_name": VISIBILITY, "value": hidden})
    score = min((annotation["score"] for annotation in annotations), default=0.0)
    return {
        "data": {
            "image": f"/data/local-files/?d=images/{image['file_name']}",
            "file_name": image["file_name"],
            "width": width,
            "height": height,
            **extra,
        },
        "predictions": [{"model_version": "posefoundry", "score": score, "result": regions}],
    }


def is_label_studio(content: Any) -> bool:
    """Tells whether this is the content of a JSON export: a list of tasks."""
    return isinstance(content, list) and all(isinstance(task, dict) and "data" in task for task in content)


def read_export(path: Path, content: list[dict[str, Any]], categories: list[dict[str, Any]]) -> CocoKeypoints:
    """Reads an export's tasks into COCO form; tasks that nobody has annotated or that were skipped are left out.

    Of several annotations of one task the last counts. Annotations have no `area`.

    Args:
        path: Where it was read from, for messages.
        content: The tasks.
        categories: COCO categories whose names and keypoints the labels stand for.

    Raises:
        PosefoundryError: A label is unknown, a keypoint belongs to no person or comes twice, or a box is rotated.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, task in enumerate(content):
        given = [entry for entry in task.get("annotations") or [] if not entry.get("was_cancelled")]
        if not given:
            continue
        where = f"{path}: task {task.get('id', number)}"
        regions = given[-1].get("result") or []
        image = {"id": len(images) + 1, "file_name": _file_name(task["data"], where), **_size(task["data"], regions)}
        images.append(image)
        try:
            for person in _persons(regions, categories):
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **person})
        except (KeyError, TypeError, ValueError) as error:
            raise PosefoundryError(
                f"{where}: expected regions as Label Studio's JSON export has them, got {error!r}. Export as JSON, "
                "not as JSON-MIN."
            ) from None
        except PosefoundryError as error:
            raise PosefoundryError(f"{where}: {error}") from None
    return CocoKeypoints(images, annotations, categories)


def _file_name(data: dict[str, Any], where: str) -> str:
    if isinstance(name := data.get("file_name"), str):
        return name
    address = data.get(IMAGE)
    if not isinstance(address, str):
        raise PosefoundryError(f"{where}: expected its picture as data.image or data.file_name, got {list(data)}.")
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return _UPLOAD_PREFIX.sub("", PurePosixPath(local[0] if local else unquote(parts.path)).name)


def _size(data: dict[str, Any], regions: list[dict[str, Any]]) -> dict[str, int]:
    for region in regions:
        if "original_width" in region:
            return {"width": int(region["original_width"]), "height": int(region["original_height"])}
    return {side: data[side] for side in ("width", "height") if side in data}


def _persons(regions: list[dict[str, Any]], categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = {category["name"]: category["id"] for category in categories}
    names = list(categories[0]["keypoints"])
    persons: dict[str, dict[str, Any]] = {}
    for region in regions:
        if region["type"] == "rectanglelabels":
            (label,) = region["value"]["rectanglelabels"]
            if label not in ids:
                raise PosefoundryError(f"expected one of the classes {', '.join(ids)}, got {label!r}.")
            if region["value"].get("rotation"):
                raise PosefoundryError(
                    f"expected upright boxes, got one turned by {region['value']['rotation']} degrees."
                )
            x, y = _pixels(region, "x", "y")
            width, height = _pixels(region, "width", "height")
            persons[region["id"]] = {
                "category_id": ids[label],
                "bbox": [x, y, width, height],
                "iscrowd": 0,
                "keypoints": [0] * (3 * len(names)),
            }
    hidden = {
        region["id"]
        for region in regions
        if region["type"] == "choices" and HIDDEN in region["value"].get("choices", [])
    }
    for region in regions:
        if region["type"] == "keypointlabels":
            (label,) = region["value"]["keypointlabels"]
            if label not in names:
                raise PosefoundryError(f"expected one of the keypoints {', '.join(names)}, got {label!r}.")
            x, y = _pixels(region, "x", "y")
            place = 3 * names.index(label)
            keypoints = _person_of(region, (x, y), persons, label)["keypoints"]
            if keypoints[place + 2]:
                raise PosefoundryError(f"expected one {label} a person, got a second one at {x:.0f}, {y:.0f} px.")
            keypoints[place : place + 3] = [x, y, 1 if region["id"] in hidden else 2]
    return [person | {"num_keypoints": sum(v > 0 for v in person["keypoints"][2::3])} for person in persons.values()]


def _person_of(
    region: dict[str, Any], at_px: tuple[float, float], persons: dict[str, dict[str, Any]], label: str
) -> dict[str, Any]:
    """Returns the parent, or, for a keypoint that was put under no box, the only person whose box it is in."""
    if region.get("parentID") in persons:
        return persons[region["parentID"]]
    around = [
        person
        for person in persons.values()
        if all(
            low <= at <= low + side for at, low, side in zip(at_px, person["bbox"][:2], person["bbox"][2:], strict=True)
        )
    ]
    if len(around) != 1:
        raise PosefoundryError(
            f"the {label} at {at_px[0]:.0f}, {at_px[1]:.0f} px belongs to no box, and {len(around)} boxes are around "
            "it. Drag it under its person's box in the list of regions."
        )
    return around[0]


def _pixels(region: dict[str, Any], horizontal: str, vertical: str) -> tuple[float, float]:
    value = region["value"]
    return (
        round(value[horizontal] * region["original_width"] / 100, 3),
        round(value[vertical] * region["original_height"] / 100, 3),
    )
