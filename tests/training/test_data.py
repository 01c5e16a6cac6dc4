"""Which images a step sees, and how they look, depend on the seed and the epoch alone."""

from pathlib import Path

import numpy as np

from posefoundry.config import Augment, Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.training.batch import collate
from posefoundry.training.data import ShuffledBatches, TrainingImages


def images_of(people: Path, settings: Train) -> TrainingImages:
    return TrainingImages(read_dataset_yaml(people / "yolo" / "dataset.yaml"), settings)


def with_changes(settings: Train, **changes: object) -> Train:
    return settings.model_copy(update=changes)


def test_same_epoch_same_picture_other_epoch_another(people: Path, settings: Train) -> None:
    images = images_of(people, with_changes(settings, augment=Augment()))
    again = images_of(people, with_changes(settings, augment=Augment(), image_cache_gib=0))
    np.testing.assert_array_equal(images[0, 5].image_rgb_chw, again[0, 5].image_rgb_chw)
    np.testing.assert_array_equal(images[0, 5].keypoints_xyv, again[0, 5].keypoints_xyv)
    assert not np.array_equal(images[0, 5].image_rgb_chw, images[1, 5].image_rgb_chw)


def test_without_augmentation_labels_are_the_file_s(people: Path, settings: Train) -> None:
    images = images_of(people, settings)
    number = next(i for i, labels in enumerate(images.labels) if len(labels.class_ids))
    sample, labels = images[0, number], images.labels[number]
    np.testing.assert_allclose(sample.keypoints_xyv[..., :2], labels.keypoints_xyvn[..., :2] * 64, atol=1e-3)
    centre = (sample.boxes_xyxy[:, :2] + sample.boxes_xyxy[:, 2:]) / 2
    np.testing.assert_allclose(centre, labels.boxes_cxcywhn[:, :2] * 64, atol=1e-3)


def test_mosaic_closes_out(people: Path, settings: Train) -> None:
    closing = Augment(**{**settings.augment.model_dump(), "mosaic_probability": 1.0, "mosaic_off_epochs": 1})
    images = images_of(people, with_changes(settings, epochs=2, augment=closing))
    plain = images_of(people, settings)
    assert not np.array_equal(images[0, 3].image_rgb_chw, plain[0, 3].image_rgb_chw)
    np.testing.assert_array_equal(images[1, 3].image_rgb_chw, plain[1, 3].image_rgb_chw)


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


def test_collate_pads_persons_and_marks_them(people: Path, settings: Train) -> None:
    images = images_of(people, settings)
    samples = [images[0, index] for index in range(8)]
    batch = collate(samples)
    counts = [len(sample.class_ids) for sample in samples]
    assert batch.is_person.sum(1).tolist() == counts
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.boxes_xyxy[row, : counts[row]].numpy(), sample.boxes_xyxy)
        assert not batch.boxes_xyxy[row, counts[row] :].any()
