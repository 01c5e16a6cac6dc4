"""What a person types: `posefoundry train`, `predict`, `promote`, ..."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from posefoundry.commands import keys
from posefoundry.errors import told_in_a_message

# Everything heavy is imported inside the commands, so that --help answers at once.


def _lines(*lines: str) -> str:
    return "\n".join(lines)


app = typer.Typer(
    name="posefoundry",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Trains, judges, exports and uses YOLO pose models, and keeps track of those that the pipeline "
    "([bold]dvc repro[/]) makes: which versions exist, which one is in production, and why.",
    epilog=_lines(
        "[bold]From training to production[/]",
        "dvc repro                                  the pipeline registers a candidate",
        "posefoundry versions                       compare it with the others",
        "posefoundry predict street.jpg             try it on an image",
        'posefoundry promote candidate --why "..."  put it into production',
        'posefoundry rollback --why "..."           take it back out',
        "",
        "The store is mlflow.db in the project, or the server that MLFLOW_TRACKING_URI names.",
    ),
)

MODEL_PANEL = "Models: train, judge, use"
VERSION_PANEL = "Versions: promote, roll back, look"
ANNOTATION_PANEL = "Annotations: measure, correct"

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model-name", metavar="NAME", help="Registered model; by default register.model_name of params.yaml."
    ),
]
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", show_default=False)]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, in words; it stays in the history.")]

Command = TypeVar("Command", bound=Callable[..., None])


def _command(panel: str, *examples: str, keys: str = "") -> Callable[[Command], Command]:
    """Makes a function a command, whose help ends with examples and with the keys that its words may have."""
    epilog = [f"[bold]Example{'s' * (len(examples) > 1)}[/]", *examples]
    if keys:
        epilog += ["", f"[bold]Keys[/]  {keys}"]
    return app.command(rich_help_panel=panel, epilog=_lines(*epilog))


@_command(
    VERSION_PANEL,
    'posefoundry promote candidate --why "oks_ap 0.61, was 0.58"',
    'posefoundry promote 3 --why "2 fails on night scenes"',
)
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="A version's number, or candidate.")],
    why: Why,
    model_name: ModelName = None,
) -> None:
    """Puts a version that passed the gate into production.

    The one that was there stays available as previous. Who, when, why, from and to are recorded for good.
    Who: POSEFOUNDRY_USER in the environment, else git's user.
    """
    from posefoundry.commands import ledger

    ledger.promote(_model_name(model_name), version, why)


@_command(VERSION_PANEL, 'posefoundry rollback --why "misses cyclists since this morning"')
def rollback(why: Why, model_name: ModelName = None) -> None:
    """Puts the previous version back into production.

    The one rolled back from becomes previous, so a second rollback undoes the first. Recorded like a promotion.
    """
    from posefoundry.commands import ledger

    ledger.rollback(_model_name(model_name), why)


@_command(VERSION_PANEL, "posefoundry versions", "posefoundry versions --model-name dancers")
def versions(model_name: ModelName = None) -> None:
    """Lists the versions: aliases, OKS AP on the test split, the gate's verdict, commit, age."""
    from posefoundry.commands import ledger

    ledger.show_versions(_model_name(model_name))


@_command(VERSION_PANEL, "posefoundry history")
def history(model_name: ModelName = None) -> None:
    """Lists every promotion and rollback, and checks that none was altered or removed.

    Ends with status 1 if the record is broken, or production was changed without a record.
    """
    from posefoundry.commands import ledger

    if not ledger.show_history(_model_name(model_name)):
        raise typer.Exit(1)


@_command(VERSION_PANEL, "posefoundry ui", "posefoundry ui --port 5001")
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000) -> None:
    """Serves MLflow's pages on the project's store, to this machine only. Ctrl-C ends it."""
    from posefoundry.commands.ui import serve

    raise typer.Exit(serve(port))


