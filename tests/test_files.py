"""Files are whole or absent, also when the writer is interrupted."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.files import (
    atomic_directory,
    read_json,
    sha256_of_file,
    sole_use,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


class Interrupted(BaseException):
    pass


def test_directory_takes_its_place_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as folder:
        (folder / "a.txt").write_text("new")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_directory_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(Interrupted), atomic_directory(target) as folder:
        (folder / "half.txt").write_text("half")
        raise Interrupted
    assert [path.name for path in target.iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_remains_of_a_killed_run_are_not_taken_over(tmp_path: Path) -> None:
    remains = tmp_path / ".out.partial"
    remains.mkdir()
    (remains / "half.txt").write_text("half")
    with atomic_directory(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


def test_new_directory_replaces_all_of_the_old(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_directory(tmp_path / "out") as folder:
            (folder / name).touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text_atomic(path, "old")

    def refuse(self: Path, target: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"


def test_a_full_disk_keeps_no_part_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: .*weights"):
        write_bytes_atomic(tmp_path / "weights", b"content")
    assert not list(tmp_path.iterdir())


def test_json_holds_no_nan(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "x.json", {"a": [1.5, float("nan")], "b": float("inf"), "c": (1, 2)})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, None], "b": None, "c": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,}', "line 1, column 9"),
        (b"", "line 1"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_broken_json_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(PosefoundryError, match=message) as fault:
        read_json(path)
    assert str(path) in str(fault.value)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(PosefoundryError, match="found nothing there"):
        read_json(tmp_path / "x.json")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_one_at_a_time_has_the_use_of_a_thing(tmp_path: Path) -> None:
    lock = tmp_path / "made" / ".thing.lock"
    with sole_use(lock, 0), pytest.raises(PosefoundryError, match="another process works here"), sole_use(lock, 0.2):
        pass
    with sole_use(lock, 0):
        pass
