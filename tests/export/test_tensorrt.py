import sys
from types import SimpleNamespace

import pytest
import torch

from posefoundry.config import TensorRtExport
from posefoundry.errors import PosefoundryError
from posefoundry.export import tensorrt
from posefoundry.export.onnx import artifact_metadata
from posefoundry.files import read_json
from posefoundry.inference.backends import info_from_metadata, load_backend


def test_build_never_is_the_reason():
    assert tensorrt.reason_to_skip(TensorRtExport(build="never")) == "export.tensorrt.build is never"


def test_without_a_gpu_the_package_is_not_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it would raise
    assert tensorrt.reason_to_skip(TensorRtExport()) == "no NVIDIA GPU that PyTorch can use"
    monkeypatch.delitem(sys.modules, "tensorrt")
    tensorrt.reason_to_skip(TensorRtExport())
    assert "tensorrt" not in sys.modules


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def install(monkeypatch, folder, content):
    (folder / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


def test_a_missing_package_is_named_with_its_remedy(gpu, monkeypatch):
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    assert "install posefoundry[tensorrt]" in tensorrt.reason_to_skip(TensorRtExport())


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("raise ImportError('libnvinfer.so.11: cannot open')", "does not load: libnvinfer.so.11: cannot open"),
        ("__version__ = '8.6.1'", "TensorRT 8.6.1 is too old; 10 or later is needed"),
        ("", "does not load"),
    ],
)
def test_an_unusable_package_is_a_reason_too(gpu, monkeypatch, tmp_path, package, reason):
    install(monkeypatch, tmp_path, package)
    assert reason in tensorrt.reason_to_skip(TensorRtExport())
    sys.modules.pop("tensorrt", None)


@pytest.mark.parametrize("version", ["10.16.1", "11.4.1"])
def test_both_supported_versions_build(gpu, monkeypatch, tmp_path, version):
    install(monkeypatch, tmp_path, f"__version__ = {version!r}")
    assert tensorrt.reason_to_skip(TensorRtExport()) is None
    sys.modules.pop("tensorrt", None)


def test_the_profile_spans_what_letterboxing_can_produce(exported):
    shapes = tensorrt.profile_shapes(exported.info, max_batch_size=8)
    assert shapes.smallest == (1, 3, 32, 32)
    assert shapes.tuned == shapes.largest == (8, 3, 96, 96)


def test_metadata_beside_an_engine_gives_the_description_back(exported, tmp_path):
    metadata = artifact_metadata(exported.info, weights_sha256="cd" * 32)
    assert info_from_metadata(metadata, tmp_path / "model.engine") == exported.info
    assert metadata["weights_sha256"] == "cd" * 32


class FakeTensorRt(SimpleNamespace):
    """As much of the Python API of TensorRT 10 and 11 as a build uses, by NVIDIA's API reference; no GPU behind it."""

    def __init__(self, *, parses=True, plan=b"ftrt plan"):
        self.__version__ = "11.4.1"
        self.calls = calls = {"cleared": []}
        severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

        class ILogger:
            Severity = severity

        class Config:
            def clear_flag(self, flag):
                calls["cleared"].append(flag)

            def add_optimization_profile(self, profile):
                calls["profile"] = profile.shapes

            def create_timing_cache(self, content):
                return SimpleNamespace(content=content, serialize=lambda: b"timings")

            def set_timing_cache(self, cache, ignore_mismatch):
                calls.setdefault("timing_caches", []).append((cache.content, ignore_mismatch))
                self.cache = cache
                return cache.content != b"of another GPU"

            def get_timing_cache(self):
                return self.cache

        class Profile:
            def set_shape(self, name, smallest, tuned, largest):
                self.shapes = {name: (smallest, tuned, largest)}

        class Builder:
            def __init__(self, logger):
                self.logger = logger

            def create_network(self, flags):
                calls["network_flags"] = flags
                return "network"

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return Profile()

            def build_serialized_network(self, network, config):
                self.logger.log(severity.WARNING, "only a warning")
                if plan is None:
                    self.logger.log(severity.ERROR, "out of memory")
                return plan

        class OnnxParser:
            num_errors = 2

            def __init__(self, network, logger):
                assert network == "network"

            def parse(self, content):
                calls["onnx"] = content
                return parses

            def get_error(self, index):
                return f"fault {index}"

        super().__init__(
            ILogger=ILogger,
            Builder=Builder,
            OnnxParser=OnnxParser,
            BuilderFlag=SimpleNamespace(TF32="tf32"),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        )


SHAPES = tensorrt.ProfileShapes((1, 3, 32, 32), (2, 3, 96, 96), (2, 3, 96, 96))


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Builds from an ONNX file of four bytes into a folder of its own, with a TensorRT that is not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "engine").mkdir()

    def run(fake):
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        tensorrt.build_engine(tmp_path / "model.onnx", tmp_path / "engine" / "model.engine", SHAPES, {"a": "b"})

    return run


def test_a_build_asks_for_what_it_needs_and_keeps_the_timings(build, tmp_path):
    timings = tmp_path / "cache" / "posefoundry" / "tensorrt-11.4.1-NVIDIA-H100-PCIe.timings"
    first, second, third = FakeTensorRt(), FakeTensorRt(), FakeTensorRt()
    build(first)
    assert first.calls["onnx"] == b"onnx"
    assert first.calls["network_flags"] == 1 << 1
    assert first.calls["cleared"] == ["tf32"]
    assert first.calls["profile"] == {"images": (SHAPES.smallest, SHAPES.tuned, SHAPES.largest)}
    assert (tmp_path / "engine" / "model.engine").read_bytes() == b"ftrt plan"
    assert read_json(tmp_path / "engine" / "model.json") == {"a": "b"}
    assert timings.read_bytes() == b"timings"
    build(second)
    assert (first.calls["timing_caches"], second.calls["timing_caches"]) == ([(b"", False)], [(b"timings", False)])
    timings.write_bytes(b"of another GPU")
    build(third)
    assert third.calls["timing_caches"] == [(b"of another GPU", False), (b"", False)]


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (FakeTensorRt(parses=False), r"a graph that TensorRT 11\.4\.1 can read, got: fault 0; fault 1\."),
        (FakeTensorRt(plan=None), r"to build an engine for inputs up to \(2, 3, 96, 96\), got: out of memory\."),
    ],
)
def test_a_build_that_fails_says_why_and_writes_nothing(build, tmp_path, fake, message):
    with pytest.raises(PosefoundryError, match=message):
        build(fake)
    assert list((tmp_path / "engine").iterdir()) == []


@pytest.mark.gpu
def test_an_engine_is_built_and_equals_pytorch(export_model, tmp_path):
    pytest.importorskip("tensorrt", reason="needs the package tensorrt")
    half = export_model("yolov8n-pose", dtype=torch.float16)
    path = tmp_path / "model.engine"
    shapes = tensorrt.profile_shapes(half.info, max_batch_size=2)
    tensorrt.build_engine(half.path, path, shapes, artifact_metadata(half.info, weights_sha256="ab" * 32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.engine", "model.json"]
    backend = load_backend(path)
    assert backend.info == half.info
    for shape in ((1, 3, 32, 96), (2, 3, 96, 64)):
        images = torch.rand(shape)
        with torch.inference_mode():
            expected = half.model(images)
        torch.testing.assert_close(torch.from_numpy(backend.infer(images.numpy())), expected, rtol=0, atol=2.0)
