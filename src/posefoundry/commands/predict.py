"""`posefoundry predict`: people found in image files, drawn."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from posefoundry.errors import PosefoundryError
from posefoundry.inference.drawing import draw_poses
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.predictor import Predictor
from posefoundry.registry import store, versions

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TRAINED_WEIGHTS = Path("models/train/best.safetensors")
BATCH_SIZE = 16


def predict_and_draw(
    source: Path, weights: str | None, out: Path, confidence: float, model_name: Callable[[], str]
) -> int:
    """Predicts on an image or on all images of a folder, and writes each with its skeletons drawn.

    Args:
        source: An image file, or a folder; folders inside it are not searched.
        weights: A weights file, a `models:/` URI, or None for the model in production, else the one trained last.
        out: Folder for the drawn images, which keep their names.
        confidence: Lowest score shown.
        model_name: Names the registered model, if it comes to that.

    Returns:
        How many files failed; each was named on stderr.

    Raises:
        PosefoundryError: There is no image, there are no weights, or `out` is where the images are.
    """
    files = _image_files(source)
    if out.resolve() == files[0].parent.resolve():
        raise PosefoundryError(f"Expected another folder for the drawn images than {out}, which holds the originals.")
    failed = n_persons = 0
    with _weights(weights, model_name) as (path, label):
        predictor = Predictor.load(path, confidence=confidence)
        print(f"Model: {label}")
        out.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(files), BATCH_SIZE):
            images = {}
            for file in files[start : start + BATCH_SIZE]:
                try:
                    images[file] = read_image_bgr(file)
                except PosefoundryError as error:
                    print(f"Skipped {error}", file=sys.stderr)
                    failed += 1
            results = predictor.predict(list(images.values()), batch_size=BATCH_SIZE)
            for (file, image_bgr), result in zip(images.items(), results, strict=True):
                drawn = draw_poses(image_bgr, result, predictor.backend.info.skeleton)
                if not cv2.imwrite(str(out / file.name), drawn):
                    raise PosefoundryError(f"{out / file.name}: expected to write an image there, could not.")
                n_persons += len(result)
    done = len(files) - failed
    print(
        f"{_count(n_persons, 'person')} in {_count(done, 'image')}, drawn in {out}/"
        + f"; {failed} failed" * bool(failed)
    )
    return failed


def _image_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise PosefoundryError(f"{source}: expected an image or a folder of images, found nothing there.")
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise PosefoundryError(f"{source}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none in this folder.")
    return files


@contextmanager
def _weights(given: str | None, model_name: Callable[[], str]) -> Iterator[tuple[Path, str]]:
    """Yields the model's file and what to call it."""
    if given and not given.startswith("models:/"):
        yield Path(given), given
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
                "name a model: --weights PATH."
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
