"""What the name of a model means: a new one, weights, an exported artifact, or a version in the registry."""

import difflib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json
from posefoundry.inference.backends import Backend, load_backend
from posefoundry.models import MODEL_NAMES, ModelInfo, PoseModel, build_model, load_model
from posefoundry.models.weights import CHECKPOINT_SUFFIXES
from posefoundry.skeleton import COCO_PERSON

EXPORTED_SUFFIXES = (".onnx", ".engine")
WEIGHT_SUFFIXES = (".safetensors", *CHECKPOINT_SUFFIXES)
REGISTRY_SCHEME = "models:/"
NEW_MODEL_IMAGE_SIZE_PX = 640
PUBLISHED_DATA = "coco-pose.yaml"  # what published checkpoints were trained on


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model, opened.

    Attributes:
        info: What its outputs mean.
        model: The PyTorch module, in evaluation mode; None for an exported artifact.
        backend: The runtime of an exported artifact; None for a module.
        path: The file; None for a new model.
        called: A short name for files that are made from it.
        data: What it was trained on, as `open_data` takes it, if the weights tell.
        kept: What must live as long as the model's files are needed.
    """

    info: ModelInfo
    model: PoseModel | None = None
    backend: Backend | None = None
    path: Path | None = None
    called: str
    data: str | None = None
    kept: Any = None


def open_model(name: str | Path) -> Opened:
    """Opens a model by its name, its file or its place in the registry.

    Raises:
        PosefoundryError: There is no such model, or its file cannot be used.
    """
    text = str(name)
    if text.startswith(REGISTRY_SCHEME):
        return _open_registered(text)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or (not path.suffix and text in MODEL_NAMES):
        return _new(path)
    if path.suffix in EXPORTED_SUFFIXES:
        _require(path)
        backend = load_backend(path)
        return Opened(info=backend.info, backend=backend, path=path, called=path.stem)
    if path.suffix in WEIGHT_SUFFIXES:
        return _open_weights(path)
    raise PosefoundryError(
        "Expected a model such as yolo26n-pose.yaml (new), best.safetensors, yolo26n-pose.pt, model.onnx, model.engine "
        f"or models:/posefoundry@production, got {text!r}."
    )


def _new(path: Path) -> Opened:
    """Builds a published architecture with fresh weights."""
    if path.stem not in MODEL_NAMES:
        near = difflib.get_close_matches(path.stem, MODEL_NAMES, n=1)
        hint = f"did you mean {near[0]}.yaml?" if near else f"there are {', '.join(MODEL_NAMES)}."
        raise PosefoundryError(
            f"{path}: expected the name of a published architecture; {hint} Custom layer lists are not supported."
        )
    model = build_model(path.stem).eval()
    info = ModelInfo(
        architecture=path.stem,
        class_names=("person",),
        category_ids=(1,),
        kpt_shape=model.kpt_shape,
        skeleton=COCO_PERSON,
        stride_px=max(model.strides),
        image_size_px=1280 if path.stem.endswith("-p6") else NEW_MODEL_IMAGE_SIZE_PX,
    )
    return Opened(info=info, model=model, called=path.stem)


def _open_weights(path: Path) -> Opened:
    _require(path)
    model, info = load_model(path)
    data = None
    if path.suffix == ".safetensors":
        data = (read_json(path.with_suffix(".json")).get("extra") or {}).get("data")
    elif info.skeleton == COCO_PERSON:
        data = PUBLISHED_DATA
    return Opened(info=info, model=model, path=path, called=path.stem, data=data)


def _open_registered(uri: str) -> Opened:
    """Fetches `models:/name@alias` or `models:/name/3`."""
    from posefoundry.registry import versions

    name, _, reference = uri.removeprefix(REGISTRY_SCHEME).replace("@", "/").partition("/")
    if not name or not reference:
        raise PosefoundryError(f"Expected models:/NAME@ALIAS or models:/NAME/VERSION, got {uri!r}.")
    version = versions.resolve(name, reference)
    folder = tempfile.TemporaryDirectory(prefix="posefoundry-")
    weights = versions.fetch_artifact(version, "best.safetensors", Path(folder.name))
    versions.fetch_artifact(version, "best.json", Path(folder.name))
    opened = _open_weights(weights)
    return Opened(
        info=opened.info,
        model=opened.model,
        path=weights,
        called=f"{name}-{version.version}",
        data=opened.data,
        kept=folder,
    )


def _require(path: Path) -> None:
    if path.is_file():
        return
    hint = ""
    if path.suffix in CHECKPOINT_SUFFIXES and path.stem in MODEL_NAMES:
        hint = (
            f" posefoundry downloads nothing by itself: put the published checkpoint there, or start from a new model: "
            f"{path.stem}.yaml."
        )
    raise PosefoundryError(f"{path}: expected a model in this file, found none.{hint}")
