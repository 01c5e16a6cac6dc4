"""The manifest of a data folder: what it was made from, and the fingerprint of every file in it."""

from pathlib import Path
from typing import Any

from posefoundry.files import sha256_of_file, write_json_atomic

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path, source: dict[str, Any]) -> None:
    """Writes `manifest.json` into a folder: its source, and path, SHA-256 and size of every other file, by path.

    Args:
        folder: The finished folder.
        source: Where the data comes from, as it shall stand in the manifest.
    """
    paths = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST_NAME
    )
    files = [
        {"path": path, "sha256": sha256_of_file(folder / path), "bytes": (folder / path).stat().st_size}
        for path in paths
    ]
    write_json_atomic(folder / MANIFEST_NAME, {"source": source, "files": files})
