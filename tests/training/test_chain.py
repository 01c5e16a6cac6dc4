"""Training images as the loader gets them show each keypoint where its label says: by each augmentation, and by all."""

from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from posefoundry.config import Train
from posefoundry.datasets.yolo import format_label_line, read_dataset_yaml
from posefoundry.training.augment import BORDER_VALUE
from posefoundry.training.batch import Sample
from posefoundry.training.data import TrainingImages

N_IMAGES = 12
SOURCE_WH = (200, 160)
SIDES_PX = (128, 160)  # the training size, and that of the second epoch's batches
DOT_RADIUS_PX = 4  # in the files; at the training size 2.6
FLIP = [0, 2, 1]
PERSON_XY = np.array([[0, -24], [-22, 10], [24, 16]])  # around its middle
# A dot is brighter than the grey in one channel, the red, green or blue one, and the same in the others; so dots that
# shine through each other stay apart.
CHANNELS = (0, 1, 2)
AFFINE = {"rotate_degrees": 180.0, "translate_fraction": 0.2, "scale_fraction": 0.3, "shear_degrees": 15.0}
COLOUR = {"hsv_hue": 0.2, "hsv_saturation": 0.6, "hsv_value": 0.4}
CHAINS: dict[str, dict[str, float]] = {
    "none": {},
    "flip": {"flip_probability": 1},
    "vertical flip": {"flip_vertical_probability": 1},
    "affine": AFFINE,
    "perspective": {"perspective_fraction": 0.3},
    "colour": COLOUR,
    "blur": {"blur_probability": 1},
    "cutout": {"cutout_probability": 1},
    "mosaic": {"mosaic_probability": 1},
    "mixup": {"mixup_probability": 1},
    "copy-paste": {"copy_paste_probability": 1},
    "all": {
        **AFFINE,
        **COLOUR,
        "flip_probability": 1,
        "flip_vertical_probability": 1,
        "perspective_fraction": 0.1,
        "blur_probability": 1,
        "cutout_probability": 1,
        "mosaic_probability": 1,
        "mixup_probability": 1,
        "copy_paste_probability": 1,
    },
}


@pytest.fixture(scope="module")
def dotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset.yaml of images with one person each, whose three visible keypoints are painted as dots on grey."""
    root = tmp_path_factory.mktemp("dotted")
    rng = np.random.default_rng(0)
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    for number in range(N_IMAGES):
        image = np.full((*SOURCE_WH[::-1], 3), BORDER_VALUE, np.uint8)
        points = PERSON_XY + rng.uniform((40, 40), np.array(SOURCE_WH) - 40)
        for (x, y), channel in zip(points, CHANNELS, strict=True):
            colour = [BORDER_VALUE] * 3
            colour[2 - channel] = 255
            # A keypoint counts from the pixel's corner, OpenCV draws about the pixel's centre.
            centre = (round((x - 0.5) * 16), round((y - 0.5) * 16))
            cv2.circle(image, centre, DOT_RADIUS_PX * 16, colour, -1, cv2.LINE_AA, shift=4)
        low, high = points.min(0) - 6, points.max(0) + 6
        box = np.concatenate([(low + high) / 2, high - low]) / (*SOURCE_WH, *SOURCE_WH)
        cv2.imwrite(str(root / f"images/train/{number}.png"), image)
        line = format_label_line(0, box, np.column_stack([points / SOURCE_WH, [2, 2, 2]]))
        (root / f"labels/train/{number}.txt").write_text(line + "\n")
    content = {"path": ".", "train": "images/train", "val": "images/train", "names": ["person"], "kpt_shape": [3, 3]}
    (root / "dataset.yaml").write_text(yaml.safe_dump(content | {"flip_idx": FLIP}))
    return root / "dataset.yaml"


def images_of(dotted: Path, settings: Train, changes: dict[str, float]) -> TrainingImages:
    augment = settings.augment.model_copy(update=changes)
    return TrainingImages(
        read_dataset_yaml(dotted), settings.model_copy(update={"augment": augment, "image_size_px": SIDES_PX[0]})
    )


def lies_on_a_dot(image_rgb: np.ndarray, row: int, column: int, channel: int) -> bool:
    """Tells whether a pixel is of a dot: not much darker than the brightest one near, as a blurred dot's halo is."""
    light = image_rgb[..., channel].astype(float) - np.median(image_rgb[..., channel])
    around = light[max(row - 6, 0) : row + 7, max(column - 6, 0) : column + 7]
    return bool(light[row, column] > max(5, 0.3 * around.max()))


def is_cut(sample: Sample, uncut: Sample, row: int, column: int) -> bool:
    return bool((sample.image_rgb[row, column] != uncut.image_rgb[row, column]).any())


@pytest.mark.parametrize("chain", CHAINS)
def test_a_keypoint_lies_on_its_dot_and_is_hidden_where_that_is_covered(
    dotted: Path, settings: Train, chain: str
) -> None:
    changes = CHAINS[chain]
    images = images_of(dotted, settings, changes)
    # What covers may be as bright as a dot; so dots are looked for in the same pictures without.
    uncut_images = images_of(dotted, settings, changes | {"cutout_probability": 0})
    # A mirror makes left keypoints right ones, which keep their colour; two mirrors do so twice.
    mirrored = changes.get("flip_probability", 0) != changes.get("flip_vertical_probability", 0)
    channels = [CHANNELS[source] for source in FLIP] if mirrored else CHANNELS
    n_visible = n_cut = 0
    for (epoch, side_px), number in product(enumerate(SIDES_PX), range(N_IMAGES)):
        sample, uncut = images[epoch, number, side_px], uncut_images[epoch, number, side_px]
        assert sample.image_rgb.shape == (side_px, side_px, 3)
        for box, person in zip(sample.boxes_xyxy, sample.keypoints_xyv, strict=True):
            for (x, y, v), channel in zip(person, channels, strict=True):
                if v == 0:
                    continue
                where = f"epoch {epoch}, image {number}, channel {channel}: xyv {x:.1f}, {y:.1f}, {v:.0f}"
                assert 0 <= x <= side_px and 0 <= y <= side_px, where
                assert box[0] <= x <= box[2] and box[1] <= y <= box[3], where
                row, column = min(int(y), side_px - 1), min(int(x), side_px - 1)
                cut = is_cut(sample, uncut, row, column)
                if v == 2:
                    on_dot = lies_on_a_dot(uncut.image_rgb, row, column, channel)
                    assert on_dot and not cut, where
                else:
                    assert cut or "copy_paste_probability" in changes, where  # a pasted person hides keypoints too
                n_visible += int(v == 2)
                n_cut += int(cut)
    assert n_visible > 1.5 * N_IMAGES * len(SIDES_PX)
    assert (n_cut > 0) == ("cutout_probability" in changes)
