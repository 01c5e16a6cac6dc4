from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from posefoundry.datasets.yolo import (
    format_dataset_yaml,
    format_label_line,
    image_files,
    label_path_of,
    parse_label_line,
    read_dataset_yaml,
    read_labels,
)
from posefoundry.errors import PosefoundryError
from posefoundry.skeleton import COCO_PERSON, Skeleton

FRACTION = st.floats(0, 1)
SIDE = st.floats(1e-6, 1)  # a box side that 6 decimals can hold
COCO_FLIP = list(COCO_PERSON.flip_indices)


@given(
    class_id=st.integers(0, 4),
    box=st.tuples(FRACTION, FRACTION, SIDE, SIDE),
    keypoints=st.lists(st.tuples(FRACTION, FRACTION, st.sampled_from([0, 1, 2])), min_size=1, max_size=5),
)
def test_label_line_says_again_what_was_written(
    class_id: int, box: tuple[float, ...], keypoints: list[tuple[float, float, int]]
) -> None:
    line = format_label_line(class_id, box, keypoints)
    numbers = parse_label_line(line, (len(keypoints), 3), n_classes=5)
    np.testing.assert_allclose(numbers, [class_id, *box, *np.ravel(keypoints)], rtol=0, atol=5.1e-7)
    assert numbers[7::3].tolist() == [v for _, _, v in keypoints]


def test_label_line_has_six_decimals_and_whole_visibilities() -> None:
    line = format_label_line(2, [0.5, 1 / 3, 0.25, 1.0], [(0.1, 0.2, 2.0), (0, 0, 0)])
    assert line == "2 0.500000 0.333333 0.250000 1.000000 0.100000 0.200000 2 0.000000 0.000000 0"


def test_labels_of_several_persons(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0 0.5 0.5 0.2 0.4 0.1 0.2 2 0.3 0.4 1\n\n1 0.25 0.5 0.5 1 0 0 0 1 1 2\n")
    labels = read_labels(path, (2, 3), n_classes=2)
    assert labels.class_ids.tolist() == [0, 1] and labels.class_ids.dtype == np.int64
    np.testing.assert_allclose(labels.boxes_cxcywhn, [[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1]], rtol=1e-6)
    np.testing.assert_allclose(labels.keypoints_xyvn[0], [[0.1, 0.2, 2], [0.3, 0.4, 1]], rtol=1e-6)
    assert labels.boxes_cxcywhn.dtype == labels.keypoints_xyvn.dtype == np.float32


@pytest.mark.parametrize("exists", [True, False], ids=["empty file", "no file"])
def test_nobody_in_the_image(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "a.txt"
    if exists:
        path.touch()
    labels = read_labels(path, (17, 3), n_classes=1)
    assert labels.class_ids.shape == (0,)
    assert labels.boxes_cxcywhn.shape == (0, 4)
    assert labels.keypoints_xyvn.shape == (0, 17, 3)


def test_keypoints_without_visibility_count_as_visible_unless_at_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0 0.5 0.5 0.2 0.4 0.1 0.2 0 0 0 0.5\n")
    labels = read_labels(path, (3, 2), n_classes=1)
    assert labels.keypoints_xyvn.shape == (1, 3, 3)
    assert labels.keypoints_xyvn[0, :, 2].tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.4 0.1 0.2", "expected 8 numbers .* got 7"),
        ("0 0.5 0.5 0.2 0.4 0.1 0.2 2 2", "expected 8 numbers .* got 9"),
        ("0 0.5 0.5 0.2 0.4 0.1 left 2", "expected numbers, got 'left'"),
        ("0 0.5 0.5 0.2 0.4 nan 0.2 2", "expected finite numbers, got 'nan'"),
        ("0 0.5 inf 0.2 0.4 0.1 0.2 2", "expected finite numbers, got 'inf'"),
        ("1 0.5 0.5 0.2 0.4 0.1 0.2 2", r"expected a class in 0\.\.0, got '1'"),
        ("-1 0.5 0.5 0.2 0.4 0.1 0.2 2", r"expected a class in 0\.\.0, got '-1'"),
        ("0.5 0.5 0.5 0.2 0.4 0.1 0.2 2", r"expected a class in 0\.\.0, got '0.5'"),
        ("0 320 0.5 0.2 0.4 0.1 0.2 2", "as fractions .* got 320"),
        ("0 0.5 0.5 0.2 0.4 0.1 -0.2 2", "as fractions .* got -0.2"),
        ("0 0.5 0.5 0 0.4 0.1 0.2 2", "positive width and height, got 0 x 0.4"),
        ("0 0.5 0.5 0.2 0.4 0.1 0.2 3", "visibility of 0, 1 or 2, got 3"),
        ("0 0.5 0.5 0.2 0.4 0.1 0.2 0.9", "visibility of 0, 1 or 2, got 0.9"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"0 0.5 0.5 0.2 0.4 0.1 0.2 2\n\n{line}\n")
    with pytest.raises(PosefoundryError, match=rf"a\.txt, line 3: .*{message}"):
        read_labels(path, (1, 3), n_classes=1)


def test_label_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(PosefoundryError, match=r"a\.txt: expected a readable text file"):
        read_labels(path, (1, 3), n_classes=1)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("d/images/train/a.jpg", "d/labels/train/a.txt"),
        ("images/d/images/a.b.png", "images/d/labels/a.b.txt"),
        ("/images/images.jpg", "/labels/images.txt"),
        ("my_images/a.jpg", "my_images/a.txt"),
    ],
)
def test_label_path(image: str, label: str) -> None:
    assert label_path_of(Path(image)) == Path(label)


