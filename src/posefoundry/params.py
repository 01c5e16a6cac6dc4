"""Reads params.yaml, and says what is wrong with settings: unknown keys are refused by name."""

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from posefoundry.config import Params
from posefoundry.errors import PosefoundryError


def load_params(path: Path) -> Params:
    """Reads and checks params.yaml.

    Raises:
        PosefoundryError: The file is missing or not YAML, a key is unknown, or a value is impossible; every
            fault is listed with its setting's dotted name.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PosefoundryError(f"{path}: expected the parameters here, found no file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PosefoundryError(f"{path}: expected YAML, got: {error}") from None
    if not isinstance(content, dict):
        raise PosefoundryError(f"{path}: expected one section a stage, got {type(content).__name__}.")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise PosefoundryError(f"{path}: " + describe_validation_error(error, Params)) from None


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Puts pydantic's findings into sentences that name the setting and, for an unknown key, the nearest known one."""
    sentences = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"]) or "the file"
        if fault["type"] == "extra_forbidden":
            known = _known_keys(model, fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            sentences.append(f"unknown setting {name!r}; {hint}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if isinstance(fault["input"], dict | BaseModel) else f" (got {fault['input']!r})"
            sentences.append(f"{name}: {message}{given}")
    told = "; ".join(sentences)
    return told if told.endswith("?") else f"{told}."


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Returns the settings known at a place; of a list of rules, those of the rule that is named there."""
    models = [model]
    for part in location:
        named = [m for m in models if "rule" in m.model_fields and part in get_args(m.model_fields["rule"].annotation)]
        if isinstance(part, int) or named:
            models = named or models
            continue
        fields = {field.alias or name: field.annotation for name, field in models[0].model_fields.items()}
        models = _models_in(fields.get(str(part)))
        if not models:
            return []
    return [field.alias or name for name, field in models[0].model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns the groups of settings that a type is made of: itself, or those of a list or a choice."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
