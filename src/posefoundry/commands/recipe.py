"""`posefoundry recipe`: lists recipes, or runs one and compares the result with what is expected."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from posefoundry.commands.words import arguments_of
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.files import sole_use, write_json_atomic
from posefoundry.recipes import TIERS, Expectation, Recipe, load_recipe, recipe_files

Metrics = dict[str, float | None]


def recipe(words: list[str]) -> None:
    """Lists the recipes, or runs one, or all of a tier.

    Raises:
        RejectedError: A score is lower than expected.
        PosefoundryError: There is no such recipe, it cannot be run, or another process runs it into the same folder.
    """
    arguments = arguments_of("recipe", words, bare="recipe", dotted=True)
    name, tier = arguments.pop("recipe", None), arguments.pop("tier", None)
    folder = Path(str(arguments.pop("recipes", "recipes")))
    out = Path(str(arguments.pop("out", "runs/recipes")))
    files = recipe_files(folder)
    if name is None and tier is None:
        _list_recipes({each: load_recipe(path) for each, path in files.items()})
        return
    if tier is not None and tier not in TIERS:
        raise PosefoundryError(f"recipe: tier: expected one of {', '.join(TIERS)}, got {tier!r}.")
    if name is not None and name not in files:
        raise PosefoundryError(f"recipe: expected one of {', '.join(files)}, got {name!r}.")
    loaded = {each: load_recipe(path, arguments) for each, path in files.items() if name in (None, each)}
    chosen = {each: recipe for each, recipe in loaded.items() if tier in (None, recipe.tier)}
    failures: list[str] = []
    for each, recipe in chosen.items():
        with sole_use(out / each / ".recipe.lock", patience_s=0):
            failures += _run_recipe(each, recipe, out / each)
    if failures:
        raise RejectedError("Lower than expected:\n  " + "\n  ".join(failures))


def _list_recipes(recipes: dict[str, Recipe]) -> None:
    table = Table("recipe", "tier", "what it is")
    table.add_column("expected", no_wrap=True)
    for tier in TIERS:
        for name, recipe in recipes.items():
            if recipe.tier == tier:
                expected = (f"{metric} {_expected_text(rule)}" for metric, rule in recipe.expected.items())
                table.add_row(name, tier, recipe.description, "\n".join(expected))
    console = Console()
    console.print(table)
    console.print("Run one:  posefoundry recipe short-cpu      all of a tier:  posefoundry recipe tier=instant")


def _run_recipe(name: str, recipe: Recipe, folder: Path) -> list[str]:
    """Makes the data, trains, judges; prints a table and returns what fell short."""
    print(f"{name}: {recipe.description}")
    _prepare_data(recipe, folder)
    _require_images(recipe, folder)
    start = _judge(recipe, recipe.train.weights, folder) if recipe.train.weights else None
    _train(recipe, folder)
    measured = _judge(recipe, folder / "weights" / "best.safetensors", folder)
    lines = {metric: _compare(rule, metric, measured, start) for metric, rule in recipe.expected.items()}
    table = Table("metric", "measured", "expected", "", title=f"{name}, {recipe.split} split", title_justify="left")
    for metric, (text, good) in lines.items():
        table.add_row(metric, _number(measured[metric]), text, "[green]as expected[/]" if good else "[red]too low[/]")
    Console().print(table)
    document = {
        "recipe": recipe.model_dump(mode="json"),
        "measured": measured,
        "start": start,
        "as_expected": all(good for _, good in lines.values()),
    }
    write_json_atomic(folder / "result.json", document)
    print(f"Weights, logs and result.json: {folder}/")
    return [
        f"{name}: {metric} {_number(measured[metric])}, expected {text}"
        for metric, (text, good) in lines.items()
        if not good
    ]


def _prepare_data(recipe: Recipe, folder: Path) -> None:
    """Makes the data set, unless it is there already, made from the same settings."""
    from posefoundry.stages import convert, ingest

    record = folder / "data" / "made_from.json"
    wanted = json.loads(json.dumps([recipe.ingest.model_dump(mode="json"), recipe.convert.model_dump(mode="json")]))
    if record.is_file() and json.loads(record.read_text()) == wanted:
        print(f"Using the data made before: {folder / 'data'}/")
        return
    record.unlink(missing_ok=True)
    raw, yolo, reports = folder / "data" / "raw", folder / "data" / "yolo", folder / "data" / "reports"
    ingest.run(recipe.ingest, raw=raw, report=reports / "ingest.json")
    convert.run(recipe.convert, raw=raw, yolo=yolo, receipt=reports / "receipt.jsonl", report=reports / "convert.json")
    write_json_atomic(record, wanted)


def _require_images(recipe: Recipe, folder: Path) -> None:
    """Refuses, before hours of training, to train what could not be judged."""
    annotations = folder / "data" / "raw" / "annotations" / f"{recipe.split}.json"
    if not load_coco_keypoints(annotations).images:
        raise PosefoundryError(
            f"recipe: expected images in the split to judge on, {recipe.split}, found none. Judge on another "
            "(split=val), or raise ingest.coco.test_fraction."
        )


def _train(recipe: Recipe, folder: Path) -> None:
    """Trains, or goes on with a training of the same recipe that was cut short."""
    from posefoundry.training.identity import digest, identity_of_training
    from posefoundry.training.plan import Plan

    dataset_yaml = folder / "data" / "yolo" / "dataset.yaml"
    val_annotations = folder / "data" / "raw" / "annotations" / "val.json"
    identity = identity_of_training(recipe.train, dataset_yaml=dataset_yaml, val_annotations=val_annotations)
    Plan(
        folder=folder,
        settings=recipe.train,
        dataset_yaml=dataset_yaml,
        val_annotations=val_annotations,
        checkpoints=f"checkpoints/{digest(identity)}",
    ).carry_out()


def _judge(recipe: Recipe, weights: Path, folder: Path) -> Metrics:
    """Judges at the size of the training, whatever size the weights were made for."""
    from posefoundry.evaluation.judge import judge
    from posefoundry.evaluation.progress import progress_bar
    from posefoundry.inference.predictor import Predictor

    settings, raw = recipe.evaluate, folder / "data" / "raw"
    predictor = Predictor.load(
        weights,
        image_size_px=recipe.train.image_size_px,
        confidence=settings.confidence,
        nms_iou=settings.nms_iou,
        max_detections=settings.max_detections,
    )
    annotations, images = raw / "annotations" / f"{recipe.split}.json", raw / "images" / recipe.split
    with progress_bar("judge") as progress:
        return judge(predictor, annotations, images, settings, origin={}, progress=progress).evaluation.metrics


def _compare(rule: Expectation, metric: str, measured: Metrics, start: Metrics | None) -> tuple[str, bool]:
    reference = start[metric] if start is not None and rule.as_at_start else rule.value
    text = _expected_text(rule, reference)
    value = measured[metric]
    if value is None or reference is None:
        return f"{text} (nobody of that kind is annotated)", False
    return text, value >= reference - rule.tolerance


def _expected_text(rule: Expectation, reference: float | None = None) -> str:
    """Says from which score on it is as expected: more than expected is no fault."""
    reference = rule.value if reference is None else reference
    if reference is None:
        return f">= that at start - {_number(rule.tolerance)}"
    return f">= {_number(reference - rule.tolerance)} ({_number(reference)} - {_number(rule.tolerance)})"


def _number(value: Any) -> str:
    return "n/a" if value is None else f"{value:.3f}"
