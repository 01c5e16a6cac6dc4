"""What a model's outputs mean."""

from dataclasses import dataclass
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.models.families import needs_nms
from posefoundry.skeleton import Skeleton


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model's outputs mean; it travels with the weights and with every artifact made from them.

    Attributes:
        architecture: The model's name, such as `yolov8n-pose`.
        class_names: One name a class.
        category_ids: The COCO category id of each class.
        kpt_shape: (K, V); V is 3 with visibility, otherwise 2.
        skeleton: Names, edges, flip partners and sigmas of the K keypoints.
        stride_px: Sides of the model's input are multiples of this.
        image_size_px: Long side of the images it was trained on.
        end2end: Of a model with both heads, whether the one in use is the one that names each person once.
    """

    architecture: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    kpt_shape: tuple[int, int]
    skeleton: Skeleton
    stride_px: int
    image_size_px: int
    end2end: bool = True

    def __post_init__(self) -> None:
        if len(self.category_ids) != len(self.class_names):
            raise PosefoundryError(
                f"Expected one category id a class, got {len(self.category_ids)} for {list(self.class_names)}."
            )
        if self.skeleton.n_keypoints != self.kpt_shape[0]:
            raise PosefoundryError(
                f"Expected a skeleton of {self.kpt_shape[0]} keypoints, got {self.skeleton.n_keypoints}."
            )

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def needs_nms(self) -> bool:
        """Whether the outputs hold several boxes a person, which non-maximum suppression thins out."""
        return needs_nms(self.architecture) or not self.end2end

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; `from_dict` reads them back."""
        return {
            "architecture": self.architecture,
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "kpt_shape": list(self.kpt_shape),
            "skeleton": self.skeleton.to_dict(),
            "stride_px": self.stride_px,
            "image_size_px": self.image_size_px,
            "end2end": self.end2end,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelInfo":
        """Reads what `to_dict` wrote, and leaves other keys alone.

        Raises:
            PosefoundryError: A field is missing or has an impossible value.
        """
        try:
            return cls(
                architecture=str(content["architecture"]),
                class_names=tuple(str(name) for name in content["class_names"]),
                category_ids=tuple(int(i) for i in content["category_ids"]),
                kpt_shape=(int(content["kpt_shape"][0]), int(content["kpt_shape"][1])),
                skeleton=Skeleton.from_dict(content["skeleton"]),
                stride_px=int(content["stride_px"]),
                image_size_px=int(content["image_size_px"]),
                end2end=bool(content.get("end2end", True)),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PosefoundryError(
                f"Expected a model's description (architecture, class_names, ...), got one with a fault: {error!r}."
            ) from None
