"""Which images a step sees, and how they look, depend on the seed and the epoch alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posefoundry.config import Augment, Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.training.batch import collate
from posefoundry.training.data import ShuffledBatches, TrainingImages, batch_sides_px
from posefoundry.training.loader import training_loader


def images_of(people: Path, settings: Train) -> TrainingImages:
    return TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)


def with_changes(settings: Train, **changes: object) -> Train:
    return settings.model_copy(update=changes)


def test_same_epoch_same_picture_other_epoch_another(people: Path, settings: Train) -> None:
    images = images_of(people, with_changes(settings, augment=Augment()))
    again = images_of(people, with_changes(settings, augment=Augment(), image_cache_gib=0))
    np.testing.assert_array_equal(images[0, 5].image_rgb, again[0, 5].image_rgb)
    np.testing.assert_array_equal(images[0, 5].keypoints_xyv, again[0, 5].keypoints_xyv)
    assert not np.array_equal(images[0, 5].image_rgb, images[1, 5].image_rgb)


def test_without_augmentation_labels_are_the_file_s(people: Path, settings: Train) -> None:
    images = images_of(people, settings)
    number = next(i for i, labels in enumerate(images.labels) if len(labels.class_ids))
    sample, labels = images[0, number], images.labels[number]
    np.testing.assert_allclose(sample.keypoints_xyv[..., :2], labels.keypoints_xyvn[..., :2] * 64, atol=1e-3)
    centre = (sample.boxes_xyxy[:, :2] + sample.boxes_xyxy[:, 2:]) / 2
    np.testing.assert_allclose(centre, labels.boxes_cxcywhn[:, :2] * 64, atol=1e-3)


def test_all_files_that_a_sample_is_made_of_are_told(people: Path, settings: Train) -> None:
    composed = {"mosaic_probability": 1.0, "mixup_probability": 1.0, "copy_paste_probability": 1.0}
    images = images_of(people, with_changes(settings, augment=Augment(**composed, mosaic_off_epochs=0)))
    assert images_of(people, settings).sources((0, 3)) == [images.paths[3]]
    item = (0, 3)
    whole, sources = images[item], images.sources(item)
    assert sources[0] == images.paths[3]
    assert 6 <= len(sources) <= 11  # two mosaics and up to three people, of 24 images

    def with_black(paths: set[Path]) -> np.ndarray:
        blackened = images_of(people, images.settings)
        for path in paths:
            blackened.cache.put(blackened.paths.index(path), np.zeros((64, 64, 3), np.uint8))
        return blackened[item].image_rgb

    np.testing.assert_array_equal(with_black(set(images.paths) - set(sources)), whole.image_rgb)
    assert not np.array_equal(with_black(set(sources[1:])), whole.image_rgb)


def test_mosaic_closes_out(people: Path, settings: Train) -> None:
    closing = Augment(**{**settings.augment.model_dump(), "mosaic_probability": 1.0, "mosaic_off_epochs": 1})
    images = images_of(people, with_changes(settings, epochs=2, augment=closing))
    plain = images_of(people, settings)
    assert not np.array_equal(images[0, 3].image_rgb, plain[0, 3].image_rgb)
    np.testing.assert_array_equal(images[1, 3].image_rgb, plain[1, 3].image_rgb)


def test_processes_share_each_batch_of_one_process() -> None:
    whole = ShuffledBatches(50, 12, seed=1, rank=0, n_processes=1)
    parts = [ShuffledBatches(50, 12, seed=1, rank=rank, n_processes=3) for rank in range(3)]
    for sampler in (whole, *parts):
        sampler.epoch = 4
    assert len(whole) == 4
    for batch, *shares in zip(whole, *parts, strict=True):
        assert batch == [item for share in shares for item in share]
        assert len(batch) == len(set(batch)) == 12


def test_epochs_differ_in_order() -> None:
    sampler = ShuffledBatches(50, 10, seed=1, rank=0, n_processes=1)
    first = [index for batch in sampler for _, index in batch]
    sampler.epoch = 1
    second = [index for batch in sampler for _, index in batch]
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))


def test_a_dataset_smaller_than_a_batch_is_repeated() -> None:
    (batch,) = ShuffledBatches(3, 8, seed=1, rank=0, n_processes=1)
    assert len(batch) == 8
    assert {index for _, index in batch} == {0, 1, 2}


def augmented(settings: Train, **changes: float) -> Train:
    return with_changes(settings, augment=settings.augment.model_copy(update=changes))


ALL_AT_ONCE = {
    "flip_vertical_probability": 0.5,
    "shear_degrees": 10.0,
    "perspective_fraction": 0.2,
    "blur_probability": 0.5,
    "cutout_probability": 0.5,
    "mosaic_probability": 0.5,
    "mixup_probability": 0.5,
    "copy_paste_probability": 0.5,
}


def test_each_augmentation_draws_on_numbers_of_its_own(people: Path, settings: Train) -> None:
    """Switching one on leaves what the others do as it is: the pictures that it does not touch stay the same."""
    usual = augmented(settings, rotate_degrees=20, flip_probability=0.5, hsv_value=0.4)
    plain = images_of(people, usual)
    for name in (name for name in ALL_AT_ONCE if name.endswith("_probability") and not name.startswith("mosaic")):
        images = images_of(people, augmented(usual, **{name: 0.5}))
        same = [np.array_equal(images[0, n].image_rgb, plain[0, n].image_rgb) for n in range(24)]
        assert 4 <= sum(same) <= 20, name


def test_composing_stops_with_mosaic_and_the_rest_goes_on(people: Path, settings: Train) -> None:
    composed = {"mosaic_probability": 1.0, "mixup_probability": 1.0, "copy_paste_probability": 1.0}
    images = images_of(people, augmented(settings, **composed, mosaic_off_epochs=1))
    plain = images_of(people, settings)
    blurred = images_of(people, augmented(settings, blur_probability=1.0, mosaic_off_epochs=1))
    for n in range(8):
        assert not np.array_equal(images[0, n].image_rgb, plain[0, n].image_rgb)
        np.testing.assert_array_equal(images[1, n].image_rgb, plain[1, n].image_rgb)
        assert not np.array_equal(blurred[1, n].image_rgb, plain[1, n].image_rgb)


def test_all_augmentations_at_once_give_sound_labels_and_the_same_again(people: Path, settings: Train) -> None:
    images, again = (images_of(people, augmented(settings, **ALL_AT_ONCE)) for _ in range(2))
    for n in range(24):
        sample, same = images[0, n, 96], again[0, n, 96]
        np.testing.assert_array_equal(sample.image_rgb, same.image_rgb)
        np.testing.assert_array_equal(sample.keypoints_xyv, same.keypoints_xyv)
        assert sample.image_rgb.shape == (96, 96, 3)
        assert len(sample.class_ids) == len(sample.boxes_xyxy) == len(sample.keypoints_xyv)
        x1, y1, x2, y2 = sample.boxes_xyxy.T
        assert (x2 > x1).all() and (y2 > y1).all() and min(x1.min(), y1.min()) >= 0 and max(x2.max(), y2.max()) <= 96
        xy, v = sample.keypoints_xyv[..., :2], sample.keypoints_xyv[..., 2]
        assert set(np.unique(v)) <= {0, 1, 2}
        assert (xy >= 0).all() and (xy <= 96).all()
        assert not xy[v == 0].any()


def test_images_without_labels_are_background(people: Path, settings: Train, tmp_path: Path) -> None:
    shutil.copytree(people / "yolo", tmp_path / "yolo")
    labels = sorted((tmp_path / "yolo" / "labels" / "train").iterdir())
    labels[0].write_text("")
    labels[1].unlink()
    spec = read_dataset_yaml(tmp_path / "yolo" / "dataset.yaml")
    for changes in ({}, ALL_AT_ONCE):
        images = TrainingImages(spec, augmented(settings, **changes))
        batch = collate([images[epoch, n] for epoch in range(4) for n in (0, 1)])
        if not changes:
            assert not batch.is_person.any()


def test_batches_of_several_sizes_are_the_same_for_all_processes(people: Path, settings: Train) -> None:
    sides_px = batch_sides_px(augmented(with_changes(settings, image_size_px=320), multi_scale_fraction=0.25))
    assert sides_px == [256, 288, 320, 352, 384]
    large = with_changes(settings, model="yolov8x-pose-p6", image_size_px=320)
    assert batch_sides_px(augmented(large, multi_scale_fraction=0.25)) == [256, 320, 384]
    assert batch_sides_px(augmented(with_changes(settings, image_size_px=32), multi_scale_fraction=0.9)) == [32]
    parts = [ShuffledBatches(50, 10, seed=1, rank=rank, n_processes=2, sides_px=sides_px) for rank in range(2)]
    sizes = []
    for batches in zip(*parts, *parts, strict=True):  # read twice: a step's size is no matter of what was read before
        of_step = {item[2] for batch in batches for item in batch}
        assert len(of_step) == 1
        sizes += of_step
    assert set(sizes) <= set(sides_px) and len(set(sizes)) > 1
    usual = ShuffledBatches(50, 10, seed=1, rank=0, n_processes=2)
    assert [[item[:2] for item in batch] for batch in parts[0]] == list(usual)


def test_a_batch_of_another_size_shows_the_same_persons_larger(people: Path, settings: Train) -> None:
    several = augmented(settings, multi_scale_fraction=0.5, rotate_degrees=10)
    images = images_of(people, several)
    for n in range(4):
        usual, larger = images[0, n], images[0, n, 96]
        np.testing.assert_allclose(larger.boxes_xyxy, usual.boxes_xyxy * 1.5, atol=0.01)
        np.testing.assert_allclose(larger.keypoints_xyv[..., :2], usual.keypoints_xyv[..., :2] * 1.5, atol=0.01)
    loader = training_loader(images, several, 0, torch.device("cpu"))
    sampler: Any = loader.batch_sampler
    sizes = set()
    for sampler.epoch in range(3):
        for items, batch in zip(sampler, loader, strict=True):
            size_hw = batch.images.shape[-2:]
            assert {images[item].image_rgb.shape[:2] for item in items} == {size_hw}
            sizes.add(size_hw)
    assert len(sizes) > 1
    assert sizes <= {(32, 32), (64, 64), (96, 96)}


def test_collate_pads_persons_and_marks_them(people: Path, settings: Train) -> None:
    images = images_of(people, settings)
    samples = [images[0, index] for index in range(8)]
    batch = collate(samples)
    counts = [len(sample.class_ids) for sample in samples]
    assert batch.is_person.sum(1).tolist() == counts
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.boxes_xyxy[row, : counts[row]].numpy(), sample.boxes_xyxy)
        assert not batch.boxes_xyxy[row, counts[row] :].any()
