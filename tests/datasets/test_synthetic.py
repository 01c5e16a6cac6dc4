"""Synthetic people: same bytes for the same seed, true visibility, left and right to be told by the eye."""

import cv2
import numpy as np
import pytest

from posefoundry.config import SyntheticSource
from posefoundry.datasets.coco import set_faults_aside
from posefoundry.datasets.sources import draw_synthetic
from posefoundry.datasets.synthetic import draw_image
from posefoundry.datasets.synthetic.figure import sample_figure
from posefoundry.datasets.synthetic.outfit import sample_outfit
from posefoundry.datasets.synthetic.painter import paint_person
from posefoundry.datasets.synthetic.scene import annotate
from posefoundry.skeleton import COCO_KEYPOINT_NAMES

SIZE_PX, N_IMAGES = 160, 220
FACE = [COCO_KEYPOINT_NAMES.index(name) for name in ("nose", "left_eye", "right_eye")]


@pytest.fixture(scope="module")
def drawn():
    return [draw_image(3, "train", index, size_px=SIZE_PX, max_persons=4) for index in range(N_IMAGES)]


@pytest.fixture(scope="module")
def persons(drawn):
    return [(image, a) for image in drawn for a in image.annotations if not a["iscrowd"]]


def decode(image):
    return cv2.imdecode(np.frombuffer(image.jpeg, np.uint8), cv2.IMREAD_COLOR)


def xyv(annotation):
    return np.array(annotation["keypoints"], float).reshape(-1, 3)


def no_progress(items, title, total):
    return items


def draw_folder(folder, *, processes=1, **changes):
    settings = SyntheticSource(**{"image_size_px": 96, "train_images": 20, "val_images": 3, "test_images": 3} | changes)
    folder.mkdir()
    drawn = draw_synthetic(settings, seed=5, folder=folder, progress=no_progress, processes=processes)
    images = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}
    return images, drawn.splits


def test_one_process_and_two_draw_the_same_bytes(tmp_path):
    assert draw_folder(tmp_path / "one") == draw_folder(tmp_path / "two", processes=2)


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few, few_splits = draw_folder(tmp_path / "few", train_images=4)
    many, many_splits = draw_folder(tmp_path / "many")
    assert few.items() <= many.items()
    assert few_splits["train"].images == many_splits["train"].images[:4]
    n = len(few_splits["train"].annotations)
    assert few_splits["train"].annotations == many_splits["train"].annotations[:n]


def test_seeds_splits_and_numbers_give_different_images():
    variants = [(3, "train", 0), (4, "train", 0), (3, "val", 0), (3, "test", 0), (3, "train", 1)]
    assert len({draw_image(*variant, size_px=64, max_persons=2).jpeg for variant in variants}) == len(variants)


def test_ids_and_names_are_unique_over_all_splits(tmp_path):
    _, splits = draw_folder(tmp_path / "all")
    images = [image for content in splits.values() for image in content.images]
    annotations = [a["id"] for content in splits.values() for a in content.annotations]
    assert len({image["id"] for image in images}) == len({image["file_name"] for image in images}) == 26
    assert len(set(annotations)) == len(annotations) > 0
    for split, content in splits.items():
        assert set_faults_aside(content, split) == (content, [])


@pytest.mark.parametrize("size_px", [64, 128, 640])
def test_any_size_is_drawn(size_px):
    image = draw_image(1, "val", 0, size_px=size_px, max_persons=12)
    assert decode(image).shape == (size_px, size_px, 3)


def test_crowds_empty_images_and_all_visibilities_occur(drawn, persons):
    assert 0 < sum(not image.annotations for image in drawn) < 0.1 * N_IMAGES
    crowds = [a for image in drawn for a in image.annotations if a["iscrowd"]]
    assert 0 < len(crowds) < 0.1 * N_IMAGES
    for crowd in crowds:
        assert crowd["keypoints"] == [0] * 51
        assert crowd["num_keypoints"] == 0
        assert crowd["area"] > 0
    visibilities = np.concatenate([xyv(a)[:, 2] for _, a in persons])
    assert set(visibilities) == {0, 1, 2}
    assert np.mean(visibilities == 2) > 0.6


