"""`posefoundry predict`: people found in images and videos, drawn."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posefoundry.api.arguments import PredictArguments, parse
from posefoundry.api.predicting import predict
from posefoundry.api.yolo import YOLO
from posefoundry.errors import PosefoundryError
from posefoundry.registry import store, versions

TRAINED_WEIGHTS = Path("models/train/best.safetensors")
DEFAULT_FOLDER = Path("predictions")


def predict_and_draw(source: Any, model: str | None, arguments: dict[str, Any], model_name: Callable[[], str]) -> int:
    """Predicts on a source and writes each image with its skeletons drawn.

    Args:
        source: As `YOLO.predict` takes it.
        model: A model, or None for the one in production, else the one trained last.
        arguments: Further arguments of `YOLO.predict`; `save` is on, and the folder is predictions/ unless stated.
        model_name: Names the registered model, if it comes to that.

    Returns:
        How many files or frames failed; each was named on stderr.

    Raises:
        PosefoundryError: An argument is wrong, nothing of the source can be read, there is no model, or the drawn
            images would replace the originals.
    """
    if "project" not in arguments and "name" not in arguments:
        arguments = {"project": DEFAULT_FOLDER.parent, "name": DEFAULT_FOLDER.name, "exist_ok": True} | arguments
    settings = parse(PredictArguments, {"save": True} | arguments)
    _refuse_folder_of_originals(source, settings)
    faults: list[PosefoundryError] = []
    n_images = n_persons = 0
    folder = None
    with _weights(model, model_name) as (path, label):
        yolo = YOLO(path)
        print(f"Model: {label}")
        for results in predict(yolo, source, settings, stream=True, on_fault=faults.append):
            n_images, n_persons, folder = n_images + 1, n_persons + len(results), results.save_dir
    drawn = f", drawn in {folder}/" if folder and settings.save else ""
    failed = f"; {len(faults)} failed" if faults else ""
    print(f"{_count(n_persons, 'person')} in {_count(n_images, 'image')}{drawn}{failed}")
    return len(faults)


def _refuse_folder_of_originals(source: Any, settings: PredictArguments) -> None:
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or not path.exists() or settings.name is None:
        return
    out = settings.project / settings.name
    if settings.exist_ok and out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise PosefoundryError(f"Expected another folder for the drawn images than {out}, which holds the originals.")


@contextmanager
def _weights(given: str | None, model_name: Callable[[], str]) -> Iterator[tuple[Path | str, str]]:
    """Yields the model and what to call it."""
    if given and not given.startswith("models:/"):
        yield given, given
        return
    trained = store.project_root() / TRAINED_WEIGHTS
    with tempfile.TemporaryDirectory() as folder:
        version = _named(given) if given else _in_production(model_name())
        if version is not None:
            yield versions.fetch_artifact(version, "model.onnx", Path(folder)), f"{version.uri} (model.onnx)"
        elif trained.is_file():
            yield trained, f"{trained} (nothing is in production)"
        else:
            raise PosefoundryError(
                f"Expected a model in production or {TRAINED_WEIGHTS}, found neither. Run the pipeline: dvc repro; or "
                "name a model: model=PATH."
            )


def _named(uri: str) -> versions.ModelVersion | None:
    """Finds what `models:/name/3` or `models:/name@alias` names."""
    name, _, reference = uri.removeprefix("models:/").replace("@", "/").partition("/")
    return versions.resolve(name, reference)


def _in_production(model_name: str) -> versions.ModelVersion | None:
    # Looking for a model in a store that does not exist yet would create one.
    uri = store.tracking_uri()
    if store.is_embedded(uri) and not store.database_file(uri).exists():
        return None
    found = (entry for entry in versions.list_versions(model_name) if versions.PRODUCTION in entry.aliases)
    return next(found, None)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
