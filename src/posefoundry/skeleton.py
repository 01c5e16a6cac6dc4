"""The keypoint schema: names, edges, flip pairs and sigmas, from one definition."""

from dataclasses import dataclass, replace
from typing import Any

from posefoundry.errors import PosefoundryError

# Per-keypoint standard deviations of human annotation, relative to object scale: cocodataset.org/#keypoints-eval,
# in the order of the COCO keypoints; pycocotools holds the same numbers in Params.setKpParams.
COCO_SIGMAS = tuple(
    tenfold / 10  # written and divided as there, so that the numbers are the same to the last bit
    for tenfold in (
        0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89,
    )
)  # fmt: skip
# OKS scales distances by the area of a person's mask. Where there are no masks the field takes this share of the box,
# which is about what the masks of COCO's own persons fill.
AREA_PER_BOX_AREA = 0.53


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Names, edges, flip partners and sigmas of K keypoints.

    Attributes:
        keypoint_names: K names.
        edges: Pairs of 0-based keypoint indices that are drawn as limbs.
        flip_indices: K indices; keypoint i of a mirrored image is keypoint `flip_indices[i]` of the original.
        sigmas: K standard deviations of annotation, relative to object scale, as OKS uses them.
    """

    keypoint_names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip_indices: tuple[int, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        n = self.n_keypoints
        if n == 0 or len(set(self.keypoint_names)) != n:
            raise PosefoundryError(f"A skeleton needs distinct keypoint names, got {list(self.keypoint_names)}.")
        if sorted(self.flip_indices) != list(range(n)) or any(
            self.flip_indices[j] != i for i, j in enumerate(self.flip_indices)
        ):
            raise PosefoundryError(
                f"flip_indices must exchange keypoints pairwise among 0..{n - 1}, got {list(self.flip_indices)}."
            )
        if len(self.sigmas) != n or min(self.sigmas) <= 0:
            raise PosefoundryError(f"A skeleton of {n} keypoints needs {n} positive sigmas, got {list(self.sigmas)}.")
        if any(not 0 <= i < n for edge in self.edges for i in edge):
            raise PosefoundryError(f"Edges must name keypoints 0..{n - 1}, got {list(self.edges)}.")

    @property
    def n_keypoints(self) -> int:
        """K, the number of keypoints."""
        return len(self.keypoint_names)

    @classmethod
    def from_names(cls, names: list[str], edges: list[tuple[int, int]] | None = None) -> "Skeleton":
        """Builds a skeleton from keypoint names alone.

        Flip partners are the names that differ by `left` and `right`. Sigmas are COCO's for COCO's own names in
        COCO's order, otherwise 1/K for each keypoint, the usual default for a schema without measured sigmas.
        """
        position = {name: index for index, name in enumerate(names)}
        swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}

        def partner(name: str) -> str:
            for side, other in swap.items():
                if side in name and (mirrored := name.replace(side, other)) in position:
                    return mirrored
            return name

        is_coco = tuple(names) == COCO_KEYPOINT_NAMES
        return cls(
            keypoint_names=tuple(names),
            edges=tuple(edges or ()),
            flip_indices=tuple(position[partner(name)] for name in names),
            sigmas=COCO_SIGMAS if is_coco else tuple(1 / len(names) for _ in names),
        )

    @classmethod
    def from_coco_category(cls, category: dict[str, Any]) -> "Skeleton":
        """Builds the skeleton of a COCO category, whose `skeleton` edges count from 1.

        `sigmas` and `flip_idx`, additions to COCO's form, are taken where they are stated.
        """
        names = category.get("keypoints") or []
        skeleton = cls.from_names(list(names))
        edges = [(int(a), int(b)) for a, b in category.get("skeleton") or []]
        for edge in edges:
            if not all(1 <= number <= len(names) for number in edge):
                raise PosefoundryError(
                    f"skeleton: expected edges between the keypoints 1..{len(names)} ({', '.join(names)}), "
                    f"got {list(edge)}."
                )
        skeleton = replace(skeleton, edges=tuple((a - 1, b - 1) for a, b in edges))
        if stated := category.get("sigmas"):
            skeleton = replace(skeleton, sigmas=tuple(float(sigma) for sigma in stated))
        if pairs := category.get("flip_idx"):
            skeleton = replace(skeleton, flip_indices=tuple(int(index) for index in pairs))
        return skeleton

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists for JSON; `from_dict` reads them back."""
        return {
            "keypoint_names": list(self.keypoint_names),
            "edges": [list(edge) for edge in self.edges],
            "flip_indices": list(self.flip_indices),
            "sigmas": list(self.sigmas),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Skeleton":
        """Reads what `to_dict` wrote."""
        return cls(
            keypoint_names=tuple(content["keypoint_names"]),
            edges=tuple((int(a), int(b)) for a, b in content["edges"]),
            flip_indices=tuple(int(i) for i in content["flip_indices"]),
            sigmas=tuple(float(s) for s in content["sigmas"]),
        )


COCO_KEYPOINT_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

# The edges of category `person` in the COCO 2017 release, counted from 1 as there.
COCO_PERSON_CATEGORY: dict[str, Any] = {
    "id": 1,
    "name": "person",
    "supercategory": "person",
    "keypoints": list(COCO_KEYPOINT_NAMES),
    "skeleton": [
        [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9], [8, 10],
        [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
    ],
}  # fmt: skip

COCO_PERSON = Skeleton.from_coco_category(COCO_PERSON_CATEGORY)
