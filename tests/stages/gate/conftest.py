"""A candidate for the gate, a model in production, and the stage as tests run it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from gate_rules import at_least, no_loss

from posefoundry.config import Evaluate, Gate, Register
from posefoundry.errors import RejectedError
from posefoundry.evaluation.judge import judge_weights
from posefoundry.files import write_json_atomic
from posefoundry.registry.runs import TrainingRun
from posefoundry.registry.versions import ProductionModel
from posefoundry.skeleton import COCO_PERSON_CATEGORY
from posefoundry.stages import gate


@pytest.fixture
def judged_by() -> Evaluate:
    return Evaluate(max_detections=20)


@pytest.fixture
def inputs(project: Path, make_weights: Callable[..., Path], judged_by: Evaluate) -> dict[str, Path]:
    """A candidate, evaluated on 24 test images of one person each, and its training run."""
    raw = project / "raw"
    (raw / "images" / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, persons = [], []
    for i in range(1, 25):
        cv2.imwrite(str(raw / "images" / "test" / f"{i}.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 64})
        keypoints = rng.uniform(5, 60, (17, 2)).round(1).tolist()
        persons.append({
            "id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 55, 55], "area": 1500.0, "iscrowd": 0,
            "num_keypoints": 17, "keypoints": [n for x, y in keypoints for n in (x, y, 2)],
        })  # fmt: skip
    content = {"images": images, "annotations": persons, "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(raw / "annotations" / "test.json", content)
    (raw / "tags.csv").write_text("file_name\n")
    write_json_atomic(project / "reports" / "validate.json", {"passed": True, "checks": []})
    weights = make_weights(project / "models" / "best.safetensors")
    judgement = judge_weights(weights, raw / "annotations" / "test.json", raw / "images" / "test", judged_by)
    write_json_atomic(project / "reports" / "evaluate" / "metrics.json", judgement.metrics)
    write_json_atomic(project / "reports" / "evaluate" / "passport.json", judgement.passport)
    write_json_atomic(project / "reports" / "evaluate" / "detections.json", judgement.detections)
    with TrainingRun.start("posefoundry", "train", {}) as run:
        run.write_run_file(project / "models" / "mlflow_run.json")
    return {
        "raw": raw,
        "evaluation": project / "reports" / "evaluate",
        "data_checks": project / "reports" / "validate.json",
        "run": project / "models" / "mlflow_run.json",
        "report": project / "reports" / "gate",
    }


@pytest.fixture
def annotated(inputs: dict[str, Path]) -> dict[str, Any]:
    """What the test images show."""
    return json.loads((inputs["raw"] / "annotations" / "test.json").read_text())


@pytest.fixture
def in_production(monkeypatch):
    """Puts weights into production as version 3, without a registry."""

    def put(weights: Path) -> None:
        monkeypatch.setattr(gate, "aliases_of", lambda client, name: {"production": "3"})
        monkeypatch.setattr(gate, "production_weights", lambda name, into: ProductionModel("3", weights))

    return put


@pytest.fixture
def run_gate(inputs, judged_by) -> Callable[..., dict[str, Any]]:
    """Runs the stage with rules and settings, by default rules that nearly everybody keeps; returns the decision."""

    def act(*rules, judged_by=judged_by, **settings):
        rules = rules or (at_least(0.0, "box_ap"), no_loss(0.99))
        gate.run(Gate(rules=rules, **{"resamples": 400} | settings), judged_by, Register(), **inputs)
        return json.loads((inputs["report"] / "decision.json").read_text())

    return act


@pytest.fixture
def rejection(inputs, run_gate) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs the stage, which must reject; returns the decision and the reasons that it ends with."""

    def act(*rules, **settings):
        with pytest.raises(RejectedError) as rejected:
            run_gate(*rules, **settings)
        decision = json.loads((inputs["report"] / "decision.json").read_text())
        assert decision["passed"] is False
        return decision, str(rejected.value)

    return act
