"""Files written whole or not at all, and their fingerprints."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from posefoundry.errors import PosefoundryError


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Writes `content` beside `path`, flushes it to disk and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a full disk, a part would only take room
            aside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text_atomic(path: Path, content: str) -> None:
    """Writes UTF-8 text whole or not at all."""
    write_bytes_atomic(path, content.encode())


def write_json_atomic(path: Path, content: Any) -> None:
    """Writes JSON that any reader accepts, whole or not at all: NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate, which JSON may hold but UTF-8 may not, becomes the escape it was read from.
    write_bytes_atomic(path, text.encode(errors="backslashreplace"))


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        PosefoundryError: The file is missing, cannot be read, or is not JSON; the message gives line and column.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PosefoundryError(f"{path}: expected a JSON file, found nothing there.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PosefoundryError(f"{path}: expected a readable JSON file in UTF-8, got: {error}.") from None
    except json.JSONDecodeError as error:
        raise PosefoundryError(
            f"{path}: expected JSON, got a fault in line {error.lineno}, column {error.colno}: {error.msg}. "
            "Restore or export the file again."
        ) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise PosefoundryError(f"{path}: expected JSON of numbers that a program can hold, got: {error}.") from None
    except RecursionError:
        raise PosefoundryError(f"{path}: expected an annotation file, got JSON nested too deep to read.") from None


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place when the block ends well.

    After an error, or a kill, `path` is as it was before. What a killed run left aside is cleared by the next.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    aside.rename(path)


@contextmanager
def sole_use(lock: Path, patience_s: float) -> Iterator[None]:
    """Keeps other processes that ask for the same lock file out of the block; the system frees it when a process ends.

    Raises:
        PosefoundryError: Another process has kept it for all of `patience_s`.
    """
    until = time.monotonic() + patience_s
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    still = f", and still did after {patience_s:g} s" if patience_s else ""
                    raise PosefoundryError(f"{lock}: another process works here{still}. Let it end first.") from None
            except OSError:  # a network's file system without locks
                break
            time.sleep(0.1)
        yield


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
