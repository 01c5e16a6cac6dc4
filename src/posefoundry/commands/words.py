"""`key=value` words, as people of YOLO type them."""

from typing import Any

import yaml

from posefoundry.errors import PosefoundryError

# Their values are names, whatever they look like: name=2024 is no number.
TEXT_KEYS = frozenset(
    {"model", "data", "source", "out", "project", "name", "format", "split", "annotations", "second", "detections"}
    | {"images", "production", "json", "tags"}
)


def arguments_of(verb: str, words: list[str], *, bare: str | None = None, dotted: bool = False) -> dict[str, Any]:
    """Reads words into arguments.

    Args:
        verb: The command, for messages.
        words: `key=value`; values are read as YAML reads them: 3, 0.5, true, [0, 1], null.
        bare: The key that a word without `=` stands for.
        dotted: Keys may name settings of sections, `train.epochs=3`.

    Raises:
        PosefoundryError: A word has no key where it needs one, or a key comes twice.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        parts = key.split(".") if dotted else [key]
        if not equals or not all(part.isidentifier() for part in parts):
            if bare is None:
                raise PosefoundryError(f"{verb}: expected key=value, got {word!r}. See posefoundry {verb} --help.")
            key, value = bare, word
        if key in arguments:
            raise PosefoundryError(f"{verb}: expected {key}= once, got it again: {word!r}.")
        arguments[key] = value if key in TEXT_KEYS else _value(value)
    return arguments


def required(verb: str, arguments: dict[str, Any], key: str, example: str) -> Any:
    """Takes an argument that must be there out of the others.

    Raises:
        PosefoundryError: It is missing.
    """
    if key not in arguments:
        raise PosefoundryError(f"{verb}: expected {key}=, for example {key}={example}.")
    return arguments.pop(key)


def refuse_others(verb: str, arguments: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises for arguments that are left over, naming the nearest known key.

    Raises:
        PosefoundryError: There is one.
    """
    import difflib

    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}."
            raise PosefoundryError(f"{verb}: unknown setting {key!r}; {hint}")


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)  # 1e-3, which YAML takes for a word
        except ValueError:
            return value
    return value