@_command(
    MODEL_PANEL,
    "posefoundry predict street.jpg",
    "posefoundry predict photos/ --out drawn/",
    "posefoundry predict source=dance.mp4 model=yolo26n-pose.pt conf=0.5 imgsz=320",
    "posefoundry predict source='photos/*.png' model=models:/posefoundry@candidate save_txt=True",
    keys=keys.PREDICT_KEYS,
)
def predict(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCE] [KEY=VALUE]...", help="An image, folder, glob, video, address or camera."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|models:/...",
            help="Same as model=. A .safetensors, .pt, .onnx or .engine file, or a registered version. By default the "
            "model in production, else models/train/best.safetensors.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the drawn images; by default predictions/.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Same as conf=. Leave out persons below this score; by default 0.25."),
    ] = None,
    model_name: ModelName = None,
) -> None:
    """Finds people in images and videos and draws their skeletons.

    A file that cannot be read is named and skipped; the command then ends with status 1.
    Without a source, it draws a picture of people to try a model on.
    """
    from posefoundry.commands.predict import predict_and_draw
    from posefoundry.commands.words import arguments_of

    arguments = arguments_of("predict", words or [], bare="source")
    source = arguments.pop("source", None)
    if out is not None:
        arguments |= {"project": out.parent, "name": out.name, "exist_ok": True}
    if confidence is not None:
        arguments["conf"] = confidence
    if predict_and_draw(source, arguments.pop("model", weights), arguments, lambda: _model_name(model_name)):
        raise typer.Exit(1)


@_command(
    MODEL_PANEL,
    "posefoundry train data=coco8-pose.yaml model=yolo26n-pose.yaml epochs=100 imgsz=640",
    "posefoundry train data=people/dataset.yaml model=yolo26n-pose.pt epochs=50 lr0=0.002 optimizer=adamw",
    "posefoundry train data=annotations/person_keypoints_train2017.json model=best.safetensors",
    keys="model, " + keys.TRAIN_KEYS,
)
def train(words: Words = None) -> None:
    """Trains a model on a data set: a new one (.yaml), or from weights (.pt, .safetensors).

    Weights and logs go to runs/pose/train. The pipeline, which also judges and registers, is dvc repro.
    """
    from posefoundry.commands import verbs

    verbs.train(words or [])


@_command(
    MODEL_PANEL,
    "posefoundry val model=runs/pose/train/weights/best.safetensors",
    "posefoundry val model=yolo26n-pose.pt data=annotations/person_keypoints_val2017.json batch=8",
    "posefoundry val model=model.onnx data=people/dataset.yaml split=test save_json=True",
    "posefoundry val model=best.safetensors tags=tags.csv save_json=True",
    keys="model, " + keys.VAL_KEYS,
)
def val(words: Words = None) -> None:
    """Measures box AP and OKS AP by COCO's rules, on what the model was trained on or on data=.

    Then come PCK, the mean error in pixels, what costs most AP and where it is weakest.
    tags= slices by a CSV's columns as well; save_json=True writes all tables.
    Without model=, the model in production is measured, else models/train/best.safetensors.
    """
    from posefoundry.commands import verbs

    verbs.val(words or [], lambda: _model_name(None))


@_command(
    MODEL_PANEL,
    "posefoundry evaluate annotations=gt.json detections=dt.json",
    "posefoundry evaluate annotations=gt.json detections=dt.json json=out.json",
    "posefoundry evaluate annotations=gt.json detections=dt.json slices=true",
    "posefoundry evaluate annotations=hands.json detections=dt.json sigmas=own.yaml",
    keys=keys.EVALUATE_KEYS,
)
def evaluate(words: Words = None) -> None:
    """Judges the results file of any model by COCO's rules: OKS AP and AR, box AP, as pycocotools computes them.

    Then come PCK, the mean error in pixels and the kinds of error that cost most AP.
    Neither a model nor images are needed. Faults are reported by file and entry, and nothing is guessed.
    """
    from posefoundry.commands.evaluate import evaluate as judge

    judge(words or [])


@_command(
    MODEL_PANEL,
    "posefoundry export model=best.safetensors format=onnx",
    "posefoundry export model=yolo26n-pose.pt format=engine half=True batch=8",
    keys="model, " + keys.EXPORT_KEYS,
)
def export(words: Words = None) -> None:
    """Writes a model as ONNX, or as a TensorRT engine, beside its weights."""
    from posefoundry.commands import verbs

    verbs.export(words or [])


