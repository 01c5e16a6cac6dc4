"""What makes a training this one and no other: only a checkpoint of the same may be gone on with."""

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import posefoundry
from posefoundry.config import Train
from posefoundry.datasets.yolo import image_files, label_path_of, read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.files import sha256_of_file
from posefoundry.training.distributed import ProcessGroup

# Settings that change how a training is run, not what comes out of it.
NOT_DECISIVE = {
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "image_cache_folder",
    "image_cache_gib",
    "keep_checkpoints",
    "loader_workers",
    "max_restarts",
    "nodes",
    "processes",
    "stall_timeout_s",
}
# What the train stage depends on in dvc.yaml, below src/posefoundry.
CODE = (
    "training",
    "models",
    "inference",
    "datasets/yolo.py",
    *(f"evaluation/{name}.py" for name in ("fast_oks", "greedy", "ground_truth", "oks", "slices")),
    "skeleton.py",
)


def identity_of_training(settings: Train, *, dataset_yaml: Path, val_annotations: Path) -> dict[str, Any]:
    """Returns settings by their dotted names, and fingerprints of data, starting weights and code.

    Images count by name and size: their content would take longer to read than an epoch. A caller that knows a hash of
    the content (DVC's) adds it.
    """
    given = settings.model_dump(mode="json", exclude=NOT_DECISIVE)
    start = settings.weights
    return {
        **_dotted(given, "train."),
        "starting weights": sha256_of_file(start) if start and start.is_file() else None,
        "training data": _data(dataset_yaml),
        "validation data": sha256_of_file(val_annotations),
        "code": _code(),
        "torch": torch.__version__,
    }


def digest(identity: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def identity_on_all_hosts(
    settings: Train, group: ProcessGroup, *, dataset_yaml: Path, val_annotations: Path
) -> dict[str, Any]:
    """Returns the identity of a training that is the same on all its hosts; one process of each looks.

    Raises:
        PosefoundryError: A host has other data, code, starting weights, settings or another torch than the first.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    if group.local_rank == 0:
        own = identity_of_training(settings, dataset_yaml=dataset_yaml, val_annotations=val_annotations)
        found = [(f"{socket.gethostname()} (rank {group.rank})", own)]
    (first_host, first), *others = group.gather(found)
    for host, identity in others:
        if differing := sorted(name for name in first | identity if first.get(name) != identity.get(name)):
            group.close()  # all have come here: left in good order, none breaks another's connection as it ends
            raise PosefoundryError(
                f"the host {host} has different {', '.join(differing)} from {first_host}. Give both the same "
                "data, code, packages and parameters, and start all hosts again."
            )
    return first


def _data(dataset_yaml: Path) -> str:
    def facts() -> Iterable[bytes]:
        spec = read_dataset_yaml(dataset_yaml)
        yield dataset_yaml.read_bytes()
        for path in image_files(spec.splits["train"]):
            yield f"{path.name} {path.stat().st_size}".encode()
            label = label_path_of(path)
            yield label.read_bytes() if label.is_file() else b"none"

    return _hash(facts())


def _code() -> str:
    def facts() -> Iterable[bytes]:
        root = Path(posefoundry.__file__).parent
        for name in CODE:
            for path in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
                yield path.relative_to(root).as_posix().encode()
                yield path.read_bytes()

    return _hash(facts())


def _hash(facts: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for fact in facts:
        hashed.update(len(fact).to_bytes(8, "little") + fact)
    return hashed.hexdigest()


def _dotted(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