def test_annotations_are_consistent(persons):
    for _, annotation in persons:
        keypoints = xyv(annotation)
        labelled = keypoints[:, 2] > 0
        assert annotation["num_keypoints"] == labelled.sum()
        assert (keypoints[~labelled] == 0).all()
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= SIZE_PX
        assert 0 <= y < y + height <= SIZE_PX
        inside = (keypoints[:, 0] >= x) & (keypoints[:, 0] <= x + width)
        inside &= (keypoints[:, 1] >= y) & (keypoints[:, 1] <= y + height)
        assert inside[labelled].all()
        assert 0 < annotation["area"] <= width * height


def paint(rng, x_px, size_px=SIZE_PX):
    figure = sample_figure(rng)
    origin = np.array([x_px, 0.55 * size_px])
    return figure, paint_person(figure, sample_outfit(rng), origin_xy=origin, height_px=0.8 * size_px, size_px=size_px)


def test_visible_means_that_nobody_in_front_covers_the_joint():
    """The nearer of two persons is painted over the farther; the layers themselves say where."""
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, far = paint(rng, 70)
        _, near = paint(rng, 95)
        nothing = np.zeros((SIZE_PX, SIZE_PX), bool)
        alone = annotate([far], nothing)[0]
        behind, front = annotate([far, near], nothing)
        assert front == annotate([near], nothing)[0]
        if behind is None:
            continue
        assert (behind["area"], behind["bbox"]) == (alone["area"], alone["bbox"])
        for (x, y, v), v_alone in zip(xyv(behind), xyv(alone)[:, 2], strict=True):
            if v:
                covered = near.layer.silhouette[int(y), int(x)]
                assert v == (1 if covered else v_alone)
                seen.add((bool(covered), int(v)))
    assert seen == {(False, 1), (False, 2), (True, 1)}


def test_a_thing_in_front_hides_and_a_person_out_of_sight_is_left_out():
    _, person = paint(np.random.default_rng(0), 80)
    lower_half = np.zeros((SIZE_PX, SIZE_PX), bool)
    lower_half[SIZE_PX // 2 :] = True
    (annotation,) = annotate([person], lower_half)
    for _, y, v in xyv(annotation):
        assert v < 2 or y < SIZE_PX // 2
    assert annotate([person], np.ones_like(lower_half)) == [None]


def test_the_face_is_visible_from_the_front_only():
    visible = {True: [], False: []}
    for seed in range(80):
        figure, person = paint(np.random.default_rng(seed), 80)
        visible[figure.from_behind] += (~person.hidden_by_self[FACE]).tolist()
    assert not any(visible[True])
    assert np.mean(visible[False]) > 0.9  # a hand may be before the face


def test_persons_seen_from_behind_have_their_sides_exchanged():
    for seed in range(40):
        figure = sample_figure(np.random.default_rng(seed))
        left, right = figure.keypoints_xy[5], figure.keypoints_xy[6]
        assert (left[0] < right[0]) == figure.from_behind


def test_the_left_side_is_darker_than_the_right(persons):
    """Compares the upper arms and thighs of each person where all four ends are visible."""
    differences = []
    for image, annotation in persons:
        grey = cv2.cvtColor(decode(image), cv2.COLOR_BGR2GRAY).astype(float)
        keypoints = xyv(annotation)
        for upper, lower in ((5, 7), (11, 13)):
            joints = keypoints[[upper, lower, upper + 1, lower + 1]]
            if (joints[:, 2] == 2).all():
                left, right = (joints[:2, :2].mean(0).astype(int), joints[2:, :2].mean(0).astype(int))
                differences.append(grey[right[1], right[0]] - grey[left[1], left[0]])
    assert len(differences) > 200
    assert np.mean(np.array(differences) > 10) > 0.95


def test_eyes_are_drawn_where_their_keypoints_are():
    """Around a pupil's keypoint the darkest pixels balance: their centre is the keypoint, to a fifth of a pixel."""
    size_px, offsets = 640, []
    for seed in range(30):
        figure, person = paint(np.random.default_rng(seed), 320, size_px)
        if figure.from_behind or person.hidden_by_self[1]:
            continue
        x, y = person.keypoints_xy[1]
        left, top = int(x) - 7, int(y) - 7
        window = person.layer.bgra[top : top + 15, left : left + 15, :3].max(2)
        rows, columns = np.nonzero(window < 80)
        offsets.append([columns.mean() + 0.5 + left - x, rows.mean() + 0.5 + top - y])
    assert len(offsets) > 8
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.2
