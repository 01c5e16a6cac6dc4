"""From images to results: order, grouping, coordinates, and the published accuracy on real images."""

import threading
import time
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.oks import OksEvaluator, to_coco_results
from posefoundry.files import read_json
from posefoundry.inference.backends import TorchBackend
from posefoundry.inference.images import read_image_bgr
from posefoundry.inference.predictor import BATCHES_AHEAD, MAX_WAITING_BATCHES, Predictor
from posefoundry.models import build_model, load_model, save_weights
from posefoundry.skeleton import COCO_SIGMAS


class FirstPixel:
    """A backend that finds one person: its box spans the non-grey part, its score is the mean colour."""

    device_name = "none"

    def __init__(self, info):
        self.info = info
        self.shapes = []

    def infer(self, batch):
        self.shapes.append(batch.shape)
        decoded = np.zeros((len(batch), 56, 1), np.float32)
        for image, out in zip(batch, decoded, strict=True):
            inside = np.abs(image - 114 / 255).max(axis=0) > 0.02
            ys, xs = np.nonzero(inside)
            x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
            out[:4, 0] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            out[4, 0] = image[:, inside].mean()
            out[5:, 0] = np.tile([x2, y2, 0.5], 17)
        return decoded


@pytest.fixture
def colours():
    """Plain images of distinct brightness and many sizes."""
    sizes = [(48, 64), (64, 48), (48, 64), (1, 1), (4, 200), (96, 128), (50, 50), (96, 128), (48, 64)]
    return [np.full((*size, 3), 140 + 10 * i, np.uint8) for i, size in enumerate(sizes)]


def test_results_come_in_the_order_of_the_images(info, colours):
    results = Predictor(FirstPixel(info), confidence=0.1).predict(colours, batch_size=2)
    for image, result in zip(colours, results, strict=True):
        assert result.image_size_hw == image.shape[:2]
        np.testing.assert_allclose(result.scores, [image[0, 0, 0] / 255], atol=1e-4)


def test_equal_shapes_share_batches(info, colours):
    backend = FirstPixel(info)
    Predictor(backend, confidence=0.1).predict(colours, batch_size=2)
    assert sum(shape[0] for shape in backend.shapes) == len(colours)
    assert max(shape[0] for shape in backend.shapes) == 2
    assert {shape[2:] for shape in backend.shapes} == {(64, 64), (32, 64)}
    assert len(backend.shapes) == 5  # eight of 64 x 64 in four batches, one of 32 x 64


class Slow(Sequence):
    """Images that take the longer to be read, the earlier they stand; counts how often each is asked for."""

    def __init__(self, images, *, ms_an_image=2):
        self.images, self.asked, self.ms_an_image = images, Counter(), ms_an_image

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked[index] += 1
        time.sleep(self.ms_an_image / 1000 * (len(self) - index))
        return self.images[index]


def test_images_read_ahead_keep_their_order(info, colours):
    images = Slow(colours)
    results = Predictor(FirstPixel(info), confidence=0.1).predict(images, batch_size=2)
    assert [result.image_size_hw for result in results] == [image.shape[:2] for image in colours]
    assert images.asked == dict.fromkeys(range(len(colours)), 1)


def test_images_are_read_ahead_of_the_model_but_not_far(info, colours):
    images = Slow(colours * 20, ms_an_image=0)
    asked_so_far = []

    class Working(FirstPixel):
        def infer(self, batch):
            asked_so_far.append(len(images.asked))
            return super().infer(batch)

    Predictor(Working(info), confidence=0.1).predict(images, batch_size=2)
    assert asked_so_far[0] >= 4  # the next batch lies ready
    most_ahead = 2 * (BATCHES_AHEAD + MAX_WAITING_BATCHES + 2) + 1
    assert max(asked - 2 * batch for batch, asked in enumerate(asked_so_far)) <= most_ahead


def test_no_thread_outlives_a_fault(info, colours, tmp_path):
    missing = tmp_path / "missing.jpg"
    before = set(threading.enumerate())
    with pytest.raises(PosefoundryError, match=r"missing\.jpg"):
        Predictor(FirstPixel(info), confidence=0.1).predict([*colours, missing, *colours], batch_size=2)
    assert not set(threading.enumerate()) - before


def test_coordinates_are_those_of_the_source_image(info, colours):
    for image, result in zip(colours, Predictor(FirstPixel(info), confidence=0.1).predict(colours), strict=True):
        height, width = image.shape[:2]
        np.testing.assert_allclose(result.boxes_xyxy, [[0, 0, width, height]], atol=1e-3 * max(height, width))
        np.testing.assert_allclose(result.keypoints_xyv[0, 0], (width, height, 0.5), atol=1e-3 * max(height, width))


def test_many_shapes_do_not_pile_up(info):
    backend = FirstPixel(info)
    predictor = Predictor(backend, image_size_px=640, confidence=0.1)
    images = [np.full((20 + 30 * i, 640, 3), 200, np.uint8) for i in range(20)]
    done = []
    predictor.predict(images, batch_size=2, progress=lambda n, total: done.append((n, total)))
    assert done[-1] == (20, 20)
    assert max(shape[0] for shape in backend.shapes) <= 2


