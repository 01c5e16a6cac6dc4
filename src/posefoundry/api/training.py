"""`YOLO.train`: the training of the pipeline, for a data set at hand and without the pipeline's bookkeeping."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from posefoundry.api.arguments import DeviceName, TrainArguments, ValArguments, device_name, parse
from posefoundry.api.data import open_data
from posefoundry.api.folders import results_folder
from posefoundry.api.metrics import PoseMetrics
from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.files import read_json, write_json_atomic
from posefoundry.processes import stop_on_signals

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO
    from posefoundry.training.checkpoint import CheckpointFolder


# What a training leaves in its folder so that it can be gone on with; gone when it has come to its end.
PLAN = "training.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Plan:
    """What a training is to do, once its arguments and data have been looked at."""

    folder: Path
    settings: Train
    data: str
    dataset_yaml: Path
    val_annotations: Path
    device: DeviceName
    verbose: bool

    def write(self) -> None:
        """Keeps it in the folder."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        write_json_atomic(self.folder / PLAN, plain | {"settings": self.settings.model_dump(mode="json")})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads what a folder keeps.

        Raises:
            PosefoundryError: The file is not one of these.
        """
        kept = read_json(folder / PLAN)
        try:
            return cls(
                folder=folder,
                settings=Train.model_validate(kept["settings"]),
                data=kept["data"],
                dataset_yaml=Path(kept["dataset_yaml"]),
                val_annotations=Path(kept["val_annotations"]),
                device=kept["device"],
                verbose=kept["verbose"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PosefoundryError(f"{folder / PLAN}: expected the plan of a training: {error}.") from None


def train(yolo: "YOLO", arguments: TrainArguments) -> tuple[Path, PoseMetrics]:
    """Trains; see `YOLO.train`.

    Returns:
        The best weights, in the folder's `weights/`, and their metrics.
    """
    from posefoundry.api.validating import validate
    from posefoundry.api.yolo import YOLO
    from posefoundry.training.batch_size import with_batch_that_fits
    from posefoundry.training.checkpoint import CheckpointFolder
    from posefoundry.training.distributed import join_process_group
    from posefoundry.training.identity import identity_of_training
    from posefoundry.training.observer import FileLog, Observer
    from posefoundry.training.progress import training_progress
    from posefoundry.training.session import train_model

    plan = _plan_of_before(yolo) if arguments.resume else _new_plan(yolo, arguments)
    with ExitStack() as stack:
        should_stop = stack.enter_context(stop_on_signals()) if _hears_signals() else lambda: False
        observers: list[Observer] = [FileLog(plan.folder)]
        if plan.verbose:
            observers.append(stack.enter_context(training_progress()))
        group = join_process_group(plan.settings.device)
        stack.callback(group.close)
        plan = replace(plan, settings=with_batch_that_fits(plan.settings, group, plan.dataset_yaml))
        identity = identity_of_training(
            plan.settings, dataset_yaml=plan.dataset_yaml, val_annotations=plan.val_annotations
        )
        checkpoints = CheckpointFolder(plan.folder / CHECKPOINTS, plan.settings.keep_checkpoints, identity)
        if arguments.resume:
            _check_unchanged(checkpoints)
        else:
            checkpoints.clear()  # of another training, in a folder that may exist
            plan.write()
        try:
            train_model(
                plan.settings,
                dataset_yaml=plan.dataset_yaml,
                val_annotations=plan.val_annotations,
                weights_folder=plan.folder / "weights",
                group=group,
                observers=observers,
                extra={"data": plan.data},
                checkpoints=checkpoints,
                should_stop=should_stop,
            )
        except StoppedError:
            again = f"posefoundry train model={plan.folder / 'weights' / 'last.safetensors'} resume=true"
            raise StoppedError(f"stopped by a signal; a checkpoint is kept. Go on with: {again}") from None
    best = plan.folder / "weights" / "best.safetensors"
    if not best.is_file():
        raise PosefoundryError(f"{plan.folder}: expected the training to leave its best weights, found none.")
    (plan.folder / PLAN).unlink(missing_ok=True)
    checkpoints.clear()
    checked = {
        "data": plan.data,
        "split": "val",
        "device": plan.device,
        "verbose": plan.verbose,
        "batch": plan.settings.batch_size,
    }
    metrics = validate(YOLO(best), parse(ValArguments, checked))
    return best, metrics.in_folder(plan.folder)


def _hears_signals() -> bool:
    """Python tells of signals in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


def _new_plan(yolo: "YOLO", arguments: TrainArguments) -> Plan:
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
    dataset_yaml, val_annotations = (path.absolute() for path in data.for_training(scratch))
    return Plan(folder, settings, data.name, dataset_yaml, val_annotations, arguments.device, arguments.verbose)


def _plan_of_before(yolo: "YOLO") -> Plan:
    """Returns the plan of the training that the opened weights are of, where it has not come to its end."""
    weights = yolo._opened.path
    folder = weights.parent.parent if weights is not None and weights.parent.name == "weights" else None
    if folder is not None and (folder / "results.csv").is_file() and not (folder / PLAN).is_file():
        raise PosefoundryError(
            f"train: resume: {folder}: expected a training that was cut short, but this one has come to its end. To "
            "train these weights further, leave resume out."
        )
    if folder is None or not (folder / PLAN).is_file():
        raise PosefoundryError(
            f"train: resume: expected the weights of a training of this library, such as "
            f"runs/pose/train/weights/last.safetensors, got {str(weights or yolo.details.architecture)!r}."
        )
    if not any((folder / CHECKPOINTS).glob("step-*.json")):
        raise PosefoundryError(
            f"train: resume: {folder / CHECKPOINTS}: expected a checkpoint, found none: nothing was kept to go on "
            "with. Leave resume out and start again."
        )
    return Plan.read(folder)


def _check_unchanged(checkpoints: "CheckpointFolder") -> None:
    """Refuses other data, and tells of other code: what then comes out is not what an undisturbed training gives."""
    before = checkpoints.fact("identity") or {}
    different = sorted(key for key in checkpoints.identity if before.get(key) != checkpoints.identity[key])
    if data := [key for key in different if key.endswith(" data")]:
        raise PosefoundryError(
            f"train: resume: expected the data of before, but the {' and the '.join(data)} differ. Put them back, or "
            "leave resume out and start from these weights."
        )
    if different:
        print(f"Going on although {', '.join(different)} differ from before: the weights will not be quite the same.")


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
