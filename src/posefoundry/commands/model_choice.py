"""Which model a command uses when none is named: the one in production, else the one trained last."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posefoundry.errors import PosefoundryError
from posefoundry.registry import store, versions

TRAINED_WEIGHTS = Path("models/train/best.safetensors")


@contextmanager
def named_or_current(given: str | None, model_name: Callable[[], str]) -> Iterator[tuple[Path | str, str]]:
    """Yields a model as `YOLO` opens it, and what to call it.

    Args:
        given: A name or file, a `models:/` URI, or None for the model in production, else the one trained last.
        model_name: Names the registered model, if it comes to that.

    Raises:
        PosefoundryError: There is no such model.
    """
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
