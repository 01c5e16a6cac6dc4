"""`posefoundry sigmas`: how far two annotators are apart, keypoint by keypoint."""

import json
from pathlib import Path
from typing import Any

import yaml

from posefoundry.commands.words import arguments_of, refuse_others, required
from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.sigmas import (
    DoubleAnnotation,
    KeypointSigma,
    describe,
    estimate_sigmas,
    read_double_annotation,
)
from posefoundry.files import write_json_atomic, write_text_atomic


def sigmas(words: list[str]) -> None:
    """Estimates the sigmas of a skeleton from two annotations of the same persons and prints them as a table."""
    arguments = arguments_of("sigmas", words)
    first = Path(required("sigmas", arguments, "annotations", "first.json"))
    second = Path(required("sigmas", arguments, "second", "second.json"))
    refuse_others("sigmas", arguments, ("out", "seed", "annotations", "second"))
    out = Path(arguments["out"]) if "out" in arguments else None
    if out and out.suffix not in (".yaml", ".yml", ".json"):
        raise PosefoundryError(f"sigmas: out: expected a .yaml or .json file, got {out}.")
    seed = arguments.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise PosefoundryError(f"sigmas: seed: expected a whole number, 0 or above, got {seed!r}.")
    persons = read_double_annotation(first, second)
    estimates = estimate_sigmas(persons, seed=seed)
    _print(estimates, persons)
    if out:
        _write(out, describe(estimates, persons, (first, second)))
    elif all(estimate.sigma for estimate in estimates):
        print(f"sigmas: [{', '.join(f'{estimate.sigma:.4f}' for estimate in estimates)}]")
    print("They go into ingest.sigmas of params.yaml, or under `sigmas` into a dataset.yaml or a COCO category.")


def _print(estimates: list[KeypointSigma], persons: DoubleAnnotation) -> None:
    print(f"{len(persons.areas)} persons annotated twice, in {persons.images} images")
    width = max(8, *(len(estimate.name) for estimate in estimates))
    print(
        f"{'keypoint':{width}}{'sigma':>9}{'95 % interval':>18}{'persons':>9}{'outliers':>10}{'sides':>7}{'once':>6}"
        f"{'offset':>8}"
    )
    for estimate in estimates:
        interval = f"{estimate.low:.4f}..{estimate.high:.4f}" if estimate.sigma is not None else "n/a"
        sigma, offset = (
            "n/a" if value is None else f"{value:.{digits}f}"
            for value, digits in ((estimate.sigma, 4), (estimate.offset, 2))
        )
        print(
            f"{estimate.name:{width}}{sigma:>9}{interval:>18}{estimate.persons:9}{estimate.outliers:10}"
            f"{estimate.sides_exchanged:7}{estimate.labelled_once:6}{offset:>8}"
        )
    print(
        "Left out of sigma: outliers (too far apart to mean the same point), sides (left and right exchanged), once\n"
        "(labelled by one annotator). offset: the annotators' mean difference, in sigmas."
    )
    for reason, count in persons.left_out.items():
        print(f"Not used: {count} {reason}.")


def _write(out: Path, content: dict[str, Any]) -> None:
    if out.suffix == ".json":
        write_json_atomic(out, content)
    else:
        # Numbers as JSON writes them; YAML's own dumper has no say in how a list breaks.
        plain = json.loads(json.dumps(content))
        write_text_atomic(
            out, yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
        )
    print(out)
