"""Where a verb's results go: runs/pose/train, runs/pose/train2, ..."""

import itertools
from pathlib import Path

from posefoundry.api.arguments import VerbArguments


def results_folder(arguments: VerbArguments, verb: str) -> Path:
    """Makes the folder of a verb's results: `project`/`name`, with a number after it where that exists already."""
    wanted = arguments.project / (arguments.name or verb)
    if arguments.exist_ok:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("counting has no end")