@_command(
    MODEL_PANEL,
    "posefoundry recipe                              lists them, with their scores",
    "posefoundry recipe instant",
    "posefoundry recipe tier=instant",
    "posefoundry recipe fine-tune train.weights=yolov8n-pose.pt ingest.coco.root=data/source",
    keys=_lines(
        "tier (instant, short or full), out (runs/recipes), recipes (their folder), and every setting",
        "      of a recipe by its dotted name",
    ),
)
def recipe(
    words: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", show_default=False)] = None,
) -> None:
    """Runs a recipe, a training with a known outcome; status 3 if a score is lower than expected."""
    from posefoundry.commands.recipe import recipe as list_or_run

    list_or_run(words or [])


@_command(
    MODEL_PANEL,
    "posefoundry convert data=annotations/person_keypoints_train2017.json out=people",
    keys=_lines(
        "data (a COCO file; those of the other splits are found by name), out (a new folder),",
        "      images (hardlink, symlink or copy)",
    ),
)
def convert(words: Words = None) -> None:
    """Writes COCO keypoint files as a YOLO data set, with a receipt for every annotation."""
    from posefoundry.commands import verbs

    verbs.convert(words or [])


@_command(MODEL_PANEL, "posefoundry models")
def models() -> None:
    """Lists the 16 published architectures with their parameters and GFLOPs."""
    from posefoundry.commands import verbs

    verbs.models()


@_command(
    MODEL_PANEL,
    "posefoundry info best.safetensors",
    "posefoundry info model=yolov8n-pose.pt",
)
def info(words: Annotated[list[str] | None, typer.Argument(metavar="MODEL", show_default=False)] = None) -> None:
    """Shows what a model file holds: architecture, size, classes, keypoints, origin."""
    from posefoundry.commands import verbs

    verbs.info(words or [])


@_command(
    MODEL_PANEL,
    "posefoundry import-weights yolov8n-pose.pt",
    "posefoundry import-weights yolov8n-pose.pt out=weights/yolov8n-pose.safetensors",
)
def import_weights(
    words: Annotated[list[str] | None, typer.Argument(metavar="FILE.pt [out=FILE]", show_default=False)] = None,
) -> None:
    """Turns a published checkpoint into safetensors, without running anything in it."""
    from posefoundry.commands import verbs

    verbs.import_weights(words or [])


@_command(
    ANNOTATION_PANEL,
    "posefoundry sigmas annotations=first.json second=second.json",
    "posefoundry sigmas annotations=first.json second=second.json out=own.yaml",
    "posefoundry evaluate annotations=gt.json detections=dt.json sigmas=own.yaml",
    keys=keys.SIGMAS_KEYS,
)
def sigmas(words: Words = None) -> None:
    """Measures the sigmas of a skeleton, which OKS scales by, on persons that two people annotated.

    A sigma says how far people scatter on a keypoint; guesses flatter models.
    Persons are paired by image and box. What is left out is listed below the table.
    """
    from posefoundry.commands.sigmas import sigmas as estimate

    estimate(words or [])


@_command(
    ANNOTATION_PANEL,
    "posefoundry hard-examples",
    "posefoundry hard-examples count=100 out=round_2",
    "posefoundry hard-examples annotations=new.json images=photos/ detections=found.json",
    keys=keys.HARD_EXAMPLES_KEYS,
)
def hard_examples(words: Words = None) -> None:
    """Exports the images most worth correcting, with predictions as pre-labels, for CVAT or Label Studio.

    Each comes with its reasons: low OKS, persons nobody annotated, low confidence,
    disagreement with production. By default they are from the pipeline's test split.
    Corrected annotations go into data/corrections, where dvc repro picks them up.
    """
    from posefoundry.commands.hard_examples import hard_examples as export_hard_examples

    export_hard_examples(words or [])


def _model_name(given: str | None) -> str:
    from posefoundry.config import Register
    from posefoundry.params import load_params
    from posefoundry.registry.store import project_root

    if given:
        return given
    params = project_root() / "params.yaml"
    return (load_params(params).register_ if params.is_file() else Register()).model_name


def _without_task(words: list[str]) -> list[str]:
    """Drops the task from `pose train ...` and `train pose ...`, as people of YOLO type it."""
    place = next((i for i, word in enumerate(words[:2]) if word == "pose" and len(words) > i + 1), None)
    return words if place is None else words[:place] + words[place + 1 :]


def main() -> None:
    """Runs the command line; a fault that the user can mend is one message and an exit status."""
    sys.argv[1:] = _without_task(sys.argv[1:])
    with told_in_a_message("posefoundry"):
        app()


if __name__ == "__main__":
    main()
