"""What lies in a folder."""

from pathlib import Path


def fingerprint(folder: Path) -> dict[str, bytes]:
    """The files by their paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
