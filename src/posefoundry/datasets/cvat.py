"""A skeleton as CVAT's label constructor takes it (docs.cvat.ai, "Annotation with skeletons"; tab "Raw")."""

from typing import Any

import numpy as np

from posefoundry.datasets.coco import CocoKeypoints

_CANVAS = 100  # CVAT draws the template in a square of 100 x 100
_MARGIN = 10


def skeleton_labels(truth: CocoKeypoints) -> list[dict[str, Any]]:
    """Returns one skeleton label a category; its template is the mean pose of the annotated persons.

    Without annotated persons, the keypoints stand in a circle.
    """
    places = _mean_pose(truth)
    names = truth.skeleton.keypoint_names
    edges = "".join(
        f'<line x1="{places[a][0]}" y1="{places[a][1]}" x2="{places[b][0]}" y2="{places[b][1]}" stroke="black" '
        f'stroke-width="0.5" data-type="edge" data-node-from="{a + 1}" data-node-to="{b + 1}"></line>'
        for a, b in truth.skeleton.edges
    )
    nodes = "".join(
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x}" cy="{y}" stroke-width="0.1" data-type="element node" '
        f'data-element-id="{i}" data-node-id="{i}" data-label-name="{_escaped(name)}"></circle>'
        for i, (name, (x, y)) in enumerate(zip(names, places, strict=True), start=1)
    )
    return [
        {
            "name": category["name"],
            "type": "skeleton",
            "attributes": [],
            "sublabels": [{"name": name, "type": "points", "attributes": []} for name in names],
            "svg": edges + nodes,
        }
        for category in truth.categories
    ]


def _mean_pose(truth: CocoKeypoints) -> list[tuple[float, float]]:
    k = truth.skeleton.n_keypoints
    sums, counts = np.zeros((k, 2)), np.zeros((k, 1))
    for annotation in truth.annotations:
        x, y, width, height = annotation["bbox"]
        keypoints = annotation.get("keypoints")
        if keypoints and width > 0 and height > 0 and not annotation.get("iscrowd"):
            points = np.array(keypoints, np.float64).reshape(k, 3)
            labelled = points[:, 2:] > 0
            sums += np.where(labelled, (points[:, :2] - [x, y]) / [width, height], 0)
            counts += labelled
    angles = np.linspace(0, 2 * np.pi, k, endpoint=False)
    circle = 0.5 + 0.5 * np.stack((np.sin(angles), -np.cos(angles)), axis=1)
    places = np.clip(np.where(counts > 0, sums / np.maximum(counts, 1), circle), 0, 1)
    scaled = (_MARGIN + places * (_CANVAS - 2 * _MARGIN)).round(2)
    return [(float(x), float(y)) for x, y in scaled]


def _escaped(name: str) -> str:
    return name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
