import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from posefoundry.config import Export, OnnxExport, TensorRtExport
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.export import artifacts as export_artifacts
from posefoundry.files import read_json, sha256_of_file, write_json_atomic
from posefoundry.inference.predictor import Predictor
from posefoundry.models import ModelInfo, build_model, save_weights
from posefoundry.skeleton import COCO_PERSON
from posefoundry.stages import export

SETTINGS = Export(onnx=OnnxExport(parity_images=3), tensorrt=TensorRtExport(build="never"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three test images of different shapes, weights and a passed gate."""
    root = tmp_path_factory.mktemp("project")
    images = root / "raw" / "images" / "test"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, size_hw in enumerate([(120, 90), (60, 128), (96, 96), (70, 70)]):
        cv2.imwrite(str(images / f"{index}.png"), rng.integers(0, 255, (*size_hw, 3), dtype=np.uint8))
    info = ModelInfo(
        architecture="yolov8n-pose",
        class_names=("person",),
        category_ids=(1,),
        kpt_shape=(17, 3),
        skeleton=COCO_PERSON,
        stride_px=32,
        image_size_px=96,
    )
    save_weights(root / "best.safetensors", build_model("yolov8n-pose").state_dict(), info, {})
    write_json_atomic(root / "gate" / "decision.json", {"passed": True, "verdict": "Passed."})
    return root


def run_export(project: Path, settings: Export = SETTINGS, **paths: Path) -> None:
    defaults = {
        "raw": project / "raw",
        "weights": project / "best.safetensors",
        "decision": project / "gate",
        "artifacts": project / "export",
        "report": project / "report.json",
    }
    export.run(settings, **(defaults | paths))


@pytest.fixture(scope="module")
def exported(project):
    run_export(project)
    return project


def test_report_and_artifacts_agree(exported):
    report = read_json(exported / "report.json")
    [artifact] = report["artifacts"]
    path = Path(artifact["path"])
    assert path == exported / "export" / "model.onnx"
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx"]
    assert artifact["bytes"] == path.stat().st_size
    assert artifact["sha256"] == sha256_of_file(path)
    assert (artifact["format"], artifact["opset"], artifact["precision"]) == ("onnx", 18, "float32")
    assert [skipped["format"] for skipped in report["skipped"]] == ["tensorrt"]


def test_parity_covers_two_sizes_and_two_batch_sizes(exported):
    parity = read_json(exported / "report.json")["artifacts"][0]["parity"]
    # Three of the four images: 0 (120x90), 1 (60x128) and 2 (96x96), at 96 px and at 3/4 of it.
    at_full = {"1x3x96x96", "1x3x64x96", "2x3x96x96"}
    at_less = {"1x3x64x64", "1x3x32x64", "2x3x64x64"}
    assert at_full | at_less == set(parity["input_shapes"])
    assert parity["batches"] == 2 * (3 + 2)
    assert 0 < parity["max_error_px_all"] < 0.05


def test_the_artifact_names_the_weights_and_predicts(exported):
    metadata = {entry.key: entry.value for entry in onnx.load(exported / "export" / "model.onnx").metadata_props}
    assert metadata["weights_sha256"] == sha256_of_file(exported / "best.safetensors")
    results = Predictor.load(exported / "export" / "model.onnx", device="cpu", confidence=0).predict(
        [exported / "raw" / "images" / "test" / "1.png"]
    )
    assert results[0].keypoints_xyv.shape[1:] == (17, 3)


@pytest.mark.parametrize(
    "decision", [{"passed": False, "verdict": "oks_ap too low."}, {"verdict": "?"}, {"passed": "yes"}, []]
)
def test_what_the_gate_rejected_is_not_exported(project, tmp_path, decision):
    write_json_atomic(tmp_path / "gate" / "decision.json", decision)
    with pytest.raises(RejectedError, match="expected a model that passed the gate, got"):
        run_export(project, decision=tmp_path / "gate", artifacts=tmp_path / "export", report=tmp_path / "report.json")
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "report.json").exists()


def test_an_artifact_that_strays_from_pytorch_is_not_kept(exported, tmp_path, monkeypatch):
    def export_with_a_fault(model, info, path, **options):
        proto = onnx.load(exported / "export" / "model.onnx")
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("cv2.0.2.bias"))
        values = onnx.numpy_helper.to_array(bias) * np.linspace(0.5, 1.5, bias.dims[0], dtype=np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(proto, path)

    monkeypatch.setattr(export_artifacts, "export_onnx", export_with_a_fault)
    folder = tmp_path / "export"
    shutil.copytree(exported / "export", folder)
    before = sha256_of_file(folder / "model.onnx")
    with pytest.raises(PosefoundryError, match=r"model\.onnx: expected predictions within 0\.05 px of PyTorch's, got"):
        run_export(exported, artifacts=folder, report=tmp_path / "report.json")
    assert sha256_of_file(folder / "model.onnx") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_nothing_half_written_stays_when_the_exporter_fails(project, tmp_path, monkeypatch):
    def fail_midway(model, info, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(export_artifacts, "export_onnx", fail_midway)
    with pytest.raises(OSError, match="disk full"):
        run_export(project, artifacts=tmp_path / "export", report=tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_without_test_images_nothing_can_be_proven(project, tmp_path):
    (tmp_path / "raw" / "images" / "test").mkdir(parents=True)
    with pytest.raises(PosefoundryError, match="Expected test images"):
        run_export(project, raw=tmp_path / "raw", artifacts=tmp_path / "export")
