"""`YOLO.train`: the training of the pipeline, for a data set at hand and without the pipeline's bookkeeping."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from posefoundry.api.arguments import TrainArguments, device_name, parse
from posefoundry.api.data import open_data
from posefoundry.api.folders import results_folder
from posefoundry.api.metrics import PoseMetrics
from posefoundry.errors import PosefoundryError

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO


def train(yolo: "YOLO", arguments: TrainArguments) -> tuple[Path, PoseMetrics]:
    """Trains; see `YOLO.train`.

    Returns:
        The best weights, in the new folder's `weights/`, and their metrics.
    """
    from posefoundry.api.validating import validate
    from posefoundry.api.yolo import YOLO
    from posefoundry.training.batch_size import with_batch_that_fits
    from posefoundry.training.distributed import join_process_group
    from posefoundry.training.observer import FileLog, Observer
    from posefoundry.training.progress import training_progress
    from posefoundry.training.session import train_model

    if arguments.data is None and yolo._opened.data is None:
        raise PosefoundryError("train: expected data=, a dataset.yaml or a COCO file.")
    info = yolo.details
    yolo.model.head  # noqa: B018 - an exported model cannot be trained, and says so
    settings = arguments.to_settings(
        info.architecture, _start_from(yolo, arguments), info.stride_px, _training_device(arguments)
    )
    data = open_data(arguments.data or str(yolo._opened.data))
    folder = results_folder(arguments, "train")
    scratch = folder / "data"
    scratch.mkdir(exist_ok=True)
    dataset_yaml, val_annotations = data.for_training(scratch)
    with ExitStack() as stack:
        observers: list[Observer] = [FileLog(folder)]
        if arguments.verbose:
            observers.append(stack.enter_context(training_progress()))
        group = join_process_group(settings.device)
        stack.callback(group.close)
        settings = with_batch_that_fits(settings, group, dataset_yaml)
        train_model(
            settings,
            dataset_yaml=dataset_yaml,
            val_annotations=val_annotations,
            weights_folder=folder / "weights",
            group=group,
            observers=observers,
            extra={"data": data.name},
        )
    best = folder / "weights" / "best.safetensors"
    if not best.is_file():
        raise PosefoundryError(f"{folder}: expected the training to leave its best weights, found none.")
    checked = {
        "data": data.name,
        "device": arguments.device,
        "verbose": arguments.verbose,
        "batch": settings.batch_size,
    }
    from posefoundry.api.arguments import ValArguments

    metrics = validate(YOLO(best), parse(ValArguments, checked))
    return best, metrics.in_folder(folder)


def _start_from(yolo: "YOLO", arguments: TrainArguments) -> Path | None:
    if isinstance(arguments.pretrained, bool):
        return yolo._opened.path if arguments.pretrained else None
    return Path(arguments.pretrained)


def _training_device(arguments: TrainArguments) -> str:
    device = device_name(arguments.device)
    if device in ("cuda", "cuda:0"):
        return "cuda"
    if device.startswith("cuda:"):
        raise PosefoundryError(
            f"train: device: training runs on the first GPU that it sees, got {arguments.device!r}. Choose another by "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')}."
        )
    if device not in ("auto", "cpu"):
        raise PosefoundryError(f"train: device: expected cpu or a GPU's number, got {arguments.device!r}.")
    return device
