"""params.yaml: complete, typed, frozen; faults are named by their setting."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from posefoundry.config import Params
from posefoundry.errors import PosefoundryError
from posefoundry.params import load_params

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def load(tmp_path: Path, content: Any) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_params(path)


def test_shipped_parameters_state_every_setting() -> None:
    # A default that params.yaml does not state could change what a stage does without DVC noticing.
    def missing(model: type[BaseModel], given: dict, prefix: str = "") -> list[str]:
        names = []
        for name, field in model.model_fields.items():
            key = field.alias or name
            if key not in given:
                names.append(prefix + key)
            elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                names += missing(field.annotation, given[key], f"{prefix}{key}.")
        return names

    assert missing(Params, yaml.safe_load(SHIPPED.read_text())) == []


def test_sections_by_stage_name() -> None:
    params = load_params(SHIPPED)
    stages = yaml.safe_load((SHIPPED.parent / "dvc.yaml").read_text())["stages"]
    for stage in stages:
        assert type(params.section(stage)).__name__.lower() == stage


def test_settings_are_frozen() -> None:
    train = load_params(SHIPPED).train
    with pytest.raises(ValueError, match="frozen"):
        train.epochs = 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {"epoch": 3}}, "unknown setting 'train.epoch'; did you mean 'epochs'"),
        ({"trian": {}}, "unknown setting 'trian'; did you mean 'train'"),
        ({"train": {"loss": {"boxes": 1}}}, "unknown setting 'train.loss.boxes'; did you mean 'box'"),
        ({"train": {"zzz": 1}}, "unknown setting 'train.zzz'; known here: model, weights"),
        ({"train": {"epochs": 0}}, "train.epochs: Input should be greater than 0 (got 0)"),
        ({"train": {"batch_size": 10, "processes": 4}}, "train: batch_size is the global batch and must be a multiple"),
        ({"train": {"epochs": 3, "warmup_epochs": 3}}, "warmup_epochs must be less than epochs"),
        ({"train": {"image_size_px": 100}}, "train.image_size_px: Input should be a multiple of 32"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"ingest": {"source": "kaggle"}}, "ingest.source: Input should be 'synthetic' or 'coco'"),
        ({"ingest": {"coco": {"images": "val"}}}, "images must contain {split}"),
        ({"gate": {"rules": [{"rule": "floor", "at_least": 50}]}}, "gate.rules.0.floor.at_least"),
        ({"gate": {"rules": [{"rule": "floor", "metric": "oks_app", "at_least": 0.5}]}}, "gate.rules.0.floor.metric"),
        ({"gate": {"rules": [{"rule": "floor"}]}}, "gate.rules.0.floor.at_least: Field required"),
        ({"gate": {"rules": [{"rule": "latency", "at_most_ms": 5}]}}, "gate.rules.0: Input tag 'latency'"),
        ({"gate": {"rules": [{"rule": "no_regression", "metric": "box_ap", "margin": 0}]}}, "'oks_ap', 'oks_ap50'"),
        ({"gate": {"rules": [{"rule": "no_regression", "margin": -0.1}]}}, "gate.rules.0.no_regression.margin"),
        ({"gate": {"rules": [{"rule": "no_regression", "margin": 0, "slices": ["size="]}]}}, "slices.0"),
        (
            {"gate": {"rules": [{"rule": "floor", "metric": "box_ap", "slice": "size=small", "at_least": 0.1}]}},
            "in a slice there are oks_ap, oks_ap50, oks_ap75; got box_ap of 'size=small'",
        ),
        (
            {"gate": {"rules": [{"rule": "floor", "at_least": 0.1}, {"rule": "floor", "at_least": 0.2}]}},
            "floor oks_ap all is stated twice",
        ),
        ({"gate": {"rules": []}}, "gate.rules: Tuple should have at least 1 item"),
        ({"gate": {"resamples": 100, "confidence": 0.99}}, "lies beyond the outermost of 100 resamples"),
        ({"gate": {"mode": "strict"}}, "gate.mode"),
        (
            {"gate": {"rules": [{"rule": "floor", "at_least": 0.1, "margn": 1}]}},
            "unknown setting 'gate.rules.0.floor.margn'; known here: rule, metric, slice, at_least",
        ),
        ({"release": {"rules": [{"rule": "parity", "at_mots": 1}]}}, "did you mean 'at_most'"),
        ({"release": {"rules": [{"rule": "no_regression", "margin": 0}]}}, "release.rules.0: Input tag"),
        ({"release": {"rules": [{"rule": "latency", "at_most_ms": 0}]}}, "release.rules.0.latency.at_most_ms"),
        ({"train": {"model": "yolov9n-pose"}}, "train.model"),
        ({"train": {"seed": 2**70}}, "train.seed: Input should be less than 9223372036854"),
        ({"train": {"batch_size": 1e29}}, "train.batch_size"),
        ({"train": {"batch_size": True}}, "train.batch_size: expected a number (got True)"),
        ({"train": {"epochs": True}}, "train.epochs: expected a number (got True)"),
        ({"train": {"stall_timeout_s": 1e30}}, "train.stall_timeout_s"),
        ({"register": {"model_name": "a b"}}, "register.model_name"),
    ],
)
def test_faults_name_their_setting(tmp_path: Path, content: dict, message: str) -> None:
    with pytest.raises(PosefoundryError) as fault:
        load(tmp_path, content)
    assert message in str(fault.value)
    assert "params.yaml" in str(fault.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "expected YAML"), ("- 1\n", "expected one section a stage, got list"), ("", "got NoneType")],
)
def test_not_parameters_at_all(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PosefoundryError, match=message):
        load(tmp_path, text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PosefoundryError, match="found no file"):
        load_params(tmp_path / "params.yaml")


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(PosefoundryError) as fault:
        load(tmp_path, {"train": {"epochs": -1, "seed": "x"}, "gate": {"ruls": []}})
    for name in ("train.epochs", "train.seed", "gate.ruls"):
        assert name in str(fault.value)
