"""Recipes: trainings with the score that is to be expected of them, as files in `recipes/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from posefoundry.config import Convert, Evaluate, Ingest, Section, Train
from posefoundry.errors import PosefoundryError
from posefoundry.params import describe_validation_error
from posefoundry.values import Fraction, MetricName

Tier = Literal["instant", "short", "full"]
TIERS: tuple[Tier, ...] = ("instant", "short", "full")


class Expectation(Section):
    """What a metric should come to at least: `value`, or what the starting weights have, less a tolerance.

    A score below `value - tolerance`, or below the start's by more than `tolerance`, fails the recipe.
    """

    value: Fraction | None = None
    as_at_start: bool = False
    tolerance: Fraction

    @model_validator(mode="after")
    def _has_one_reference(self) -> Self:
        if (self.value is None) != self.as_at_start:
            raise ValueError("expected either value or as_at_start: true")
        return self


class Recipe(Section):
    """Data, training and what should come of them.

    Attributes:
        description: A sentence for the list of recipes.
        tier: instant (two minutes on two cores), short (several minutes) or full (hours on a GPU).
        ingest: The data.
        convert: How they become labels.
        train: The training.
        evaluate: How it is judged.
        split: The split that it is judged on.
        expected: By metric.
        origin: Where the expected values come from.
    """

    description: Annotated[str, Field(min_length=1)]
    tier: Tier
    ingest: Ingest
    convert: Convert = Convert()
    train: Train
    evaluate: Evaluate = Evaluate()
    split: Literal["val", "test"] = "test"
    expected: Annotated[dict[MetricName, Expectation], Field(min_length=1)]
    origin: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _start_exists(self) -> Self:
        if self.train.weights is None and any(rule.as_at_start for rule in self.expected.values()):
            raise ValueError("expected: as_at_start needs train.weights, a checkpoint to start from")
        return self


def recipe_files(folder: Path) -> dict[str, Path]:
    """Returns the recipes of a folder by name.

    Raises:
        PosefoundryError: There is none.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise PosefoundryError(f"{folder}: expected recipes (*.yaml) here, found none. Run this in the project.")
    return files


def load_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        path: The file.
        changes: Values by dotted setting, such as `{"train.epochs": 2}`, that take the place of the file's.

    Raises:
        PosefoundryError: The file is missing or not YAML, or a setting is unknown or impossible.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PosefoundryError(f"{path}: expected a recipe in YAML, got: {error}") from None
    if not isinstance(content, dict):
        raise PosefoundryError(f"{path}: expected the sections of a recipe, got {type(content).__name__}.")
    for name, value in (changes or {}).items():
        _set(content, name, value)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise PosefoundryError(f"{path}: " + describe_validation_error(error, Recipe)) from None


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise PosefoundryError(f"{name}: expected {section} to be a section of the recipe, it is {inner!r}.")
        content = inner
    content[key] = value
