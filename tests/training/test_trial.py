"""Trials train for real and tell what memory it took."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.training.trial import NO_MEMORY, peak_bytes_on_cpu, train_on_noise


def test_what_is_tried_is_a_real_training_step(people: Path, settings: Train) -> None:
    spec = read_dataset_yaml(people / "yolo" / "dataset.yaml")
    trainer = train_on_noise(2, settings, spec, torch.device("cpu"))
    assert trainer.step == 2
    assert trainer.average.updates == 2
    assert trainer.optimizer.state, "the optimiser's moments take memory too"


def test_on_a_cpu_another_process_tries_and_its_end_means_too_much(people: Path, settings: Train) -> None:
    spec, before = read_dataset_yaml(people / "yolo" / "dataset.yaml"), set(multiprocessing.active_children())
    larger = settings.model_copy(update={"image_size_px": 256})
    with peak_bytes_on_cpu(larger, spec) as peak_bytes:
        few, many = peak_bytes(2), peak_bytes(8)
        of_tensors = 6 * 3 * 256 * 256 * 4
        assert many - few > of_tensors
        with pytest.raises(RuntimeError, match="TypeError: "):  # what fails there is told here
            peak_bytes(-1)
        (trial,) = set(multiprocessing.active_children()) - before
        trial.kill()  # as Linux does where memory runs out
        with pytest.raises(torch.OutOfMemoryError):
            peak_bytes(16)
    assert not trial.is_alive()
    with peak_bytes_on_cpu(larger, spec) as peak_bytes:
        (trial,) = set(multiprocessing.active_children()) - before
        os.kill(trial.pid, signal.SIGABRT)
        with pytest.raises(RuntimeError, match="of 2 images ended with exit code -6"):
            peak_bytes(2)


def test_memory_running_out_is_known_by_its_words() -> None:
    with pytest.raises(RuntimeError, match=NO_MEMORY):
        torch.empty(2**60, dtype=torch.uint8)
