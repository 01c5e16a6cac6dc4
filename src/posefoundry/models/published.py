"""Published checkpoints: which model one holds, and its tensors."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posefoundry.errors import PosefoundryError
from posefoundry.models.families import MODEL_NAMES
from posefoundry.models.info import ModelInfo
from posefoundry.models.pickle_reader import Structure, read_checkpoint
from posefoundry.models.pose_model import PoseModel, build_model
from posefoundry.skeleton import COCO_PERSON, Skeleton

PUBLISHED_IMAGE_SIZE_PX = 640
PUBLISHED_IMAGE_SIZE_P6_PX = 1280
MAX_MODULE_DEPTH = 32
MAX_MODULES = 100_000  # published models have some hundreds


def read_published(path: Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Reads a checkpoint of the families' own package: a module tree, or plain tensors by name.

    Returns:
        The tensors as stored, usually in half precision, and what model they are; None if they are none of ours.

    Raises:
        PosefoundryError: The file is missing or damaged, asks for code to be run, or holds no tensors.
    """
    checkpoint = read_checkpoint(path)
    root = checkpoint
    if isinstance(checkpoint, dict):  # the averaged weights are the better ones, where a training run left both
        kept = [checkpoint.get("ema"), checkpoint.get("model")]
        root = next((entry for entry in kept if isinstance(entry, Structure | dict)), checkpoint)
    tensors = _tensors_of(root, path) if isinstance(root, Structure) else root
    if not isinstance(tensors, dict):
        raise PosefoundryError(f"{path}: expected a model in the checkpoint, got a {type(root).__name__}.")
    state_dict = {
        name: tensor for name, tensor in tensors.items() if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if not state_dict:
        raise PosefoundryError(f"{path}: expected a model's tensors in the checkpoint, found none.")
    return state_dict, _describe_published(root, state_dict)


def _tensors_of(root: Structure, path: Path) -> dict[str, Tensor]:
    """Walks a module tree as `state_dict` would, by the attributes that every PyTorch module keeps."""
    tensors: dict[str, Tensor] = {}
    n_visited = 0

    def visit(module: Structure, prefix: str, depth: int) -> None:
        nonlocal n_visited
        n_visited += 1
        if depth > MAX_MODULE_DEPTH or n_visited > MAX_MODULES:
            raise PosefoundryError(f"{path}: expected a module tree in the checkpoint, got one that contains itself.")
        for group in ("_parameters", "_buffers"):
            for name, tensor in _mapping(module, group).items():
                if isinstance(tensor, Tensor):
                    tensors[prefix + name] = tensor
        for name, child in _mapping(module, "_modules").items():
            if isinstance(child, Structure):
                visit(child, f"{prefix}{name}.", depth + 1)

    visit(root, "", 0)
    return tensors


def _mapping(module: Structure, group: str) -> dict[str, Any]:
    content = module.state.get(group)
    return {str(name): value for name, value in content.items()} if isinstance(content, dict) else {}


def _describe_published(root: Any, state_dict: dict[str, Tensor]) -> ModelInfo | None:
    """Finds out which model a checkpoint holds, or None.

    The tensors decide: their names and shapes are those of exactly one model. The module's attributes only add what
    tensors don't say.
    """
    attributes = root.state if isinstance(root, Structure) else {}
    names = attributes.get("names")
    n_classes = _channels_out(state_dict, "cv3")
    values_per_person = _channels_out(state_dict, "cv4_kpts") or _channels_out(state_dict, "cv4")
    if n_classes < 1 or values_per_person < 2:
        return None
    # Of a count that both 2 and 3 divide, the attribute tells which it is.
    is_2d = values_per_person % 3 != 0 or attributes.get("kpt_shape") == [values_per_person // 2, 2]
    values = 2 if is_2d else 3
    n_keypoints = values_per_person // values
    architecture = _find_architecture(state_dict, n_classes, (n_keypoints, values))
    if architecture is None:
        return None
    is_coco = n_keypoints == COCO_PERSON.n_keypoints
    class_names = tuple(f"class_{i}" for i in range(n_classes))
    if isinstance(names, dict) and all(i in names for i in range(n_classes)):
        class_names = tuple(str(names[i]) for i in range(n_classes))
    image_size_px = PUBLISHED_IMAGE_SIZE_P6_PX if architecture.endswith("-p6") else PUBLISHED_IMAGE_SIZE_PX
    return ModelInfo(
        architecture=architecture,
        class_names=class_names,
        category_ids=tuple(range(1, n_classes + 1)),  # as COCO numbers a data set's categories
        kpt_shape=(n_keypoints, values),
        skeleton=COCO_PERSON if is_coco else Skeleton.from_names([f"keypoint_{i}" for i in range(n_keypoints)]),
        stride_px=64 if architecture.endswith("-p6") else 32,
        image_size_px=image_size_px,
    )


def _find_architecture(state_dict: dict[str, Tensor], n_classes: int, kpt_shape: tuple[int, int]) -> str | None:
    for name in MODEL_NAMES:
        with torch.device("meta"):  # shapes without memory, fast enough to try all
            candidate = build_model(name, n_classes=n_classes, kpt_shape=kpt_shape)
        if tensor_differences(candidate, state_dict) is None:
            return name
    return None


def _channels_out(state_dict: dict[str, Tensor], branch: str) -> int:
    """Returns what the last convolution of a head's branch puts out on the first level; 0 if there is none."""
    biases = [name for name in state_dict if f".{branch}.0." in name and name.endswith(".bias") and ".bn." not in name]
    return state_dict[biases[-1]].numel() if biases else 0


def tensor_differences(model: PoseModel, state_dict: dict[str, Tensor]) -> str | None:
    """Says how tensors fail, by name and shape, to be the model's, or None."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state_dict:
            return f"no tensor {name}"
        if state_dict[name].shape != tensor.shape:
            return f"{name} of shape {list(state_dict[name].shape)} instead of {list(tensor.shape)}"
    unknown = [name for name in state_dict if name not in own]
    return f"an unknown tensor {unknown[0]}" if unknown else None
