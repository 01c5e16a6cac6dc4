"""What lies in a report folder, read so that a page copes with whatever is not there."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json


class Folder:
    """The files of a report folder.

    Attributes:
        path: The folder.
        absent: For each file that was asked for and has nothing to show, a line that says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.absent: dict[str, str] = {}

    def table(self, name: str) -> dict[str, Any]:
        """Returns the JSON object of a file, or an empty one."""
        content = self._json(name)
        if isinstance(content, dict) and content:
            return content
        return self._nothing(name, content, {})

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Returns the objects in a JSON list, or none."""
        content = self._json(name)
        rows = [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
        return rows or self._nothing(name, content, [])

    def sentences(self, name: str) -> list[str]:
        """Returns the strings in a JSON list; none is nothing to tell."""
        content = self._json(name)
        return [text for text in content if isinstance(text, str)] if isinstance(content, list) else []

    def csv(self, name: str) -> list[dict[str, str]]:
        """Returns the rows of a CSV file with a header, or none."""
        try:
            with (self.path / name).open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        except FileNotFoundError:
            rows = None
        return rows or self._nothing(name, rows, [])

    def why_absent(self, name: str) -> str:
        """Returns why a file has nothing to show; empty if it has."""
        return self.absent.get(name, "")

    def _json(self, name: str) -> Any:
        if not (self.path / name).is_file():
            return None
        try:
            return read_json(self.path / name)
        except PosefoundryError as error:
            self.absent[name] = f"{name} cannot be read: {error}".replace(f"{self.path}/", "")
            return None

    def _nothing(self, name: str, content: Any, empty: Any) -> Any:
        if content is None:
            self.absent.setdefault(name, f"There is no {name} beside this page.")
        else:
            self.absent[name] = f"{name} holds nothing to show."
        return empty


def table_in(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns an object within another, or an empty one for whatever else stands there."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Returns a finite number, or None for whatever else stands there."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int:
    """Returns a count; 0 for whatever is none."""
    return int(number(value) or 0)
