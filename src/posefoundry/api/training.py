"""`YOLO.train`: the training of the pipeline, for a data set at hand and without the pipeline's bookkeeping."""

from pathlib import Path
from typing import TYPE_CHECKING

from posefoundry.api.arguments import TrainArguments, ValArguments, gpu_numbers, parse
from posefoundry.api.data import open_data
from posefoundry.api.folders import results_folder
from posefoundry.api.metrics import PoseMetrics
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.training.plan import PLAN, Plan
from posefoundry.values import AUTO_BATCH

if TYPE_CHECKING:
    from posefoundry.api.yolo import YOLO
    from posefoundry.training.checkpoint import CheckpointFolder


def train(yolo: "YOLO", arguments: TrainArguments) -> tuple[Path, PoseMetrics]:
    """Trains; see `YOLO.train`.

    Returns:
        The best weights, in the folder's `weights/`, and their metrics.
    """
    if arguments.resume:
        return go_on(yolo._opened.path or Path(yolo.details.architecture))
    return _carry_out(_new_plan(yolo, arguments))


def go_on(weights: Path) -> tuple[Path, PoseMetrics]:
    """Goes on with a training that was cut short, from its last checkpoint; the weights themselves are not read.

    Args:
        weights: `weights/last.safetensors` or `weights/best.safetensors` in the training's folder.

    Returns:
        As `train`.

    Raises:
        PosefoundryError: There is no such training, it has come to its end, or its data have changed.
    """
    return _carry_out(_plan_of_before(weights))


def _carry_out(plan: Plan) -> tuple[Path, PoseMetrics]:
    from posefoundry.api.validating import validate
    from posefoundry.api.yolo import YOLO

    try:
        plan.carry_out()
    except StoppedError:
        raise StoppedError(f"stopped by a signal; a checkpoint is kept. Go on with: {_again(plan)}") from None
    best = plan.folder / "weights" / "best.safetensors"
    if not best.is_file():
        raise PosefoundryError(f"{plan.folder}: expected the training to leave its best weights, found none.")
    checked = {
        "data": plan.facts["data"],
        "split": "val",
        "device": plan.gpus[0] if plan.gpus else plan.settings.device,
        "verbose": plan.verbose,
    }
    if plan.settings.batch_size != AUTO_BATCH:
        checked["batch"] = plan.settings.batch_size // plan.settings.processes  # what one device has held
    metrics = validate(YOLO(best), parse(ValArguments, checked))
    return best, metrics.in_folder(plan.folder)


def _new_plan(yolo: "YOLO", arguments: TrainArguments) -> Plan:
    if arguments.data is None and yolo._opened.data is None:
        raise PosefoundryError("train: expected data=, a dataset.yaml or a COCO file.")
    info = yolo.details
    yolo.model.head  # noqa: B018 - an exported model cannot be trained, and says so
    settings = arguments.to_settings(info.architecture, _start_from(yolo, arguments), info.stride_px)
    data = open_data(arguments.data or str(yolo._opened.data))
    if settings.device == "cuda":
        from posefoundry.training.distributed import require_gpu

        require_gpu()
    folder = results_folder(arguments, "train")
    scratch = folder / "data"
    scratch.mkdir(exist_ok=True)
    dataset_yaml, val_annotations = (path.absolute() for path in data.for_training(scratch))
    plan = Plan(
        folder=folder,
        settings=settings,
        dataset_yaml=dataset_yaml,
        val_annotations=val_annotations,
        gpus=gpu_numbers(arguments.device),
        facts={"data": data.name},
        verbose=arguments.verbose,
    )
    if (folder / PLAN).is_file() and _checkpoints(plan).steps():
        raise PosefoundryError(
            f"train: {folder} holds a training that was cut short. Go on with it: {_again(plan)}; or choose another "
            "name, or delete that folder."
        )
    _checkpoints(plan).clear()
    return plan


def _again(plan: Plan) -> str:
    return f"posefoundry train model={plan.folder / 'weights' / 'last.safetensors'} resume=true"


def _checkpoints(plan: Plan) -> "CheckpointFolder":
    from posefoundry.training.checkpoint import CheckpointFolder

    return CheckpointFolder(plan.folder / plan.checkpoints, plan.settings.keep_checkpoints)


def _plan_of_before(weights: Path) -> Plan:
    """Returns the plan of the training that the weights are of, where it has not come to its end."""
    folder = weights.parent.parent if weights.parent.name == "weights" else None
    if folder is not None and (folder / "results.csv").is_file() and not (folder / PLAN).is_file():
        raise PosefoundryError(
            f"train: resume: {folder}: expected a training that was cut short, but this one has finished. To train "
            "these weights further, leave resume out."
        )
    if folder is None or not (folder / PLAN).is_file():
        raise PosefoundryError(
            f"train: resume: expected weights from a training by this library, such as "
            f"runs/pose/train/weights/last.safetensors, got {str(weights)!r}."
        )
    plan = Plan.read(folder)
    if not _checkpoints(plan).steps():
        raise PosefoundryError(
            f"train: resume: {_checkpoints(plan).path}: expected a checkpoint to go on from, found none. "
            "Leave resume out to start again."
        )
    _check_unchanged(plan)
    return plan


def _check_unchanged(plan: Plan) -> None:
    """Refuses other data, and tells of other code: what then comes out is not what an undisturbed training gives."""
    from posefoundry.training.identity import identity_of_training

    before = _checkpoints(plan).fact("identity")
    if before is None:
        raise PosefoundryError(
            f"train: resume: {_checkpoints(plan).path}: expected checkpoints with their descriptions, and none of the "
            ".json files can be read. Leave resume out and start again."
        )
    now = identity_of_training(plan.settings, dataset_yaml=plan.dataset_yaml, val_annotations=plan.val_annotations)
    different = sorted(key for key in now if before.get(key) != now[key])
    if data := [key for key in different if key.endswith(" data")]:
        raise PosefoundryError(
            f"train: resume: expected the same data as before, but the {' and the '.join(data)} differ. Restore them, "
            "or leave resume out to start a new training from these weights."
        )
    if different:
        print(
            f"Going on although something differs from before ({', '.join(different)}): the weights will not be quite "
            "those of an uninterrupted training."
        )


def _start_from(yolo: "YOLO", arguments: TrainArguments) -> Path | None:
    if isinstance(arguments.pretrained, bool):
        return yolo._opened.path if arguments.pretrained else None
    return Path(arguments.pretrained)
