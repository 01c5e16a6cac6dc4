"""Interrupted equals uninterrupted; what is not whole is passed over; what cannot be written does not stop anything."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.inference.images import read_image_bgr
from posefoundry.models.weights import load_model
from posefoundry.training import checkpoint, session, validation
from posefoundry.training.checkpoint import (
    CheckpointFolder,
    Checkpoints,
    describe_others,
    random_state,
    set_random_state,
)
from posefoundry.training.distributed import ProcessGroup
from posefoundry.training.observer import FileLog, Observer
from posefoundry.training.session import BestSoFar, train_model

ALONE = ProcessGroup(rank=0, n_processes=1, device=torch.device("cpu"))


class KilledError(Exception):
    """Stands for a kill: nothing catches it, nothing more is written."""


class KillAfter(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        if step == self.step:
            raise KilledError


def run(
    people: Path, folder: Path, settings: Train, *more: Observer, stop: Callable[[], bool] = lambda: False
) -> BestSoFar:
    return train_model(
        settings,
        dataset_yaml=people / "yolo" / "dataset.yaml",
        val_annotations=people / "raw" / "annotations" / "val.json",
        weights_folder=folder / "weights",
        group=ALONE,
        observers=[FileLog(folder), *more],
        checkpoints=CheckpointFolder(folder / "checkpoints" / "this", settings.keep_checkpoints, {"who": "this"}),
        should_stop=stop,
    )


def weights(folder: Path, name: str) -> bytes:
    return (folder / "weights" / f"{name}.safetensors").read_bytes()


def columns(path: Path, *left_out: str) -> list[dict[str, str]]:
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [{key: value for key, value in zip(header, row, strict=True) if key not in left_out} for row in rows]


TIMES = ("seconds", "images_per_second", "loader_wait_share", "peak_memory_mib", "validation_seconds")


@pytest.fixture
def settings(settings: Train) -> Train:
    # 24 images in batches of 8: 3 steps an epoch, 9 in all, a checkpoint every second one.
    return settings.model_copy(update={"epochs": 3, "checkpoint_every_steps": 2, "validate_every_epochs": 2})


@pytest.fixture(scope="module")
def uninterrupted(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    base = Train(
        model="yolov8n-pose", batch_size=8, image_size_px=64, device="cpu", precision="float32", optimizer="adamw",
        learning_rate=0.002, warmup_epochs=0.5, epochs=3, checkpoint_every_steps=2, validate_every_epochs=2,
    )  # fmt: skip
    run(people, folder, base)
    (folder / "settings.json").write_text(base.model_dump_json())
    return folder


@pytest.fixture
def same(uninterrupted: Path) -> Train:
    return Train(**json.loads((uninterrupted / "settings.json").read_text()))


def test_interrupted_equals_uninterrupted(people: Path, same: Train, uninterrupted: Path, tmp_path: Path) -> None:
    step = random.SystemRandom().randrange(9)
    for kill_at in (step, 8):
        with pytest.raises(KilledError):
            run(people, tmp_path, same, KillAfter(kill_at))
    run(people, tmp_path, same)
    for name in ("best", "last"):
        assert weights(tmp_path, name) == weights(uninterrupted, name), f"killed after step {step}"
    for log in ("steps.csv", "results.csv"):
        assert columns(tmp_path / log, *TIMES) == columns(uninterrupted / log, *TIMES), f"killed after step {step}"


@pytest.mark.slow
def test_interrupted_equals_uninterrupted_in_bfloat16_on_two_threads_with_a_loader_process(
    people: Path, same: Train, use_threads: Callable[[int], None], tmp_path: Path
) -> None:
    """Where the processor has no bfloat16 of its own, torch computes it by float32, as exactly."""
    use_threads(2)
    settings = same.model_copy(update={"precision": "bfloat16", "loader_workers": 1, "epochs": 2})
    run(people, tmp_path / "whole", settings)
    with pytest.raises(KilledError):
        run(people, tmp_path / "broken", settings, KillAfter(4))
    assert CheckpointFolder(tmp_path / "broken" / "checkpoints" / "this", 2).steps() == [3, 4]
    run(people, tmp_path / "broken", settings)
    for name in ("best", "last"):
        assert weights(tmp_path / "broken", name) == weights(tmp_path / "whole", name)
    logs = [columns(tmp_path / of / "steps.csv", *TIMES) for of in ("broken", "whole")]
    assert logs[0] == logs[1]


def test_the_same_training_gives_the_same_weights(
    people: Path, same: Train, uninterrupted: Path, tmp_path: Path
) -> None:
    random.seed()
    np.random.seed()
    torch.seed()  # what was drawn before a training is nothing to it
    run(people, tmp_path, same)
    for name in ("best", "last"):
        assert weights(tmp_path, name) == weights(uninterrupted, name)
    assert columns(tmp_path / "steps.csv", *TIMES) == columns(uninterrupted / "steps.csv", *TIMES)


def test_a_compiled_training_leaves_what_a_plain_one_leaves(
    people: Path, same: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What matters is that the model is one graph, the names of weights and the way back from a checkpoint, not the
    # code that a compiler makes.
    compiled, compile_ = [], torch.compile

    def capture(module: torch.nn.Module) -> object:
        compiled.append(module)
        return compile_(module, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", capture)
    settings = same.model_copy(update={"compile": True})
    with pytest.raises(KilledError):
        run(people, tmp_path, settings, KillAfter(4))
    run(people, tmp_path, settings)
    assert len(compiled) == 2
    for name in ("best", "last"):
        assert weights(tmp_path, name) == weights(uninterrupted, name)
    model, _ = load_model(tmp_path / "weights" / "last.safetensors")
    state = CheckpointFolder(tmp_path / "checkpoints" / "this", 2).read_newest()
    assert state is not None
    assert set(state["shared"]["trainer"]["model"]) == set(model.state_dict())


def test_last_few_and_best_are_kept_with_a_readable_sidecar(uninterrupted: Path) -> None:
    folder = uninterrupted / "checkpoints" / "this"
    sidecars = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    # 6: the best when the last was written. Nobody is found yet, so after its validation the last is the best.
    assert sorted(sidecars) == [f"step-{step:09d}" for step in (6, 8, 9)]
    assert json.loads((uninterrupted / "weights" / "best.json").read_text())["extra"]["epoch"] == 3
    assert {path.stem for path in folder.glob("*.pt")} == set(sidecars)
    last = sidecars["step-000000009"]
    assert (last["epoch"], last["epochs"], last["step_in_epoch"], last["steps"], last["processes"]) == (3, 3, 3, 9, 1)
    assert last["identity"] == {"who": "this"}
    assert not list(folder.glob(".*"))


def test_a_checkpoint_cut_short_or_altered_is_passed_over(
    people: Path, same: Train, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KilledError):
        run(people, tmp_path, same, KillAfter(7))
    newest = tmp_path / "checkpoints" / "this" / "step-000000006.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    run(people, tmp_path, same)
    told = capsys.readouterr()
    assert ".json. Skipping it." in told.err
    assert "Going on after step 4 of 9, in epoch 2." in told.out
    assert weights(tmp_path, "last") == weights(uninterrupted, "last")


def test_without_a_whole_checkpoint_it_starts_over_and_says_so(
    people: Path, settings: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KilledError):
        run(people, tmp_path, settings, KillAfter(0))
    (only,) = (tmp_path / "checkpoints" / "this").glob("*.pt")
    assert only.name == "step-000000000.pt"
    only.write_bytes(only.read_bytes()[:-1000])
    with pytest.raises(KilledError):
        run(people, tmp_path, settings, KillAfter(0))
    told = capsys.readouterr()
    assert ".json. Skipping it." in told.err
    assert "it starts over" in told.err
    assert "Going on" not in told.out


def test_divergence_before_the_first_checkpoint_is_due_leads_back_to_the_start(
    people: Path, settings: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, calls = torch.nn.utils.clip_grad_norm_, iter(range(1000))
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda *given, **more: clip(*given, **more) * (float("nan") if next(calls) < 5 else 1),
    )
    rare = settings.model_copy(update={"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "checkpoint_every_steps": 0})
    run(people, tmp_path, rare)
    assert "Going on from the checkpoint of step 0, with 0.5 times the learning rate" in capsys.readouterr().err
    rows = columns(tmp_path / "steps.csv")
    assert [(row["step"], row["skipped"]) for row in rows] == [(str(step), "0") for step in range(6)]
    assert float(rows[0]["lr"]) == pytest.approx(0.5 * rare.learning_rate)


def test_a_full_disk_costs_checkpoints_not_the_training(
    people: Path, same: Train, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    written, save = [], torch.save

    def save_until_full(state: object, stream: object) -> None:
        written.append(1)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        save(state, stream)

    def save_weights_when_there_is_room(path: Path, *given: object) -> None:
        names.append(path.stem)
        if len(names) < 4:
            raise OSError(28, "No space left on device")
        keep(path, *given)

    names, keep = [], session.save_weights
    monkeypatch.setattr(checkpoint.torch, "save", save_until_full)
    monkeypatch.setattr(session, "save_weights", save_weights_when_there_is_room)
    run(people, tmp_path, same)
    told = capsys.readouterr().err
    assert "No space left on device. The training goes on" in told
    assert "best weights of epoch 2 not written" in told
    assert names == ["last", "last", "best", "last", "best"]  # at the end there was room
    assert weights(tmp_path, "best") == weights(uninterrupted, "best")
    assert weights(tmp_path, "last") == weights(uninterrupted, "last")
    folder = tmp_path / "checkpoints" / "this"
    assert {path.stem for path in folder.iterdir()} == {"step-000000002"}  # 0 was given up to make room
    assert "MiB are free" in told
    assert CheckpointFolder(folder, 2).read_newest() is not None


def test_a_request_to_stop_leaves_a_checkpoint(people: Path, same: Train, uninterrupted: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(StoppedError, match="stopped by a signal after step 3 of 9; the next run goes on from there"):
        run(people, tmp_path, same, stop=lambda: next(asked))
    assert CheckpointFolder(tmp_path / "checkpoints" / "this", 2).steps() == [2, 3]
    run(people, tmp_path, same)
    assert weights(tmp_path, "last") == weights(uninterrupted, "last")


def test_what_a_kill_left_behind_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    for left_over in (".step-000000001.pt.partial", "step-000000002.pt"):
        (tmp_path / left_over).write_bytes(b"half")
    assert folder.write(3, {}, {}, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003.json", "step-000000003.pt"]


def test_an_older_checkpoint_makes_room_for_a_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, save = CheckpointFolder(tmp_path, 2), torch.save

    def save_where_there_is_room(state: object, stream: Any) -> None:
        if len(list(tmp_path.glob("step-*.pt"))) > 1:
            raise OSError(28, "No space left on device")
        save(state, stream)

    monkeypatch.setattr(checkpoint.torch, "save", save_where_there_is_room)
    assert all(folder.write(step, {}, {}, None) for step in (1, 2, 3, 4))
    assert folder.steps() == [3, 4]


def test_files_of_the_users_are_left_alone(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "linked" / "this", 1)
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    assert folder.write(1, {}, {}, None)
    for name in ("step-000000001.bak.pt", "step-mine.json", "step-mine.pt"):
        (folder.path / name).write_bytes(b"mine")
    assert folder.write(2, {}, {}, None)
    assert folder.steps() == [2] and folder.read_newest() == {}
    assert (folder.path / "step-000000001.bak.pt").exists() and (folder.path / "step-mine.pt").exists()
    folder.clear()
    assert (tmp_path / "linked").is_symlink() and not folder.path.exists()


def test_a_checkpoint_is_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CheckpointFolder(tmp_path / "a", 2)
    assert folder.write(1, {"value": torch.ones(2)}, {}, None)
    assert folder.write(2, {"code": pytest.raises}, {}, None)
    state = folder.read_newest()
    assert state is not None
    assert state["value"].tolist() == [1, 1]
    assert "step-000000002.pt: the checkpoint cannot be read" in capsys.readouterr().err


def test_other_trainings_are_named_with_what_differs(tmp_path: Path) -> None:
    theirs = CheckpointFolder(tmp_path / "theirs", 2, {"train.learning_rate": 0.1, "code": "a", "data": "b"})
    theirs.write(7, {}, {}, None)
    ours = CheckpointFolder(
        tmp_path / "ours", 2, {"train.learning_rate": 0.2, "code": "a", "train.new": 1, "data": "b"}
    )
    (sentence,) = describe_others(ours)
    assert sentence.endswith("theirs (step 7) belongs to another training (different: train.learning_rate, train.new).")
    theirs.clear()
    assert describe_others(ours) == []
    assert not tmp_path.exists()


def draw() -> list[float]:
    """Draws some numbers from each generator, an odd number of normal ones: the next then lies in store."""
    return [
        float(number)
        for _ in range(3)
        for number in (random.random(), random.gauss(), np.random.rand(), np.random.standard_normal(), torch.rand(()))
    ]


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_random_generators_come_back() -> None:
    state = random_state()
    drawn = draw()
    set_random_state(state)
    assert drawn == draw()


def test_each_process_goes_on_drawing_as_if_uninterrupted(
    pair: tuple[ProcessGroup, ProcessGroup], tmp_path: Path
) -> None:
    checkpoints = [Checkpoints(CheckpointFolder(tmp_path / "a", 2), group, {}, {}) for group in pair]
    uninterrupted = {}
    for rank in (1, 0):
        seed_all(rank)
        draw()
        checkpoints[rank].save(1)
        uninterrupted[rank] = draw()
    assert set(uninterrupted[0]).isdisjoint(uninterrupted[1])
    for rank in (0, 1):
        seed_all(2)
        assert checkpoints[rank].restore()
        assert draw() == uninterrupted[rank]
    # With another number of processes each keeps the numbers of its seed.
    seed_all(3)
    own = draw()
    seed_all(3)
    assert Checkpoints(CheckpointFolder(tmp_path / "a", 2), ALONE, {}, {}).restore()
    assert draw() == own


def test_training_ends_when_validation_no_longer_improves(
    people: Path,
    settings: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read: list[str] = []
    monkeypatch.setattr(validation, "read_image_bgr", lambda path: read.append(path.name) or read_image_bgr(path))
    # A model that has learnt for a few steps finds nobody: no validation after the first is better.
    patient = settings.model_copy(update={"epochs": 9, "validate_every_epochs": 1, "early_stop_epochs": 2})
    best = run(people, tmp_path, patient)
    assert best.epoch == 3
    assert "Ending after epoch 3 of 9: val OKS AP has not risen for 2 epochs." in capsys.readouterr().out
    assert [row["epoch"] for row in columns(tmp_path / "results.csv")] == ["1", "2", "3"]
    val = [path.name for path in (people / "yolo" / "images" / "val").iterdir()]
    assert sorted(read) == sorted(2 * val), "once to judge them, however often, and once to draw on them"


def test_where_nobody_is_annotated_the_best_weights_are_the_last(
    people: Path,
    settings: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing = {"oks_ap": None, "oks_ap50": None, "box_ap": None}
    monkeypatch.setattr(validation.Validator, "__call__", lambda *_: nothing)
    patient = settings.model_copy(update={"epochs": 3, "validate_every_epochs": 1, "early_stop_epochs": 1})
    assert run(people, tmp_path, patient).epoch == 3
    assert weights(tmp_path, "best") == weights(tmp_path, "last")
    assert capsys.readouterr().err.count("Nobody is annotated on the val images") == 1


def test_frozen_layers_stay(people: Path, settings: Train, tmp_path: Path) -> None:
    frozen = settings.model_copy(update={"epochs": 1, "freeze_layers": 3, "warmup_epochs": 0})
    run(people, tmp_path / "learnt", frozen)
    model, _ = load_model(tmp_path / "learnt" / "weights" / "last.safetensors")
    torch.manual_seed(frozen.seed)
    from posefoundry.models import build_model

    start = build_model(frozen.model).state_dict()
    layers = {
        int(name.split(".")[1]) for name, value in model.state_dict().items() if not torch.equal(value, start[name])
    }
    assert layers.isdisjoint({0, 1, 2})
    assert 3 in layers
    with pytest.raises(PosefoundryError, match=r"fewer than the 23 layers of yolov8n-pose.*got 23"):
        run(people, tmp_path / "all", frozen.model_copy(update={"freeze_layers": 23}))
