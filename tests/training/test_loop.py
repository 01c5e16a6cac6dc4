"""The loop learns, repeats itself exactly, and says when it diverges."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.models import PoseModel, build_model
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer, uses_bf16
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import FileLog, Observer

ALONE = ProcessGroup(rank=0, n_processes=1, device=torch.device("cpu"))


class Recorder(Observer):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.epochs: list[dict] = []

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        assert step == len(self.losses)
        self.losses.append(values["loss_total"])

    def epoch_done(self, epoch: int, values: dict) -> None:
        self.epochs.append(values)


def trainer_on(people: Path, settings: Train, *observers: Observer, split: str = "train") -> Trainer:
    spec = read_dataset_yaml(people / "yolo" / "dataset.yaml")
    spec = replace(spec, splits={"train": spec.splits[split]})
    torch.manual_seed(settings.seed)
    model = build_model(settings.model)
    criterion = build_criterion(model, spec.skeleton, settings)
    loader = training_loader(TrainingImages(spec, settings), settings, 0, ALONE.device)
    return Trainer(model, settings, criterion, loader, ALONE, observers)


def train(trainer: Trainer) -> list[tuple[int, dict]]:
    kept: list[tuple[int, dict]] = []
    trainer.train(
        lambda model: {"oks_ap": 0.5, "oks_ap_l": None},
        lambda model, epoch, metrics: kept.append((epoch, metrics)),
    )
    return kept


def test_learns_and_validates_when_due(people: Path, settings: Train) -> None:
    recorder = Recorder()
    settings = settings.model_copy(update={"epochs": 5, "validate_every_epochs": 2})
    kept = train(trainer_on(people, settings, recorder))
    assert [epoch for epoch, _ in kept] == [2, 4, 5]
    assert recorder.epochs[1]["val_oks_ap"] == 0.5
    assert "val_oks_ap" not in recorder.epochs[0]
    assert recorder.losses[-1] < 0.8 * recorder.losses[0]


# Steps of the kind that each optimiser takes in a training from scratch.
OPTIMISERS = {"adamw": 0.002, "sgd": 0.03, "musgd": 0.02}


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("model", ["yolov8n-pose", "yolo11n-pose", "yolo26n-pose"])
def test_each_family_learns_by_each_optimiser(people: Path, settings: Train, model: str, optimizer: str) -> None:
    changes = {"model": model, "optimizer": optimizer, "learning_rate": OPTIMISERS[optimizer]}
    recorder = Recorder()
    # Four pictures, all of them in each step, are soon known by heart: the loss falls by far more than chance.
    by_heart = settings.model_copy(update=changes | {"batch_size": 4, "epochs": 18, "warmup_epochs": 1.5})
    trainer = trainer_on(people, by_heart, recorder, split="val")
    train(trainer)
    # The total of YOLO26 falls without learning too, by its schedule; the loss of keypoints hardly does.
    for term, most in (("loss_total", 0.75), ("loss_pose", 0.88)):
        values = [epoch[term] for epoch in recorder.epochs]
        assert sum(values[-3:]) < most * sum(values[:3]), term
    assert all(value.isfinite().all() for value in trainer.average.model.state_dict().values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_computes_in_the_precision_asked_for(people: Path, settings: Train, precision: str) -> None:
    trainer = trainer_on(people, settings.model_copy(update={"precision": precision}))
    convolution = trainer.model.model[0].conv
    computed: list[torch.dtype] = []
    convolution.register_forward_hook(lambda module, images, output: computed.append(output.dtype))
    trainer.train_step(next(iter(trainer.loader)))
    assert computed == [getattr(torch, precision)]
    assert convolution.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_auto_is_bfloat16_where_a_cpu_multiplies_it(
    avx512: bool, amx: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert uses_bf16("auto", torch.device("cpu")) == expected
    assert uses_bf16("bfloat16", torch.device("cpu"))
    assert not uses_bf16("float32", torch.device("cpu"))


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_bfloat16_where_a_gpu_does_not_merely_emulate_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, flag, lambda: not native)  # the CPU's abilities are of no matter
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert uses_bf16("auto", torch.device("cuda", 0)) == native


def test_criterion_hears_of_each_epoch(people: Path, settings: Train) -> None:
    trainer = trainer_on(people, settings.model_copy(update={"model": "yolo26n-pose", "epochs": 2}))
    train(trainer)
    assert trainer.criterion.one_to_many_weight == pytest.approx(0.1)


def test_same_seed_same_weights_other_seed_others(people: Path, settings: Train) -> None:
    def weights(seed: int) -> torch.Tensor:
        trainer = trainer_on(people, settings.model_copy(update={"seed": seed, "epochs": 1, "warmup_epochs": 0}))
        train(trainer)
        return torch.cat([value.flatten() for value in trainer.average.model.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_frozen_batchnorm_keeps_its_statistics(people: Path, settings: Train) -> None:
    trainer = trainer_on(
        people, settings.model_copy(update={"freeze_batchnorm": True, "epochs": 1, "warmup_epochs": 0})
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items() if "running" in name}
    weights = trainer.model.model[0].conv.weight.detach().clone()
    train(trainer)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(weights, trainer.model.model[0].conv.weight)


def test_divergence_names_step_and_term(people: Path, settings: Train) -> None:
    trainer = trainer_on(people, settings)
    with torch.no_grad():
        trainer.model.model[0].conv.weight.fill_(float("nan"))
    with pytest.raises(
        PosefoundryError, match=r"diverged in step 0: the loss term box .*train\.learning_rate"
    ) as fault:
        train(trainer)
    assert "(none)" in str(fault.value), "no step of the epoch was good"


def test_a_gradient_that_is_not_finite_is_named(people: Path, settings: Train) -> None:
    trainer = trainer_on(people, settings.model_copy(update={"epochs": 1, "warmup_epochs": 0}))
    trainer.model.model[0].conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    each_term = ", ".join(rf"{name} [\d.]+ \(none\)" for name in (*trainer.criterion.terms, "total"))
    with pytest.raises(
        PosefoundryError, match=rf"diverged in step 0: the gradient is not finite.*good steps: {each_term}"
    ):
        train(trainer)


def test_average_model_is_judged_in_evaluation_mode(people: Path, settings: Train) -> None:
    trainer = trainer_on(people, settings)
    modes: list[bool] = []

    def validate(model: PoseModel) -> dict:
        modes.append(model.training)
        return {}

    trainer.train(validate, lambda *_: None)
    assert modes == [False, False]


def test_file_log_can_be_read_back(people: Path, settings: Train, tmp_path: Path) -> None:
    train(trainer_on(people, settings, FileLog(tmp_path)))
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(epoch + 1) for epoch in range(settings.epochs)]
    for row in rows:
        assert {"loss_pose", "lr", "images_per_second", "val_oks_ap"} <= set(row)
        assert 0 < float(row["loader_wait_share"]) < 1
        assert 50 < float(row["peak_memory_mib"]) < 2**20  # PyTorch alone takes more, no host has as much
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 1 + 2 * 3
