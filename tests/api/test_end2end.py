"""`end2end`: which of YOLO26's two heads is used, and what the other families say to it."""

import numpy as np
import pytest
import torch

from posefoundry import YOLO
from posefoundry.errors import PosefoundryError

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
ALL = {"imgsz": 96, "conf": 0.0}  # every box that the head has to offer


def best_score(model, **arguments):
    return model(IMAGE, **ALL, max_det=1, **arguments)[0].boxes.conf[0].item()


def test_each_head_is_the_one_asked_for(workplace):
    model = YOLO("yolo26n-pose.pt")
    pixels = torch.from_numpy(IMAGE[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        heads = model.model.heads(pixels)
    for end2end, output in ((None, heads.one_to_one), (False, heads), (True, heads.one_to_one)):
        assert best_score(model, end2end=end2end) == pytest.approx(output.scores.sigmoid().max().item(), abs=1e-6)


def test_only_the_one_to_many_head_is_thinned_out(workplace):
    model = YOLO("yolo26n-pose.pt")
    found = {
        end2end: [len(model(IMAGE, **ALL, iou=iou, end2end=end2end)[0]) for iou in (0.01, 1.0)]
        for end2end in (True, False)
    }
    assert found[True][0] == found[True][1] == 8 * 12 + 4 * 6 + 2 * 3
    assert found[False][0] < found[False][1]


def test_val_states_the_head_in_the_passport(workplace):
    model = YOLO("yolo26n-pose.pt")
    heads = [model.val("coco8-pose.yaml", imgsz=64, end2end=e, verbose=False).passport["head"] for e in (None, False)]
    assert heads == ["one box a person", "several boxes a person, thinned out by NMS"]


def test_an_exported_model_knows_its_head(workplace):
    model = YOLO("yolo26n-pose.pt")
    exported = YOLO(model.export(format="onnx", end2end=False))
    assert exported.details.needs_nms and not exported.details.end2end
    assert best_score(exported) == pytest.approx(best_score(model, end2end=False), abs=1e-5)
    assert best_score(exported, end2end=False) == best_score(exported)
    with pytest.raises(PosefoundryError, match="exported with end2end=True, got one with end2end=False"):
        exported(IMAGE, end2end=True)


@pytest.mark.parametrize("name", ["yolov8n-pose", "yolo11n-pose"])
def test_a_family_with_one_head_says_so(workplace, name):
    model = YOLO(f"{name}.pt")
    for verb in (lambda **kw: model(IMAGE, **kw), lambda **kw: model.val("coco8-pose.yaml", **kw), model.export):
        with pytest.raises(PosefoundryError, match=f"got {name}, whose only head needs it"):
            verb(end2end=True)
    assert best_score(model, end2end=False) == best_score(model)


def test_a_fused_model_has_no_other_head(workplace):
    model = YOLO("yolo26n-pose.pt").fuse()
    before = best_score(model)
    with pytest.raises(PosefoundryError, match=r"got a fused one.*before fuse\(\)"):
        model(IMAGE, end2end=False)
    assert best_score(model) == before


def test_on_the_command_line(workplace, command_line):
    assert command_line("predict", "model=yolo26n-pose.pt", "end2end=False", "imgsz=64")[0] == 0
    assert command_line("val", "model=yolo26n-pose.pt", "data=coco8-pose.yaml", "end2end=false", "imgsz=64")[0] == 0
    status, _, err = command_line("predict", "model=yolov8n-pose.pt", "end2end=True")
    assert status == 2 and "expected a YOLO26 model" in err
    assert "one box per person, without NMS" in command_line("info", "yolo26n-pose.pt")[1]
