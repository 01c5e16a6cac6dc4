"""Fixtures that several rooms need: an MLflow store of a test's own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them; making one takes seconds, copying it none."""
    from posefoundry.registry import store

    folder = tmp_path_factory.mktemp("empty_store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.client()
    return folder / "mlflow.db"


@pytest.fixture
def project(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder, current, with an embedded store of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("POSEFOUNDRY_USER", "Ada <ada@example.org>")
    yield folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before `register` leave behind, of a small model that sees persons everywhere.

    best.safetensors, best.json, model.onnx, decision.json (passed), metrics.json, and street.png, 96 x 128 px.
    """
    import cv2
    import numpy as np
    import torch

    from posefoundry.export.onnx import export_onnx
    from posefoundry.files import sha256_of_file, write_json_atomic
    from posefoundry.models import ModelInfo, build_model
    from posefoundry.models.weights import save_weights
    from posefoundry.skeleton import COCO_PERSON

    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = build_model("yolov8n-pose").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".cv3." in name and name.endswith(".2.bias"):
                parameter.fill_(0.5)  # class scores around 0.6 instead of the prior's 0.001
    info = ModelInfo(
        architecture="yolov8n-pose",
        class_names=("person",),
        category_ids=(1,),
        kpt_shape=(17, 3),
        skeleton=COCO_PERSON,
        stride_px=32,
        image_size_px=128,
    )
    weights = folder / "best.safetensors"
    save_weights(weights, model.state_dict(), info, {})
    export_onnx(model, info, folder / "model.onnx", opset=18, weights_sha256=sha256_of_file(weights))
    decision = {"passed": True, "verdict": "Passed: all 3 rules hold.", "rules": [], "production_version": None}
    write_json_atomic(folder / "decision.json", decision)
    write_json_atomic(folder / "metrics.json", {"oks_ap": 0.61, "box_ap": 0.8, "oks_ap_m": None, "passport": {"a": 1}})
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    cv2.imwrite(str(folder / "street.png"), cv2.GaussianBlur(pixels, (9, 9), 4))
    return folder
