"""What makes a training this one: its code, as dvc.yaml and checkpoints both know it."""

import ast
from pathlib import Path

import pytest
import yaml
from imports import PACKAGE, imported_by, is_part_of

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError
from posefoundry.training import identity
from posefoundry.training.distributed import ProcessGroup

REPOSITORY = Path(__file__).parents[2]
# What reads parameters or tags, tells of faults, refuses broken images, ends processes or looks at the machine.
WITHOUT_INFLUENCE = {
    "config.py",
    "datasets/coco.py",
    "datasets/image_files.py",
    "datasets/tags.py",
    "errors.py",
    "files.py",
    "machine.py",
    "processes.py",
    "values.py",
}


def test_all_code_that_a_training_runs_is_known() -> None:
    known, due = set(), {PACKAGE / "training/session.py"}
    while due:
        known |= due
        due = {path for file in due for path in imported_by(file)} - known
    names = {file.relative_to(PACKAGE).as_posix() for file in known if ast.parse(file.read_text()).body[1:]}
    missing = {name for name in names if not is_part_of(name, set(identity.CODE))}
    assert missing == WITHOUT_INFLUENCE
    assert all((PACKAGE / part).exists() for part in identity.CODE)


def test_dvc_trains_anew_for_the_same_code() -> None:
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["train"]
    code = {dep.removeprefix("src/posefoundry/") for dep in stage["deps"] if dep.startswith("src/posefoundry/")}
    assert code == {"stages/train.py", *identity.CODE}


def test_hosts_with_other_code_or_torch_refuse(
    people: Path, settings: Train, pair: tuple[ProcessGroup, ProcessGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair

    def look(group: ProcessGroup) -> dict:
        files = {"dataset_yaml": people / "yolo/dataset.yaml", "val_annotations": people / "raw/annotations/val.json"}
        return identity.identity_on_all_hosts(settings, group, **files)

    left: list[int] = []
    monkeypatch.setattr(type(first), "close", lambda group: left.append(group.rank))
    look(second)
    assert look(first)["torch"]
    assert left == []
    with monkeypatch.context() as other:
        other.setattr(identity, "CODE", identity.CODE[1:])
        other.setattr("torch.__version__", "1.0")
        other.setattr("socket.gethostname", lambda: "elsewhere")
        look(second)
    with pytest.raises(PosefoundryError, match=r"host elsewhere \(rank 1\) has different code, torch from "):
        look(first)
    assert left == [0]
