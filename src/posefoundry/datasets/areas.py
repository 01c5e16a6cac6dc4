"""How much of a person's box the person fills, where nobody measured it.

OKS scales by a person's area. In COCO that is the area of a mask, about half of the box. Annotation tools that know
points and boxes alone write the box's area, and a person corrected with one would be judged half as strictly.
"""

from typing import Any

import numpy as np

from posefoundry.skeleton import AREA_PER_BOX_AREA


def area_of_box(annotations: list[dict[str, Any]]) -> float:
    """Returns the median part of their box that persons fill, or `AREA_PER_BOX_AREA` where none was measured.

    Crowds do not count; a part above 1, which no mask has, counts as 1.
    """
    shares = [
        min(annotation["area"] / (annotation["bbox"][2] * annotation["bbox"][3]), 1.0)
        for annotation in annotations
        if not annotation.get("iscrowd")
        and (annotation.get("area") or 0) > 0
        and annotation["bbox"][2] > 0
        and annotation["bbox"][3] > 0
    ]
    return float(np.median(shares)) if shares else AREA_PER_BOX_AREA
