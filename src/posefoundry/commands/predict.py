"""`posefoundry predict`: people found in images and videos, drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posefoundry.api.arguments import PredictArguments, parse
from posefoundry.api.predicting import predict
from posefoundry.api.yolo import YOLO
from posefoundry.commands.model_choice import named_or_current
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.wording import counted

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
    with named_or_current(model, model_name) as (path, label):
        yolo = YOLO(path)
        print(f"Model: {label}")
        for results in predict(yolo, source, settings, stream=True, on_fault=faults.append):
            n_images, n_persons, folder = n_images + 1, n_persons + len(results), results.save_dir
    drawn = f", drawn in {folder}/" if folder and settings.save else ""
    failed = f"; {len(faults)} failed" if faults else ""
    print(f"{counted(n_persons, 'person')} in {counted(n_images, 'image')}{drawn}{failed}")
    return len(faults)


def _refuse_folder_of_originals(source: Any, settings: PredictArguments) -> None:
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or not path.exists() or settings.name is None:
        return
    out = settings.project / settings.name
    if settings.exist_ok and out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise PosefoundryError(f"Expected another folder for the drawn images than {out}, which holds the originals.")
