"""The three families against their published names, shapes, sizes and outputs."""

import json
import math

import numpy as np
import pytest
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.models import MODEL_NAMES, build_model, load_model, needs_nms

# Millions of parameters after fusing, as the families' authors publish them: (model, classes) -> M.
PUBLISHED_FUSED_MILLIONS = {
    ("yolov8n-pose", 1): 3.290, ("yolov8s-pose", 1): 11.616, ("yolov8x-pose-p6", 1): 99.141,
    ("yolo11n-pose", 80): 2.900, ("yolo11m-pose", 80): 20.950, ("yolo11x-pose", 80): 58.843,
    ("yolo26n-pose", 80): 2.960, ("yolo26m-pose", 80): 21.599, ("yolo26x-pose", 80): 57.649,
}  # fmt: skip
NANO_MODELS = ("yolov8n-pose", "yolo11n-pose", "yolo26n-pose")


def on_meta(name, **options):
    with torch.device("meta"):
        return build_model(name, **options)


def with_lively_statistics(model, seed=0):
    """BatchNorms as after training: neither mean 0 nor variance 1, so that folding them wrongly shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_names_shapes_and_parameter_count_are_the_published_ones(name, parity_folder):
    published = json.loads((parity_folder / "keys" / f"{name}.json").read_text())
    model = on_meta(name)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == published["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == published["parameters"]


def test_every_published_model_can_be_built(parity_folder):
    assert sorted(path.stem for path in (parity_folder / "keys").glob("*.json")) == sorted(MODEL_NAMES)


@pytest.mark.parametrize(("name", "n_classes"), PUBLISHED_FUSED_MILLIONS)
def test_fused_size_is_the_published_one(name, n_classes):
    model = on_meta(name, n_classes=n_classes).fuse()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(millions, 3) == PUBLISHED_FUSED_MILLIONS[name, n_classes]


@pytest.fixture(scope="module", params=NANO_MODELS)
def reference(request, parity_folder):
    """A model with the published checkpoint's weights, and what the published model answers."""
    model, _ = load_model(parity_folder / f"{request.param}.pt")
    with np.load(parity_folder / f"{request.param}.npz") as arrays:
        return model, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def assert_raw_parity(output, expected, prefix, *, with_sigmas=False):
    torch.testing.assert_close(output.boxes, expected[f"{prefix}.boxes"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.scores, expected[f"{prefix}.scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.keypoints, expected[f"{prefix}.kpts"], atol=1e-4, rtol=0)
    if with_sigmas:
        torch.testing.assert_close(output.keypoint_sigmas, expected[f"{prefix}.kpts_sigma"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_raw_outputs_are_the_published_ones(reference):
    model, expected = reference
    for images, prefix in ((expected["x"], "eval.1"), (expected["batch.img"], "train")):
        output = model.heads(images)
        if needs_nms(model.name):
            assert_raw_parity(output, expected, prefix)
            assert output.one_to_one is None and output.keypoint_sigmas is None
        else:
            with_sigmas = prefix == "train"
            assert_raw_parity(output, expected, f"{prefix}.one2many", with_sigmas=with_sigmas)
            assert_raw_parity(output.one_to_one, expected, f"{prefix}.one2one", with_sigmas=with_sigmas)


@torch.no_grad()
def test_decoding_is_the_published_one(reference):
    model, expected = reference
    output = model.heads(expected["x"])
    # Of yolo26 the reference holds the decoded one-to-many head, as the raw tensors beside it tell.
    output.one_to_one = None
    torch.testing.assert_close(model.decode(output), expected["eval.0"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_evaluation_mode_decodes_the_head_that_inference_uses(reference):
    model, expected = reference
    output = model.heads(expected["x"])
    torch.testing.assert_close(model(expected["x"]), model.decode(output.one_to_one or output), atol=1e-5, rtol=0)
    if not needs_nms(model.name):
        scores = expected["eval.1.one2one.scores"].sigmoid()
        torch.testing.assert_close(model(expected["x"])[:, 4:5], scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NANO_MODELS)
@torch.no_grad()
def test_fusing_changes_nothing_but_the_form(name):
    torch.manual_seed(0)
    model = with_lively_statistics(build_model(name)).eval()
    images = torch.rand(2, 3, 64, 96)
    expected = model(images)
    fused = model.fuse()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(images), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(fused.fuse()(images), expected, atol=1e-3, rtol=1e-4)  # a second time does no harm


@pytest.mark.parametrize("name", NANO_MODELS)
def test_initial_biases_expect_few_objects_on_many_cells(name):
    head = build_model(name, n_classes=4).head
    prefixes = ("",) if needs_nms(name) else ("", "one2one_")
    for prefix in prefixes:
        for level, stride in enumerate((8, 16, 32)):
            assert (getattr(head, f"{prefix}cv2")[level][-1].bias == 2.0).all()
            prior = getattr(head, f"{prefix}cv3")[level][-1].bias
            torch.testing.assert_close(prior, torch.full((4,), math.log(5 / 4 / (640 / stride) ** 2)))


@pytest.mark.parametrize("name", ["yolov8n-pose", "yolo26n-pose"])
@pytest.mark.parametrize(("n_classes", "kpt_shape"), [(3, (17, 3)), (1, (4, 2)), (2, (5, 3))])
def test_output_shapes_follow_classes_and_keypoints(name, n_classes, kpt_shape):
    model = build_model(name, n_classes=n_classes, kpt_shape=kpt_shape)
    anchors = 8 * 12 + 4 * 6 + 2 * 3
    output = model.train()(torch.rand(2, 3, 64, 96))
    assert output.scores.shape == (2, n_classes, anchors)
    assert output.keypoints.shape == (2, math.prod(kpt_shape), anchors)
    assert output.anchor_points_xy.shape == (anchors, 2) and output.anchor_strides_px.shape == (anchors, 1)
    assert output.anchor_points_xy[1].tolist() == [1.5, 0.5]  # row-major, centres of cells
    assert output.anchor_strides_px[[0, 96, -1], 0].tolist() == [8, 16, 32]
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 64, 96)).shape == (1, 4 + n_classes + math.prod(kpt_shape), anchors)


def test_the_one_to_one_head_leaves_the_backbone_alone():
    model = build_model("yolo26n-pose").train()
    output = model(torch.rand(1, 3, 64, 64)).one_to_one
    (output.boxes.sum() + output.scores.sum() + output.keypoints.sum() + output.keypoint_sigmas.sum()).backward()
    assert model.model[0].conv.weight.grad is None
    assert model.head.one2one_cv2[0][0].conv.weight.grad is not None
    assert model.head.cv2[0][0].conv.weight.grad is None


def test_outputs_are_float32_where_the_rest_is_bfloat16():
    model = build_model("yolov8n-pose").train()
    images = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert {output.boxes.dtype, output.scores.dtype, output.keypoints.dtype} == {torch.float32}
    reduced = model.fuse().to_reduced_precision(torch.bfloat16)
    assert reduced.model[0].conv.weight.dtype == torch.bfloat16
    assert reduced.head.cv2[0][0].conv.weight.dtype == torch.bfloat16
    assert reduced.head.cv2[0][2].weight.dtype == torch.float32
    with torch.no_grad():
        assert reduced(images.bfloat16()).dtype == torch.float32


@torch.no_grad()
def test_the_flow_is_a_density():
    torch.manual_seed(0)
    flow = build_model("yolo26n-pose").head.flow_model
    for parameter in flow.parameters():
        parameter.mul_(1.5)  # far from the identity
    steps = torch.arange(-15, 15, 0.1)
    grid = torch.cartesian_prod(steps, steps)
    density = flow.log_prob(grid).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=0.01)
    normal = torch.distributions.MultivariateNormal(flow.loc, flow.cov).log_prob(grid).exp()
    assert (density - normal).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "yolov9n-pose"}, "yolov8n-pose, .* got 'yolov9n-pose'"),
        ({"name": "yolov8n-pose", "n_classes": 0}, "n_classes must be at least 1, got 0"),
        ({"name": "yolov8n-pose", "kpt_shape": (17, 4)}, r"kpt_shape must be .* got \(17, 4\)"),
    ],
)
def test_impossible_models_are_refused(options, words):
    with pytest.raises(PosefoundryError, match=words):
        build_model(**options)
