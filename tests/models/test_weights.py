"""Weights in and out: our safetensors, published checkpoints, and what is transferred between models."""

import json
import sys
import types

import pytest
import torch
from torch import nn

from posefoundry.errors import PosefoundryError
from posefoundry.models import ModelInfo, build_model, load_model, save_weights, transfer_weights
from posefoundry.skeleton import COCO_PERSON, Skeleton


def describe(name="yolov8n-pose", **changes):
    fields = {
        "architecture": name, "class_names": ("person",), "category_ids": (1,), "kpt_shape": (17, 3),
        "skeleton": COCO_PERSON, "stride_px": 32, "image_size_px": 192,
    }  # fmt: skip
    return ModelInfo(**(fields | changes))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("yolov8n-pose").eval()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "best.safetensors"
    save_weights(path, model.state_dict(), describe(), {"epoch": 3})
    return path


def test_weights_come_back_as_they_were(model, saved):
    loaded, info = load_model(saved)
    assert info == describe()
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert json.loads(saved.with_suffix(".json").read_text())["extra"] == {"epoch": 3}


def test_info_survives_json():
    skeleton = Skeleton.from_names(["left_tip", "right_tip"], [(0, 1)])
    info = describe(class_names=("cat", "dog"), category_ids=(17, 18), kpt_shape=(2, 2), skeleton=skeleton)
    assert ModelInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_a_state_in_bfloat16_loads_as_float32(model, tmp_path):
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_weights(tmp_path / "half.safetensors", state, describe(), {})
    loaded, _ = load_model(tmp_path / "half.safetensors")
    assert loaded.model[0].conv.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.model[0].conv.weight, model.model[0].conv.weight, atol=0.01, rtol=0.01)


def drop_sidecar(path):
    path.with_suffix(".json").unlink()


def spoil_sidecar(path):
    path.with_suffix(".json").write_text('{"architecture": "yolov8n-pose"}')


def replace_weights(path):
    save_weights(path.with_name("other.safetensors"), {"a": torch.zeros(1)}, describe(), {})
    path.with_name("other.safetensors").replace(path)


def cut_weights(path):
    content = path.read_bytes()[:1000]
    path.write_bytes(content)
    rewrite_sha(path)


def rewrite_sha(path):
    from posefoundry.files import sha256_of_file

    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": sha256_of_file(path)}))


def other_architecture(path):
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"architecture": "yolov8s-pose"}))


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove, "found no file"),
        (drop_sidecar, "best.json: expected a JSON file, found nothing"),
        (spoil_sidecar, "best.json: .*'class_names'"),
        (replace_weights, "their SHA-256 differ"),
        (cut_weights, "expected safetensors"),
        (other_architecture, r"expected the weights of yolov8s-pose, got model.0.conv.weight of shape \[16, 3, 3, 3\]"),
    ],
)
def test_damaged_weights_are_refused_with_the_reason(saved, spoil, words):
    spoil(saved)
    with pytest.raises(PosefoundryError, match=words):
        load_model(saved)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(PosefoundryError, match=r"safetensors or a .pt file, got 'model.h5'"):
        load_model(tmp_path / "model.h5")


def test_published_checkpoints_describe_themselves(parity_folder):
    for name in ("yolov8n-pose", "yolo11n-pose", "yolo26n-pose"):
        model, info = load_model(parity_folder / f"{name}.pt")
        assert (info.architecture, info.kpt_shape, info.stride_px, info.image_size_px) == (name, (17, 3), 32, 640)
        assert info.skeleton == COCO_PERSON and info.category_ids == (1,)
        assert model.model[0].conv.weight.dtype == torch.float32
        assert not any(module.startswith("ultralytics") for module in sys.modules)