def test_images_of_a_folder_are_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == [tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "sub" / "c.webp"]


def test_images_of_a_list_file_count_from_it(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("./images/b.jpg\nimages/a.jpg\n\n/elsewhere/c.jpg\n")
    assert image_files(tmp_path / "train.txt") == [
        Path("/elsewhere/c.jpg"),
        tmp_path / "images" / "a.jpg",
        tmp_path / "images" / "b.jpg",
    ]


def test_images_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(PosefoundryError, match="nowhere: expected a folder of images"):
        image_files(tmp_path / "nowhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    return tmp_path


def write_yaml(folder: Path, **changes: object) -> Path:
    """The published form for 17 keypoints, with changes; None takes a key out."""
    content = {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "kpt_shape": [17, 3],
        "flip_idx": COCO_FLIP,
        "names": {0: "person"},
    } | changes
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def test_own_dataset_yaml_is_read_as_written(folder: Path) -> None:
    skeleton = Skeleton(
        keypoint_names=("left", "right", "middle"), edges=((0, 2),), flip_indices=(1, 0, 2), sigmas=(0.1, 0.1, 0.2)
    )
    (folder / "dataset.yaml").write_text(
        format_dataset_yaml(["train", "val"], ["cat", "dog"], category_ids=[3, 7], skeleton=skeleton)
    )
    spec = read_dataset_yaml(folder / "dataset.yaml")
    assert spec.skeleton == skeleton
    assert spec.class_names == ("cat", "dog") and spec.category_ids == (3, 7) and spec.kpt_shape == (3, 3)
    assert spec.root == folder and spec.splits == {s: folder / "images" / s for s in ("train", "val")}


def test_published_form_without_keypoint_names_is_coco(folder: Path) -> None:
    path = folder / "dataset.yaml"
    path.write_text(
        "path: .  # dataset root\ntrain: images/train\nval: images/val\ntest: # optional\n\n"
        "kpt_shape: [17, 3]\nflip_idx: [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]\n"
        "names:\n  0: person\ndownload: https://example.org/data.zip\n"
    )
    spec = read_dataset_yaml(path)
    assert spec.skeleton == COCO_PERSON
    assert spec.class_names == ("person",) and spec.category_ids == (1,) and set(spec.splits) == {"train", "val"}


def test_keypoint_names_by_class_give_flips_sigmas_and_edges(folder: Path) -> None:
    names = {0: ["left_ear", "right_ear", "tail"]}
    path = write_yaml(folder, kpt_shape=[3, 2], flip_idx=None, kpt_names=names, skeleton=[[0, 2]], names=["cat"])
    skeleton = read_dataset_yaml(path).skeleton
    assert skeleton.flip_indices == (1, 0, 2) and skeleton.edges == ((0, 2),) and skeleton.sigmas == (1 / 3,) * 3


def test_stated_sigmas_and_flips_win(folder: Path) -> None:
    path = write_yaml(
        folder, kpt_shape=[2, 3], flip_idx=[0, 1], kpt_names=["left_ear", "right_ear"], sigmas=[0.05, 0.06]
    )
    skeleton = read_dataset_yaml(path).skeleton
    assert skeleton.flip_indices == (0, 1) and skeleton.sigmas == (0.05, 0.06)


def test_unnamed_keypoints_that_are_not_coco(folder: Path) -> None:
    skeleton = read_dataset_yaml(write_yaml(folder, kpt_shape=[2, 3], flip_idx=[1, 0])).skeleton
    assert skeleton.keypoint_names == ("keypoint_0", "keypoint_1") and skeleton.flip_indices == (1, 0)


def test_relative_path_counts_from_the_file_and_absolute_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "configs").mkdir()
    monkeypatch.chdir(folder)
    expected = {"train": folder / "images" / "train", "val": folder / "images" / "val"}
    for stated in ("..", str(folder)):
        splits = read_dataset_yaml(write_yaml(folder / "configs", path=stated)).splits
        assert all(splits[name].samefile(expected[name]) for name in expected)
    assert read_dataset_yaml(write_yaml(folder, path=None)).root == folder
    assert read_dataset_yaml(Path("dataset.yaml")).root.is_absolute()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, "path: expected a folder, found none at .*nowhere"),
        ({"train": None}, "train: expected one folder of images or one list file, got None"),
        ({"train": ["a", "b"]}, "train: expected one folder"),
        ({"val": "images/dev"}, "val: expected images, found nothing at .*images/dev"),
        ({"kpt_shape": None}, r"kpt_shape: expected \[number of keypoints, 2 or 3\], got None"),
        ({"kpt_shape": [17, 4]}, "kpt_shape: .* got .17, 4"),
        ({"kpt_shape": "17x3"}, "kpt_shape: .* got '17x3'"),
        ({"flip_idx": None}, "flip_idx: .* Add it"),
        ({"flip_idx": [0, 1]}, r"flip_idx: expected each of 0\.\.16 once"),
        ({"kpt_shape": [3, 3], "flip_idx": [1, 2, 0]}, "flip_idx: .* pairwise"),
        ({"names": None}, "names: expected the name of each class, got None"),
        ({"names": {1: "person"}}, r"names: expected the class indices 0, 1, \.\.\. without gaps, got \[1\]"),
        ({"names": [True]}, "names: expected the name of each class"),
        ({"nc": 2}, "nc: expected 1"),
        ({"kpt_names": ["nose"]}, "kpt_names: expected 17 distinct names"),
        ({"kpt_names": {0: ["a"], 1: ["b"]}, "names": ["x", "y"]}, "kpt_names: expected the same keypoints"),
        ({"skeleton": [[0, 17]]}, r"skeleton: expected pairs of keypoints in 0\.\.16"),
        ({"sigmas": [0.1]}, "sigmas: expected 17 positive numbers"),
        ({"sigmas": [0.0] * 17}, "sigmas: expected 17 positive numbers"),
        ({"category_ids": [1, 2]}, "category_ids: expected 1 distinct integers"),
    ],
)
def test_wrong_key_is_named(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(PosefoundryError, match=rf"dataset\.yaml: {message}"):
        read_dataset_yaml(write_yaml(folder, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "expected keys such as train"),
        ("path: [unclosed\n", "expected YAML"),
        ("path: !!python/object/apply:os.getcwd []\n", "expected YAML"),
    ],
)
def test_file_that_is_no_dataset_yaml(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset.yaml").write_text(content)
    with pytest.raises(PosefoundryError, match=rf"dataset\.yaml: {message}"):
        read_dataset_yaml(tmp_path / "dataset.yaml")


def test_missing_dataset_yaml(tmp_path: Path) -> None:
    with pytest.raises(PosefoundryError, match="found no file"):
        read_dataset_yaml(tmp_path / "dataset.yaml")