def test_a_batch_of_mixed_shapes_holds_them_all(info, colours):
    backend = FirstPixel(info)
    predictor = Predictor(backend, confidence=0.1)
    batch, letterboxes = predictor.preprocess(colours)
    assert batch.shape == (len(colours), 3, 64, 64) and batch.dtype == np.float32
    for image, result in zip(colours, predictor.postprocess(predictor.infer(batch), letterboxes), strict=True):
        np.testing.assert_allclose(result.scores, [image[0, 0, 0] / 255], atol=1e-4)


def test_pixels_reach_the_model_as_rgb(info):
    batch, _ = Predictor(FirstPixel(info)).preprocess([np.full((64, 64, 3), (255, 51, 0), np.uint8)])
    np.testing.assert_allclose(batch[0, :, 5, 5], (0, 0.2, 1), atol=1e-6)


def test_paths_and_arrays_give_the_same(model, info, images, tmp_path):
    predictor = Predictor(TorchBackend(model, info, device="cpu"), confidence=0)
    paths = []
    for index, image in enumerate(images):
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), image)
    from_paths = predictor.predict(paths)
    for path, a, b in zip(paths, from_paths, predictor.predict(images), strict=True):
        assert a.path == path and b.path is None
        np.testing.assert_array_equal(a.keypoints_xyv, b.keypoints_xyv)
        assert len(a) > 0 and set(a.speed_ms) == {"preprocess", "inference", "postprocess"}
        assert (a.boxes_xyxy >= 0).all() and (a.boxes_xyxy[:, [2, 3]] <= np.array(a.image_size_hw)[::-1]).all()


def test_batches_do_not_change_results(model, info, images):
    predictor = Predictor(TorchBackend(model, info, device="cpu"), confidence=0)
    for together, alone in zip(predictor.predict(images), predictor.predict(images, batch_size=1), strict=True):
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-6)


def test_models_without_nms_and_without_visibility(make_info, images):
    torch.manual_seed(0)
    model = build_model("yolo26n-pose", n_classes=2, kpt_shape=(4, 2)).eval()
    predictor = Predictor(TorchBackend(model, make_info(model), device="cpu"), confidence=0, max_detections=7)
    for result in predictor.predict(images):
        assert len(result) == 7 and result.keypoints_xyv.shape == (7, 4, 3)
        assert (result.keypoints_xyv[..., 2] == 1).all()


def test_the_one_to_many_head_is_thinned_out(make_info, images, tmp_path):
    torch.manual_seed(0)
    model = build_model("yolo26n-pose").eval()
    save_weights(tmp_path / "best.safetensors", model.state_dict(), make_info(model), {})
    found = {}
    for nms_iou in (0.01, 1.0):
        options = {"end2end": False, "confidence": 0, "nms_iou": nms_iou}
        found[nms_iou] = len(Predictor.load(tmp_path / "best.safetensors", device="cpu", **options).predict(images)[5])
    assert found[0.01] < found[1.0]


def test_unreadable_images_are_named(model, info, tmp_path):
    predictor = Predictor(TorchBackend(model, info, device="cpu"))
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(PosefoundryError, match=r"text\.jpg: expected an image"):
        predictor.predict([tmp_path / "text.jpg"])
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), "a.jpg"):
        with pytest.raises(PosefoundryError, match=r"Image 1: expected a path or a BGR array"):
            predictor.predict([np.zeros((4, 4, 3), np.uint8), wrong])
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    "settings", [{"confidence": 1.5}, {"nms_iou": 0}, {"max_detections": 0}, {"image_size_px": -1}]
)
def test_impossible_settings_are_refused(model, info, settings):
    with pytest.raises(PosefoundryError, match=next(iter(settings))):
        Predictor(TorchBackend(model, info, device="cpu"), **settings)


def test_real_images_give_the_published_accuracy(coco_real, published_weights):
    """On the first 24 val images; the expected figures are those of this very code when, on all 192 images, it equalled
    the family's own predictor in each of 16 figures and in the number of detections (AP 0.4739, box AP 0.3995, 8,231).
    """
    annotations = read_json(coco_real / "annotations" / "person_keypoints_val2017.json")
    images = sorted(annotations["images"], key=lambda image: image["id"])[:24]
    ids = {image["id"] for image in images}
    subset = annotations | {
        "images": images,
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in ids],
    }
    predictor = Predictor.load(published_weights, device="cpu", confidence=0.001)
    results = predictor.predict([coco_real / "val2017" / image["file_name"] for image in images], batch_size=8)
    detections = [
        entry
        for image, result in zip(images, results, strict=True)
        for entry in to_coco_results(result, image["id"], (1,))
    ]
    metrics = OksEvaluator(subset, sigmas=COCO_SIGMAS).evaluate(detections)
    assert metrics["oks_ap"] == pytest.approx(0.5237, abs=0.003)
    assert metrics["box_ap"] == pytest.approx(0.5103, abs=0.003)
    assert len(detections) == pytest.approx(907, abs=5)


def test_a_greyscale_photograph_is_an_image_too(coco_real, published_weights):
    model, info = load_model(published_weights)
    predictor = Predictor(TorchBackend(model, info, device="cpu"))
    grey = coco_real / "train2017" / "000000000086.jpg"
    (result,) = predictor.predict([grey])
    assert result.image_size_hw == read_image_bgr(grey).shape[:2]
