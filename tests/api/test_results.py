"""The results' forms against numbers worked out by hand."""

import json

import cv2
import numpy as np
import pytest
import torch

from posefoundry.api.results import Results
from posefoundry.errors import PosefoundryError
from posefoundry.inference.results import PoseResult
from posefoundry.skeleton import Skeleton

SKELETON = Skeleton.from_names(["head", "tail"], [(0, 1)])


def results(values=3, classes=(0, 1)):
    """Two animals in an image 50 high and 100 wide; boxes 10..30 x 10..20 and 50..90 x 0..40."""
    found = PoseResult(
        boxes_xyxy=np.array([[10, 10, 30, 20], [50, 0, 90, 40]], np.float32),
        scores=np.array([0.9, 0.5], np.float32),
        class_ids=np.array(classes),
        keypoints_xyv=np.array([[[10, 10, 0.8], [30, 20, 0.2]], [[50, 25, 1], [100, 50, 0]]], np.float32),
        image_size_hw=(50, 100),
        path=None,
        speed_ms={"preprocess": 1.0, "inference": 2.0, "postprocess": 3.0},
    )
    return Results.of(found, np.zeros((50, 100, 3), np.uint8), "zoo/pen.png", {0: "cat", 1: "dog"}, SKELETON, values)


def test_boxes():
    boxes = results().boxes
    assert boxes.xyxy.tolist() == [[10, 10, 30, 20], [50, 0, 90, 40]]
    assert boxes.xywh.tolist() == [[20, 15, 20, 10], [70, 20, 40, 40]]
    assert boxes.xyxyn == pytest.approx(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0, 0.9, 0.8]]))
    assert boxes.xywhn == pytest.approx(torch.tensor([[0.2, 0.3, 0.2, 0.2], [0.7, 0.4, 0.4, 0.8]]))
    assert boxes.conf.tolist() == pytest.approx([0.9, 0.5])
    assert boxes.cls.tolist() == [0, 1]
    assert boxes.data.shape == boxes.shape == (2, 6)
    assert [box.cls.item() for box in boxes] == [0, 1]


def test_keypoints():
    keypoints = results().keypoints
    assert keypoints.xy[1].tolist() == [[50, 25], [100, 50]]
    assert keypoints.xyn[1].tolist() == [[0.5, 0.5], [1, 1]]
    assert keypoints.conf.tolist() == [[pytest.approx(0.8), pytest.approx(0.2)], [1, 0]]
    assert keypoints.data.shape == (2, 2, 3)
    without = results(values=2).keypoints
    assert without.conf is None and without.data.shape == (2, 2, 2)


def test_length_parts_and_arrays():
    both = results()
    assert len(both) == 2
    assert [part.boxes.cls.item() for part in both] == [0, 1]
    assert both[1].keypoints.xy.shape == (1, 2, 2)
    assert both[both.boxes.conf > 0.6].verbose() == "1 cat"
    assert both.verbose() == "1 cat, 1 dog"
    assert results(classes=(1, 1)).verbose() == "2 dogs"
    arrays = both.cpu().numpy()
    for name in ("xyxy", "xywh", "xyxyn", "xywhn", "conf", "cls"):
        values = getattr(arrays.boxes, name)
        assert isinstance(values, np.ndarray)
        assert np.array_equal(values, getattr(both.boxes, name).numpy())
    assert np.array_equal(arrays.keypoints.xyn, both.keypoints.xyn.numpy())
    assert arrays.summary() == both.summary()
    assert np.array_equal(arrays.plot(), both.plot())


def test_summary_and_json():
    [cat, dog] = results().summary()
    assert cat["name"] == "cat" and cat["class"] == 0 and cat["confidence"] == pytest.approx(0.9)
    assert dog["box"] == {"x1": 50, "y1": 0, "x2": 90, "y2": 40}
    assert dog["keypoints"] == {"x": [50, 100], "y": [25, 50], "visible": [1, 0]}
    [cat, _] = results(values=2).summary(normalize=True, decimals=1)
    assert cat["box"] == {"x1": 0.1, "y1": 0.2, "x2": 0.3, "y2": 0.4}
    assert cat["keypoints"] == {"x": [0.1, 0.3], "y": [0.2, 0.4]}
    assert json.loads(results().to_json()) == results().summary()
    assert list(results().to_df().name) == ["cat", "dog"]
    assert results().to_csv().splitlines()[0] == "name,class,confidence,box,keypoints"


def test_plot_leaves_the_image_and_uncertain_keypoints_alone():
    both = results()
    drawn = both.plot()
    assert drawn.shape == both.orig_img.shape and drawn.any() and not both.orig_img.any()
    assert (both.plot(conf=0.1) != drawn).any()  # the cat's tail, of confidence 0.2
    assert np.array_equal(np.asarray(both.plot(pil=True))[..., ::-1], drawn)


def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = results()
    assert both.save() == "results_pen.jpg"
    assert both.save("drawn/pen.png") == "drawn/pen.png"
    assert np.array_equal(cv2.imread("drawn/pen.png"), both.plot())
    both.save_txt("labels/pen.txt", save_conf=True)
    first = (tmp_path / "labels" / "pen.txt").read_text().splitlines()[0]
    assert first == "0 0.2 0.3 0.2 0.2 0.1 0.2 0.8 0.3 0.4 0.2 0.9"
    both.save_crop("crops")
    assert cv2.imread("crops/dog/pen_1.jpg").shape == (40, 40, 3)
    with pytest.raises(PosefoundryError, match=r"pen\.docx: expected to write an image there"):
        both.save("pen.docx")


def test_show_without_a_viewer_says_where_the_picture_is(monkeypatch, capsys):
    monkeypatch.setattr("PIL.ImageShow.show", lambda image, title: False)
    results().show()
    path = capsys.readouterr().out.strip().rpartition(" ")[2]
    assert np.array_equal(cv2.imread(path), results().plot())