@pytest.fixture
def foreign_class(monkeypatch):
    """A module class that pickles under the name of the families' own package, as long as the test runs."""
    module = types.ModuleType("ultralytics.nn.tasks")
    module.PoseModel = type(
        "PoseModel", (nn.Module,), {"__module__": "ultralytics.nn.tasks", "__qualname__": "PoseModel"}
    )
    monkeypatch.setitem(sys.modules, "ultralytics", types.ModuleType("ultralytics"))
    monkeypatch.setitem(sys.modules, "ultralytics.nn", types.ModuleType("ultralytics.nn"))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", module)
    return module.PoseModel


def as_tree(root, state_dict):
    """Hangs tensors into a tree of plain modules, so that only torch's and the foreign class are named."""
    for name, tensor in state_dict.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Sequential())
            module = module._modules[part]
        module.register_buffer(leaf, tensor.half() if tensor.is_floating_point() else tensor)
    return root


def test_a_module_tree_is_read_without_its_package(foreign_class, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = build_model("yolo11n-pose", n_classes=2, kpt_shape=(6, 2))
    root = as_tree(foreign_class(), model.state_dict())
    root.names, root.kpt_shape = {0: "cat", 1: "dog"}, [6, 2]
    torch.save({"epoch": 4, "model": None, "ema": root}, tmp_path / "best.pt")
    for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks"):
        monkeypatch.delitem(sys.modules, name)
    loaded, info = load_model(tmp_path / "best.pt")
    assert (info.architecture, info.class_names, info.kpt_shape) == ("yolo11n-pose", ("cat", "dog"), (6, 2))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_a_plain_state_dict_is_read_too(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    loaded, info = load_model(tmp_path / "plain.pt")
    assert (info.architecture, info.class_names) == ("yolov8n-pose", ("class_0",))
    assert torch.equal(loaded.model[0].conv.weight, model.model[0].conv.weight)


def test_tensors_of_no_known_model_are_refused(tmp_path):
    odd_head = {"model.0.cv3.0.bias": torch.tensor(1.0), "model.0.cv4.0.bias": torch.zeros(1)}
    torch.save({"fc.weight": torch.zeros(2, 2)} | odd_head, tmp_path / "other.pt")
    with pytest.raises(PosefoundryError, match=r"weights of one of yolov8n-pose, .* got other tensors"):
        load_model(tmp_path / "other.pt")


def test_transfer_between_equal_models_is_complete(model, saved):
    torch.manual_seed(1)
    other = build_model("yolov8n-pose")
    report = transfer_weights(other, saved)
    assert len(report.transferred) == len(model.state_dict())
    assert not (report.different or report.missing or report.unused)
    assert torch.equal(other.model[0].conv.weight, model.model[0].conv.weight)
    assert str(report) == f"{saved}: 397 of 397 tensors transferred."


def test_transfer_to_other_classes_and_keypoints_says_what_starts_fresh(model, saved):
    torch.manual_seed(1)
    other = build_model("yolov8n-pose", n_classes=3, kpt_shape=(4, 3))
    fresh = other.state_dict()["model.22.cv3.0.2.weight"].clone()
    report = transfer_weights(other, saved)
    assert report.different["model.22.cv3.0.2.weight"] == ((3, 64, 1, 1), (1, 64, 1, 1))
    assert set(report.different) >= {f"model.22.cv4.{level}.2.bias" for level in range(3)}
    assert all(name.startswith(("model.22.cv3", "model.22.cv4")) for name in report.different)
    assert torch.equal(other.state_dict()["model.22.cv3.0.2.weight"], fresh)
    assert torch.equal(other.model[21].cv1.conv.weight, model.model[21].cv1.conv.weight)
    assert "start fresh because their shape differs" in str(report)


def test_transfer_to_another_family_takes_what_fits(saved):
    report = transfer_weights(build_model("yolo11n-pose"), saved)
    assert "model.0.conv.weight" in report.transferred
    assert any(name.startswith("model.10.") for name in report.missing)
    assert "model.22.dfl.conv.weight" in report.unused


def test_transfer_of_nothing_is_an_error(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(PosefoundryError, match="expected weights that fit yolov8n-pose, got none"):
        transfer_weights(build_model("yolov8n-pose"), tmp_path / "other.pt")
