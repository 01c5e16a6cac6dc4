"""Ground truth in COCO form for data that has only YOLO labels."""

import warnings
from pathlib import Path

from posefoundry.datasets.coco import CocoKeypoints
from posefoundry.datasets.yolo import DatasetSpec, Labels, image_files, label_path_of, read_labels
from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import AREA_PER_BOX_AREA


def coco_from_labels(spec: DatasetSpec, split: str) -> CocoKeypoints:
    """Turns the labels of a split into COCO ground truth, with `area` as `AREA_PER_BOX_AREA` times the box.

    `file_name` is relative to the split's folder; for a split that is a list of files it is an absolute path. The
    categories carry the data set's sigmas.

    Raises:
        PosefoundryError: There is no such split or no image in it, or an image or label file cannot be read.
    """
    if split not in spec.splits:
        raise PosefoundryError(f"{spec.root}: expected a split {split!r}, got only {', '.join(spec.splits)}.")
    where = spec.splits[split]
    paths = image_files(where)
    if not paths:
        raise PosefoundryError(f"{where}: expected images of the {split} split, found none.")
    content = CocoKeypoints(images=[], annotations=[], categories=_categories(spec))
    for image_id, path in enumerate(paths, start=1):
        width, height = _image_size_wh(path)
        name = path.relative_to(where).as_posix() if where.is_dir() else str(path.absolute())
        content.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        labels = read_labels(label_path_of(path), spec.kpt_shape, len(spec.class_names))
        _add_annotations(content, labels, image_id, (width, height), spec.category_ids)
    return content


def _categories(spec: DatasetSpec) -> list[dict[str, object]]:
    skeleton = spec.skeleton
    return [
        {
            "id": category_id,
            "name": name,
            "keypoints": list(skeleton.keypoint_names),
            "skeleton": [[a + 1, b + 1] for a, b in skeleton.edges],
            "sigmas": list(skeleton.sigmas),
        }
        for category_id, name in zip(spec.category_ids, spec.class_names, strict=True)
    ]


def _add_annotations(
    content: CocoKeypoints, labels: Labels, image_id: int, size_wh: tuple[int, int], category_ids: tuple[int, ...]
) -> None:
    width, height = size_wh
    persons = zip(labels.class_ids, labels.boxes_cxcywhn.tolist(), labels.keypoints_xyvn.tolist(), strict=True)
    for class_id, (centre_x, centre_y, box_width, box_height), points in persons:
        keypoints = [value for x, y, v in points for value in ((x * width, y * height, int(v)) if v > 0 else (0, 0, 0))]
        area = AREA_PER_BOX_AREA * box_width * width * box_height * height
        box_x, box_y = centre_x - box_width / 2, centre_y - box_height / 2
        content.annotations.append(
            {
                "id": len(content.annotations) + 1,
                "image_id": image_id,
                "category_id": category_ids[class_id],
                "bbox": [box_x * width, box_y * height, box_width * width, box_height * height],
                "area": area,
                "iscrowd": 0,
                "keypoints": keypoints,
                "num_keypoints": sum(v > 0 for _, _, v in points),
            }
        )


def _image_size_wh(path: Path) -> tuple[int, int]:
    """Reads width and height of the stored pixels from the file's header alone."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decompressed here
            with Image.open(path) as image:
                return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise PosefoundryError(f"{path}: expected an image, got: {error}.") from None
