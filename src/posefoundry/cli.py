"""What a person types: `posefoundry promote`, `rollback`, `versions`, `history`, `ui`, `predict`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from posefoundry.errors import PosefoundryError

# Everything heavy is imported inside the commands, so that --help answers at once.


def _lines(*lines: str) -> str:
    return "\n".join(lines)


app = typer.Typer(
    name="posefoundry",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Looks after the pose models that the pipeline ([bold]dvc repro[/]) makes: which there are, which one is in "
    "production, and why.",
    epilog=_lines(
        "[bold]A model's way[/]",
        "dvc repro                                  the pipeline registers a candidate",
        "posefoundry versions                       see it beside the others",
        "posefoundry predict street.jpg             see what it sees",
        'posefoundry promote candidate --why "..."  put it into production',
        'posefoundry rollback --why "..."           and back',
        "",
        "The store is mlflow.db in the project, or the server that MLFLOW_TRACKING_URI names.",
    ),
)

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model-name", metavar="NAME", help="Registered model; by default register.model_name of params.yaml."
    ),
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, in words; it stays in the history.")]


@app.command(
    epilog=_lines(
        "[bold]Examples[/]",
        'posefoundry promote candidate --why "oks_ap 0.61, was 0.58"',
        'posefoundry promote 3 --why "2 fails on night scenes"',
    )
)
def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="A version's number, or candidate.")],
    why: Why,
    model_name: ModelName = None,
) -> None:
    """Puts a version that passed the gate into production.

    The one that was there stays at hand as previous. Who, when, why, from and to are recorded for good.
    Who: POSEFOUNDRY_USER in the environment, else git's user.
    """
    from posefoundry.commands import ledger

    ledger.promote(_model_name(model_name), version, why)


@app.command(epilog=_lines("[bold]Example[/]", 'posefoundry rollback --why "misses cyclists since this morning"'))
def rollback(why: Why, model_name: ModelName = None) -> None:
    """Puts the previous version back into production.

    The one rolled back from becomes previous, so a second rollback undoes the first. Recorded like a promotion.
    """
    from posefoundry.commands import ledger

    ledger.rollback(_model_name(model_name), why)


@app.command(epilog=_lines("[bold]Examples[/]", "posefoundry versions", "posefoundry versions --model-name dancers"))
def versions(model_name: ModelName = None) -> None:
    """Lists the versions: aliases, OKS AP on the test split, the gate's verdict, commit, age."""
    from posefoundry.commands import ledger

    ledger.show_versions(_model_name(model_name))


@app.command(epilog=_lines("[bold]Example[/]", "posefoundry history"))
def history(model_name: ModelName = None) -> None:
    """Tells every promotion and rollback, and checks that none was altered or removed.

    Ends with status 1 if the record is broken, or production was moved without one.
    """
    from posefoundry.commands import ledger

    if not ledger.show_history(_model_name(model_name)):
        raise typer.Exit(1)


@app.command(epilog=_lines("[bold]Examples[/]", "posefoundry ui", "posefoundry ui --port 5001"))
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000) -> None:
    """Opens MLflow's pages on the project's store, for this machine only. Ctrl-C ends them."""
    from posefoundry.commands.ui import serve

    raise typer.Exit(serve(port))


@app.command(
    epilog=_lines(
        "[bold]Examples[/]",
        "posefoundry predict street.jpg",
        "posefoundry predict photos/ --out drawn/",
        "posefoundry predict photos/ --weights models:/posefoundry@candidate",
        "posefoundry predict street.jpg --weights models/export/model.onnx --confidence 0.5",
    )
)
def predict(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="An image, or a folder of images.")],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|models:/...",
            help="A .safetensors, .pt, .onnx or .engine file, or a registered version. By default the model in "
            "production, else models/train/best.safetensors.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the drawn images go.")] = Path("predictions"),
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Leave out persons less certain than this.")] = 0.25,
    model_name: ModelName = None,
) -> None:
    """Finds people in images and draws their skeletons.

    A file that cannot be read is named and skipped; the command then ends with status 1.
    """
    from posefoundry.commands.predict import predict_and_draw

    if predict_and_draw(source, weights, out, confidence, lambda: _model_name(model_name)):
        raise typer.Exit(1)


def _model_name(given: str | None) -> str:
    from posefoundry.config import Register, load_params
    from posefoundry.registry.store import project_root

    if given:
        return given
    params = project_root() / "params.yaml"
    return (load_params(params).register_ if params.is_file() else Register()).model_name


def main() -> None:
    """Runs the command line; a fault that the user can mend is one message and an exit status."""
    try:
        app()
    except PosefoundryError as error:
        print(f"posefoundry: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
