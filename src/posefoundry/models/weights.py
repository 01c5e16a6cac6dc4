"""Weights in and out: safetensors with a JSON sidecar of our own, and the families' published checkpoints, read only.

Neither form can run code: safetensors holds nothing but tensors, and `pickle_reader` treats a checkpoint as data.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, sha256_of_file, write_bytes_atomic, write_json_atomic
from posefoundry.models.families import MODEL_NAMES
from posefoundry.models.info import ModelInfo
from posefoundry.models.pose_model import PoseModel, build_model
from posefoundry.models.published import read_published, tensor_differences

CHECKPOINT_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class TransferReport:
    """What `transfer_weights` did, by tensor names.

    Attributes:
        source: The file the weights came from.
        transferred: Copied.
        different: In both, with another shape: (model's shape, file's shape); left as initialised.
        missing: Only in the model; left as initialised.
        unused: Only in the file.
    """

    source: Path
    transferred: tuple[str, ...]
    different: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.transferred) + len(self.different) + len(self.missing)
        parts = [f"{self.source}: {len(self.transferred)} of {total} tensors transferred"]
        if self.different:
            name, (wanted, given) = next(iter(self.different.items()))
            parts.append(
                f"{len(self.different)} start fresh because their shape differs "
                f"(first {name}: {list(wanted)} here, {list(given)} there)"
            )
        if self.missing:
            parts.append(f"{len(self.missing)} start fresh because the file lacks them (first {self.missing[0]})")
        if self.unused:
            parts.append(f"{len(self.unused)} of the file were not needed (first {self.unused[0]})")
        return "; ".join(parts) + "."


def save_weights(path: Path, state_dict: dict[str, Tensor], info: ModelInfo, extra: dict[str, Any]) -> None:
    """Writes weights as safetensors, and `info`, `extra` and the weights' SHA-256 as JSON beside them.

    Each file is written whole or not at all, the sidecar last; a reader refuses a sidecar that is not of these weights.

    Args:
        path: Ends in `.safetensors`; the sidecar is `path.with_suffix(".json")`.
        state_dict: Tensors on any device, of any type.
        info: What the model's outputs mean.
        extra: Further plain values for the sidecar, such as epoch and metrics.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    write_bytes_atomic(path, save(tensors))
    write_json_atomic(path.with_suffix(".json"), {**info.to_dict(), "sha256": sha256_of_file(path), "extra": extra})


def load_model(path: Path, *, end2end: bool | None = None) -> tuple[PoseModel, ModelInfo]:
    """Loads a model in evaluation mode, in float32.

    Args:
        path: Our `.safetensors` with its sidecar, or a published `.pt`, of which nothing is executed.
        end2end: Of a model with two heads, whether to use the one without NMS; None: as the file says. Without effect
            on the other families.

    Raises:
        PosefoundryError: The file is missing, damaged, asks for code to be run, or holds another model than it says.
    """
    state_dict, info = _read_weights(path)
    if info is None:
        raise PosefoundryError(f"{path}: expected the weights of one of {', '.join(MODEL_NAMES)}, got other tensors.")
    model = build_model(info.architecture, n_classes=info.n_classes, kpt_shape=info.kpt_shape)
    faults = tensor_differences(model, state_dict)
    if faults:
        raise PosefoundryError(f"{path}: expected the weights of {info.architecture}, got {faults}.")
    model.load_state_dict(state_dict)  # copies into float32, whatever the file has
    if end2end is not None and model.head.form.one_to_one:
        info = replace(info, end2end=end2end)
    model.head.use(end2end=info.end2end)
    return model.eval(), info


def transfer_weights(model: PoseModel, path: Path) -> TransferReport:
    """Copies from a weights file each tensor that the model has under the same name and shape.

    Raises:
        PosefoundryError: The file cannot be read, or nothing in it fits.
    """
    given, _ = _read_weights(path)
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise PosefoundryError(f"{path}: expected weights that fit {model.name}, got none of its {len(own)} tensors.")
    model.load_state_dict(fitting, strict=False)
    return TransferReport(
        source=path,
        transferred=tuple(fitting),
        different={
            name: (tuple(own[name].shape), tuple(given[name].shape))
            for name in own
            if name in given and name not in fitting
        },
        missing=tuple(name for name in own if name not in given),
        unused=tuple(name for name in given if name not in own),
    )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Returns tensors as stored and, where the file tells what model they are, its description."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in CHECKPOINT_SUFFIXES:
        return read_published(path)
    raise PosefoundryError(f"{path}: expected weights in a .safetensors or a .pt file, got {path.name!r}.")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelInfo]:
    if not path.is_file():
        raise PosefoundryError(f"{path}: expected weights, found no file.")
    sidecar = path.with_suffix(".json")
    description = read_json(sidecar)
    if not isinstance(description, dict):
        raise PosefoundryError(f"{sidecar}: expected the description of {path.name}, got other JSON.")
    try:
        info = ModelInfo.from_dict(description)
    except PosefoundryError as error:
        raise PosefoundryError(f"{sidecar}: {error}") from None
    if description.get("sha256") != sha256_of_file(path):
        raise PosefoundryError(
            f"{path}: expected the weights that {sidecar.name} describes, got others: their SHA-256 differ. "
            "Copy both files together, or train again if writing them was interrupted."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PosefoundryError(f"{path}: expected safetensors, got: {error}.") from None
    return tensors, info
