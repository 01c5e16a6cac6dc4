"""dvc.yaml names the code that decides a stage's result: what the stage imports, but for what only tells of it."""

from pathlib import Path

import pytest
import yaml
from imports import PACKAGE, imported_by, is_part_of

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
# What these import in turn is not looked at: a stage has no use for more of them than is said here.
WITHOUT_INFLUENCE = {
    "__init__.py",  # the version, which is told
    "config.py",  # the parameters, which dvc.yaml names as such
    "params.py",  # reading them
    "errors.py",  # what is refused, and how it is told
    "files.py",  # reading and writing as it is
    "machine.py",  # how many cores and how much memory there are, which no file holds, and the processor's name
    "processes.py",  # how processes end
    "registry",  # keeps what others have decided; which model is in production is no file, and so outside of DVC
    "stages/__init__.py",  # how processes end, and which checkpoints are no longer needed
    "stages/runner.py",  # from the command line to the stage
    "values.py",  # which values the parameters may have
}
OF_ONE_STAGE = {
    "train": {
        "datasets/coco.py",  # behind tags
        "datasets/tags.py",  # whose slices training has no use for
        "datasets/image_files.py",  # which images are broken: ingest keeps none
        "evaluation/learning_curves.py",  # plots
    },
    "evaluate": {"datasets/image_files.py"},
    "gate": {
        "datasets/image_files.py",
        "stages/evaluate.py",  # the name of the split
    },
    "export": {
        "datasets/image_files.py",
        "datasets/yolo.py",  # which files of a folder are images
    },
    "benchmark": {
        "datasets/image_files.py",
        "datasets/yolo.py",
        "evaluation/passport.py",  # versions of software
        "training/loop.py",  # whether a device knows bfloat16
    },
    "release": {
        "datasets/image_files.py",
        "stages/evaluate.py",
        "stages/gate.py",  # how a decision is told
    },
    "register": {
        "datasets/coco.py",  # which image goes with the model as an example
        "evaluation/passport.py",  # the fingerprint of what was measured, to be compared later
        "stages/gate.py",  # reading a JSON file
    },
}


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_decides_a_stages_result_is_among_its_dependencies(stage):
    named = code_named_by(stage)
    assert {part for part in named if not (PACKAGE / part).exists()} == set()
    used = code_used_by(stage, without=WITHOUT_INFLUENCE | OF_ONE_STAGE.get(stage, set()))
    missing = {name for name in used if not is_part_of(name, named)}
    assert missing == set(), "name them in dvc.yaml, or say here why they do not matter"


@pytest.mark.parametrize("stage", OF_ONE_STAGE)
def test_no_exception_is_needless(stage):
    assert {name for name in OF_ONE_STAGE[stage] if is_part_of(name, code_named_by(stage))} == set()
    assert OF_ONE_STAGE[stage] <= code_used_by(stage, without=set())


def code_named_by(stage: str) -> set[str]:
    prefix = "src/posefoundry/"
    return {dep.removeprefix(prefix) for dep in STAGES[stage]["deps"] if dep.startswith(prefix)}


def code_used_by(stage: str, *, without: set[str]) -> set[str]:
    """Returns what a stage imports and what that imports, but for some and what these import."""
    used: set[str] = set()
    due = {PACKAGE / "stages" / f"{stage}.py"}
    while due:
        names = {file.relative_to(PACKAGE).as_posix(): file for file in due}
        new = {name for name in names if name not in used and not is_part_of(name, without)}
        used |= new
        due = {path for name in new for path in imported_by(names[name])}
    return used
