"""Steps that cannot count are left out; many in a row lead back to a checkpoint, then to a diagnosis."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.errors import PosefoundryError
from posefoundry.models import build_model
from posefoundry.training.checkpoint import CheckpointFolder, Checkpoints
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.guard import EXPLOSION_FACTOR, StepGuard
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import FileLog
from posefoundry.training.optimizer import build_optimizer

ALONE = ProcessGroup(rank=0, n_processes=1, device=torch.device("cpu"))


@pytest.fixture
def settings(settings: Train) -> Train:
    # 3 steps an epoch, 12 in all; checkpoints after steps 3, 6, 9 and 12.
    return settings.model_copy(update={"epochs": 4, "checkpoint_every_steps": 3, "validate_every_epochs": 4})


def trainer_with_log(people: Path, folder: Path, settings: Train) -> Trainer:
    spec = read_dataset_yaml(people / "yolo" / "dataset.yaml")
    torch.manual_seed(settings.seed)
    model = build_model(settings.model)
    criterion = build_criterion(model, spec.skeleton, settings)
    loader = training_loader(TrainingImages(spec, settings), settings, 0, ALONE.device)
    log = FileLog(folder)
    trainer = Trainer(model, settings, criterion, loader, ALONE, [log])
    trainer.checkpoints = Checkpoints(CheckpointFolder(folder / "kept", 2), ALONE, {"trainer": trainer}, {"log": log})
    return trainer


def spoil(monkeypatch: pytest.MonkeyPatch, is_spoilt: Callable[[int], bool]) -> None:
    """Makes the norm of the gradient NaN in some calls, counted from 0."""
    clip, calls = nn.utils.clip_grad_norm_, iter(range(1000))

    def clip_or_spoil(*given: object, **options: object) -> torch.Tensor:
        norm = clip(*given, **options)
        return torch.tensor(math.nan) if is_spoilt(next(calls)) else norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip_or_spoil)


def columns_of_steps(folder: Path, *names: str) -> list[tuple[str, ...]]:
    header, *rows = (line.split(",") for line in (folder / "steps.csv").read_text().splitlines())
    return [tuple(row[header.index(name)] for name in names) for row in rows]


def steps_and_skipped(folder: Path) -> list[tuple[int, int]]:
    return [(int(step), int(skipped)) for step, skipped in columns_of_steps(folder, "step", "skipped")]


def test_a_broken_step_changes_nothing(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_with_log(people, tmp_path, settings.model_copy(update={"epochs": 1}))
    states: list[dict[str, torch.Tensor]] = []
    learn = trainer.train_step

    def keep_state(batch: object) -> None:
        learn(batch)  # type: ignore[arg-type]
        moments = {f"moment {n}": state["exp_avg"] for n, state in enumerate(trainer.optimizer.state.values())}
        states.append({name: value.clone() for name, value in (trainer.model.state_dict() | moments).items()})

    monkeypatch.setattr(trainer, "train_step", keep_state)
    spoil(monkeypatch, lambda call: call == 1)
    trainer.train(lambda _: {}, lambda *_: None)
    floats = [name for name, value in states[0].items() if value.is_floating_point()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in floats)
    assert any("running_mean" in name for name in floats)
    assert not torch.equal(states[1]["model.0.conv.weight"], states[2]["model.0.conv.weight"])
    assert steps_and_skipped(tmp_path) == [(0, 0), (1, 1), (2, 0)]
    (epoch,) = trainer.observers[0].epochs  # type: ignore[attr-defined]
    assert epoch["skipped_steps"] == 1
    assert math.isfinite(epoch["gradient_norm"])


def test_many_in_a_row_lead_back_to_the_checkpoint_at_a_lower_rate(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, lambda call: 4 <= call < 9)  # steps 4 to 8, the checkpoint before them is of step 3
    trainer = trainer_with_log(people, tmp_path, settings)
    trainer.train(lambda _: {}, lambda *_: None)
    told = capsys.readouterr().err
    assert "Training diverged in step 4: the gradient is not finite; 5 steps in a row were skipped." in told
    assert "Going on from the checkpoint of step 3, with 0.5 times the learning rate" in told
    assert steps_and_skipped(tmp_path) == [(step, 0) for step in range(12)]
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.002 * 0.01)
    state = CheckpointFolder(tmp_path / "kept", 2).read_newest()
    assert state is not None
    assert state["shared"]["trainer"]["rescue"]["returns"] == 1

    # Interrupted after it went back, it goes on at that rate and with the same idea of a usual gradient.
    steps = columns_of_steps(tmp_path, "lr", "loss_total", "gradient_norm")
    (tmp_path / "kept" / "step-000000012.json").unlink()
    again = trainer_with_log(people, tmp_path, settings)
    assert again.checkpoints.restore()
    assert (again.step, again.rescue.learning_rate_scale, again.rescue.returns) == (9, 0.5, 1)
    again.train(lambda _: {}, lambda *_: None)
    assert columns_of_steps(tmp_path, "lr", "loss_total", "gradient_norm") == steps
    assert float(again.guard.usual_norm) == float(trainer.guard.usual_norm)


def test_a_validation_amid_broken_steps_can_be_repeated(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings.model_copy(update={"validate_every_epochs": 2})
    spoil(monkeypatch, lambda call: 4 <= call < 9)
    kept = CheckpointFolder(tmp_path / "kept", 2)

    def validate(model: nn.Module) -> dict:
        assert kept.steps()[-1] == 6
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_with_log(people, tmp_path, settings).train(validate, lambda *_: None)
    again = trainer_with_log(people, tmp_path, settings)
    assert again.checkpoints.restore()
    assert (again.step, again.rescue.in_a_row, again.rescue.first[0]) == (6, 2, 4)  # type: ignore[index]
    again.train(lambda _: {}, lambda *_: None)
    told = capsys.readouterr().err
    assert "Training diverged in step 4: the gradient is not finite; 5 steps in a row were skipped." in told
    assert "Going on from the checkpoint of step 6" in told


def test_an_epoch_without_a_good_step_is_not_validated(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings.model_copy(update={"validate_every_epochs": 1, "epochs": 2})
    spoil(monkeypatch, lambda call: 3 <= call < 6)
    validated: list[int] = []
    trainer_with_log(people, tmp_path, settings).train(lambda _: {}, lambda _, epoch, metrics: validated.append(epoch))
    assert "Going on from the checkpoint of step 3, with" in capsys.readouterr().err
    assert validated == [1, 1, 2]  # the checkpoint is from before the validation, which is done again
    assert steps_and_skipped(tmp_path) == [(step, 0) for step in range(6)]


@pytest.mark.parametrize(
    ("every_steps", "every_epochs", "saved"),
    [(0, 0, [12]), (0, 2, [6, 12]), (0, 3, [9, 12]), (3, 1, [3, 6, 9, 12]), (5, 2, [5, 6, 10, 12])],
)
def test_checkpoints_are_due_by_steps_and_by_epochs(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_steps: int,
    every_epochs: int, saved: list[int],
) -> None:  # fmt: skip
    due = {"checkpoint_every_steps": every_steps, "checkpoint_every_epochs": every_epochs}
    trainer = trainer_with_log(people, tmp_path, settings.model_copy(update=due))
    steps: list[int] = []
    monkeypatch.setattr(trainer.checkpoints, "save", steps.append)

    def learn_nothing(batch: object) -> None:
        numbers = [1.0] * (len(trainer.criterion.terms) + 1)
        trainer._unread.append((trainer.step, 0.1, torch.tensor([*numbers, 0.0, 1.0, 1.0])))
        trainer.step += 1

    monkeypatch.setattr(trainer, "train_step", learn_nothing)
    trainer.train(lambda _: {}, lambda *_: None)
    assert steps == saved


def test_when_that_fails_too_it_ends_and_names_the_images(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda call: call >= 4)
    mosaic = settings.augment.model_copy(update={"mosaic_probability": 1.0})
    trainer = trainer_with_log(people, tmp_path, settings.model_copy(update={"augment": mosaic}))
    order = trainer.loader.batch_sampler.order  # type: ignore[union-attr]
    with pytest.raises(
        PosefoundryError, match=r"diverged in step [34]: .*Images of step [34]: .*train\.learning_rate"
    ) as fault:
        trainer.train(lambda _: {}, lambda *_: None)
    step = int(str(fault.value).split("step ")[1].split(":")[0])
    first = step % 3 * 8
    named = [trainer.loader.dataset.paths[index] for index in order()[first : first + 8]]  # type: ignore[attr-defined]
    assert all(path.name in str(fault.value) for path in named)
    assert f"{tmp_path / 'kept' / 'diverged.json'} lists all" in str(fault.value)
    kept = json.loads((tmp_path / "kept" / "diverged.json").read_text())
    assert (kept["step"], kept["values"]["gradient_norm"]) == (step, "nan")
    assert set(kept["values"]) == {"gradient_norm", "loss_total", *(f"loss_{name}" for name in trainer.criterion.terms)}
    assert [Path(image["image"]) for image in kept["images"]] == named
    for image in kept["images"]:
        assert image["made_of"][0] == image["image"]
        assert len(image["made_of"]) > 2, "a mosaic is of four"
    assert CheckpointFolder(tmp_path / "kept", 2).read_newest() is not None


def test_an_exploding_gradient_is_told_from_a_large_one() -> None:
    guard = StepGuard(nn.BatchNorm1d(2), gradient_clip_norm=10.0)
    numbers = torch.ones(3)
    assert guard.judge(numbers, torch.tensor(1e6))  # the first: nothing to compare it with
    guard.load_state_dict({"usual_norm": torch.tensor(20.0)})
    assert guard.judge(numbers, torch.tensor(20.0 * EXPLOSION_FACTOR))
    guard.load_state_dict({"usual_norm": torch.tensor(20.0)})
    assert not guard.judge(numbers, torch.tensor(21.0 * EXPLOSION_FACTOR))
    guard.load_state_dict({"usual_norm": torch.tensor(0.1)})  # small as it was, clipping tames this one
    assert guard.judge(numbers, torch.tensor(500.0))
    assert not guard.judge(torch.tensor([1.0, math.inf, 1.0]), torch.tensor(0.1))


def test_statistics_are_selected_without_touching_what_is_not_a_number() -> None:
    norm = nn.BatchNorm1d(2)
    guard = StepGuard(norm, gradient_clip_norm=10.0)
    guard.remember()
    norm.running_mean.fill_(math.nan)
    guard._keep_statistics_if(torch.tensor(False))
    assert norm.running_mean.tolist() == [0, 0]
    guard.remember()
    norm.running_mean.fill_(-1.5)
    guard._keep_statistics_if(torch.tensor(True))
    assert norm.running_mean.tolist() == [-1.5, -1.5]
    assert norm.running_var.tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["adamw", "sgd", "musgd"])
def test_what_a_gpu_decides_unasked_is_what_the_host_would(settings: Train, kind: str) -> None:
    """The fused optimisers heed `found_inf` on CPUs too."""
    changes = {"optimizer": kind, "weight_decay": 0.01}
    torch.manual_seed(0)
    asked = build_model("yolov8n-pose")
    unasked = copy.deepcopy(asked)
    models, guards = (asked, unasked), [StepGuard(model, 10.0) for model in (asked, unasked)]
    optimizers = [build_optimizer(model, settings.model_copy(update=changes)) for model in models]
    for good, gradient in ((True, 0.1), (False, math.nan), (True, -0.2)):
        for model, guard, optimizer in zip(models, guards, optimizers, strict=True):
            guard.remember()
            for statistic in guard.statistics:
                statistic.add_(gradient)
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            take = guard.step if model is asked else guard._step_unasked
            take(optimizer, torch.tensor(good))
    for name, tensor in asked.state_dict().items():
        assert torch.equal(tensor, unasked.state_dict()[name]), name
    for one, other in zip(
        tree_leaves(optimizers[0].state_dict()), tree_leaves(optimizers[1].state_dict()), strict=True
    ):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
