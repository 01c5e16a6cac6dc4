import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from posefoundry.config import Benchmark
from posefoundry.errors import PosefoundryError
from posefoundry.export.onnx import artifact_metadata
from posefoundry.files import read_json
from posefoundry.inference.latency import STAGES, Latency, measure_latency
from posefoundry.models import ModelInfo, build_model, save_weights
from posefoundry.skeleton import COCO_PERSON
from posefoundry.stages import benchmark

SETTINGS = Benchmark(batch_sizes=[1, 3], threads=1, warmup_runs=1, timed_runs=7)
INFO = ModelInfo(
    architecture="yolov8n-pose",
    class_names=("person",),
    category_ids=(1,),
    kpt_shape=(17, 3),
    skeleton=COCO_PERSON,
    stride_px=32,
    image_size_px=64,
)


def write_tiny_onnx(path: Path) -> None:
    """Writes a described model that answers every image with two anchors of zeros."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axes"], ["column"]),
        helper.make_node("Mul", ["column", "zeros"], ["predictions"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("zeros", TensorProto.FLOAT, [1, 56, 2], [0.0] * 112),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    predictions = helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["batch", 56, 2])
    graph = helper.make_graph(nodes, "tiny", [images], [predictions], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(proto, artifact_metadata(INFO, weights_sha256="ab" * 32))
    onnx.save(proto, path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two square test images and one of another shape, weights, and an ONNX artifact."""
    root = tmp_path_factory.mktemp("project")
    images = root / "raw" / "images" / "test"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, size_hw in enumerate([(30, 64), (64, 64), (50, 50)]):
        cv2.imwrite(str(images / f"{index}.png"), rng.integers(0, 255, (*size_hw, 3), dtype=np.uint8))
    torch.manual_seed(0)
    save_weights(root / "best.safetensors", build_model("yolov8n-pose").state_dict(), INFO, {})
    (root / "export").mkdir()
    write_tiny_onnx(root / "export" / "model.onnx")
    return root


def run_benchmark(project: Path, **paths: Path) -> None:
    defaults = {
        "raw": project / "raw",
        "weights": project / "best.safetensors",
        "artifacts": project / "export",
        "report": project / "report.json",
        "table": project / "latency.csv",
    }
    benchmark.run(SETTINGS, **(defaults | paths))


@pytest.fixture(scope="module")
def measured(project):
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "uses_bf16", lambda precision, device: True)
        run_benchmark(project)
    torch.set_num_threads(threads)
    return project


def test_the_report_is_complete(measured):
    report = read_json(measured / "report.json")
    assert set(report["runtimes"]) == {"pytorch-float32", "pytorch-bfloat16", "onnxruntime"}
    assert report["skipped"] == []
    assert report["architecture"] == "yolov8n-pose"
    assert (report["threads"], report["timed_runs"], report["warmup_runs"]) == (1, 7, 1)
    assert report["input_size_hw"] == [64, 64]  # two of the three images
    assert report["images"] == 2
    assert report["cpu"]
    assert {"python", "torch", "onnxruntime"} <= set(report["software"])
    for runtime in report["runtimes"].values():
        assert runtime["device"]
        for batch_size in (1, 3):
            figures = runtime[f"batch_{batch_size}"]
            for stage in STAGES:
                times = figures[f"{stage}_ms"]
                assert 0 < times["p50"] <= times["p95"] <= times["p99"]
                assert times["mean"] > 0
            assert figures["images_per_s"] == pytest.approx(1000 * batch_size / figures["end_to_end_ms"]["mean"])
    assert report["runtimes"]["pytorch-float32"]["batch_1"]["times_pytorch"] == {"inference": 1, "end_to_end": 1}


def test_the_table_has_one_row_a_runtime_and_batch_size(measured):
    with (measured / "latency.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    runtimes = ("pytorch-float32", "pytorch-bfloat16", "onnxruntime")
    assert [(row["runtime"], row["batch_size"]) for row in rows] == [(r, b) for b in ("1", "3") for r in runtimes]
    report = read_json(measured / "report.json")
    for row in rows:
        expected = report["runtimes"][row["runtime"]][f"batch_{row['batch_size']}"]
        assert float(row["inference_p95_ms"]) == pytest.approx(expected["inference_ms"]["p95"], abs=1e-4)
        assert float(row["images_per_s"]) == pytest.approx(expected["images_per_s"], abs=0.01)
        assert all(row.values())


def test_an_artifact_that_cannot_run_here_is_skipped_with_its_reason(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "uses_bf16", lambda precision, device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shutil.copytree(project / "export", tmp_path / "export")
    (tmp_path / "export" / "model.engine").write_bytes(b"ftrt, built elsewhere")
    (tmp_path / "export" / "model.json").write_text("{}")
    run_benchmark(
        project, artifacts=tmp_path / "export", report=tmp_path / "report.json", table=tmp_path / "latency.csv"
    )
    report = read_json(tmp_path / "report.json")
    assert set(report["runtimes"]) == {"pytorch-float32", "onnxruntime"}
    [skipped] = report["skipped"]
    assert skipped["artifact"] == "model.engine"
    assert "NVIDIA GPU" in skipped["reason"]
    assert "model.engine: skipped" in capsys.readouterr().out


def test_without_test_images_nothing_is_written(project, tmp_path):
    (tmp_path / "raw" / "images" / "test").mkdir(parents=True)
    with pytest.raises(PosefoundryError, match="expected test images to measure on, found none"):
        run_benchmark(project, raw=tmp_path / "raw", report=tmp_path / "report.json", table=tmp_path / "latency.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


class Recorder:
    """A predictor that only notes what it was given."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def preprocess(self, images):
        self.log.append((self.name, images))
        return images, []

    def infer(self, batch):
        return batch

    def postprocess(self, decoded, letterboxes):
        return []


def test_runtimes_take_turns_on_the_same_batches():
    log = []
    predictors = {name: Recorder(name, log) for name in "ab"}
    latencies = measure_latency(predictors, ["x", "y", "z"], warmup_runs=1, timed_runs=7)
    turns = "".join(name for name, _ in log)
    # One warm-up each; a turn of one untimed and five timed runs; a turn of one and two, begun by the other.
    assert turns == "ab" + "a" * 6 + "b" * 6 + "b" * 3 + "a" * 3
    batches = {name: [batch for who, batch in log if who == name] for name in "ab"}
    assert batches["a"] == batches["b"] == [*"x", *"xxyzxy", *"zzx"]
    assert all(latency.milliseconds["inference"].shape == (7,) for latency in latencies.values())


def test_summary_and_ratio_by_hand():
    slow = Latency({"inference": np.array([10.0, 20.0, 30.0, 40.0, 100.0])})
    fast = Latency({"inference": np.array([5.0, 5.0, 10.0, 10.0, 100.0])})
    assert slow.summary("inference") == pytest.approx({"mean": 40, "p50": 30, "p95": 88, "p99": 97.6})
    assert fast.speed_against(slow, "inference") == 3.0  # of 2, 4, 3, 4, 1
