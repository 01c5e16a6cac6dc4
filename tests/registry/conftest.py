import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posefoundry.files import read_json
from posefoundry.registry import store
from posefoundry.registry.registration import Evidence


@pytest.fixture
def make_version(tmp_path: Path) -> Callable[..., str]:
    """Registers a version that carries nothing but a gate's decision, which is all that a promotion asks for."""

    def make(*, passed: bool = True, compared_with: str | None = None, tagged_passed: bool | None = None) -> str:
        client = store.client()
        if not client.search_registered_models("name = 'posefoundry'"):
            client.create_registered_model("posefoundry")
        verdict = "Passed: all 2 rules hold." if passed else "Rejected: Pose accuracy (OKS AP) is 0.1."
        folder = tmp_path / "logged"
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        (folder / "artifacts" / "decision.json").write_text(json.dumps({"passed": passed, "verdict": verdict}))
        (folder / "MLmodel").write_text("flavors: {}\n")
        model = client.create_logged_model(store.experiment_id("posefoundry"), name="posefoundry")
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        tags = {
            "gate.passed": str(passed if tagged_passed is None else tagged_passed).lower(),
            "gate.verdict": verdict,
            "gate.compared_with": compared_with or "",
            "oks_ap": "0.6100",
            "git.commit": "0123456789abcdef0123456789abcdef01234567",
        }
        source = f"models:/{model.model_id}"
        made = client.create_model_version("posefoundry", source, tags=tags, model_id=model.model_id)
        client.set_registered_model_alias("posefoundry", "candidate", str(made.version))
        return str(made.version)

    return make


@pytest.fixture
def evidence(trained: Path) -> Evidence:
    return Evidence(
        weights=trained / "best.safetensors",
        onnx=trained / "model.onnx",
        decision=trained / "decision.json",
        metrics=read_json(trained / "metrics.json"),
        latency_p50_ms=12.345,
        example_image=trained / "street.png",
    )
