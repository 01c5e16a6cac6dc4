"""`posefoundry recipe` trains, judges and compares."""

import json
import os
import signal

import pytest
import yaml

from posefoundry.commands.recipe import recipe
from posefoundry.errors import PosefoundryError, RejectedError, StoppedError
from posefoundry.stages import ingest
from posefoundry.training import batch_size
from posefoundry.training.loop import Trainer

TINY = {
    "description": "a few small pictures",
    "tier": "instant",
    "ingest": {"synthetic": {"image_size_px": 64, "train_images": 8, "val_images": 2, "test_images": 4}},
    "train": {
        "model": "yolov8n-pose",
        "epochs": 1,
        "batch_size": 4,
        "image_size_px": 64,
        "precision": "float32",
        "warmup_epochs": 0,
    },
    "expected": {"oks_ap": {"value": 0.0, "tolerance": 0.0}},
    "origin": "anything will do",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with two recipes, the first of them run."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe(["tiny", "out=ran"])
    return folder


def test_result_is_kept(workplace):
    result = json.loads((workplace / "ran/tiny/result.json").read_text())
    assert result["as_expected"] is True
    assert result["measured"]["oks_ap"] >= 0
    assert result["recipe"]["train"]["epochs"] == 1
    assert (workplace / "ran/tiny/weights/best.safetensors").is_file()


def test_too_low_is_a_verdict_and_data_are_kept(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    with pytest.raises(RejectedError, match=r"tiny: oks_ap 0\.\d+, expected >= 0\.850 \(0\.900 - 0\.050\)"):
        recipe(["tiny", "out=ran", "expected.oks_ap.value=0.9", "expected.oks_ap.tolerance=0.05"])
    assert "Using the data made before" in capsys.readouterr().out
    assert json.loads((workplace / "ran/tiny/result.json").read_text())["as_expected"] is False


def test_a_second_one_refuses_while_the_first_makes_its_data(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    make = ingest.run

    def start_another(*_, **__):
        monkeypatch.setattr(ingest, "run", make)
        recipe(["tiny", "out=twice"])

    monkeypatch.setattr(ingest, "run", start_another)
    with pytest.raises(PosefoundryError, match=r"twice/tiny/\.recipe\.lock: another process works here\. Let it end"):
        recipe(["tiny", "out=twice"])


@pytest.fixture
def stopped(workplace, monkeypatch):
    """Runs the recipe until a signal stops it after its first step."""
    monkeypatch.chdir(workplace)
    step = Trainer.train_step

    def step_and_be_told_to_end(trainer, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        step(trainer, batch)

    def stop(*words):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", step_and_be_told_to_end)
            with pytest.raises(StoppedError, match="stopped by a signal after step 1 of 2"):
                recipe(["tiny", *words])

    return stop


def test_a_recipe_that_was_stopped_goes_on(workplace, stopped, capsys):
    stopped("out=stopped")
    recipe(["tiny", "out=stopped"])
    assert "Going on after step 1 of 2" in capsys.readouterr().out
    assert not list((workplace / "stopped/tiny/checkpoints").glob("*/*"))


def test_a_split_without_images_is_told_before_the_training(workplace, monkeypatch):
    """What the recipe learns from is here the source of another: all of its images, and none to test on."""
    monkeypatch.chdir(workplace)
    source = "{root: ran/tiny/data/raw, annotations: 'annotations/{split}.json', images: 'images/{split}', "
    files = workplace / "ran/tiny/data/raw/annotations"
    (files / "test.json").rename(files / "kept_aside.json")
    words = ["tiny", "out=untested", "ingest.source=coco", f"ingest.coco={source}test_fraction: 0.0}}"]
    try:
        with pytest.raises(PosefoundryError, match="expected images in the split to judge on, test, found none"):
            recipe(words)
        recipe([*words, "split=val"])
    finally:
        (files / "kept_aside.json").rename(files / "test.json")
    result = json.loads((workplace / "untested/tiny/result.json").read_text())
    assert result["recipe"]["split"] == "val"
    assert len(list((workplace / "untested/tiny/data/yolo/images/train").iterdir())) == 8


def test_start_is_the_measure_of_fine_tuning(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    start = workplace / "ran/tiny/weights/best.safetensors"
    words = [f"train.weights={start}", "expected.oks_ap={as_at_start: true, tolerance: 0.02}"]
    recipe(["tiny", "out=tuned", *words])
    result = json.loads((workplace / "tuned/tiny/result.json").read_text())
    assert set(result["start"]) == set(result["measured"])
    assert "- 0.02" in capsys.readouterr().out


def test_a_batch_that_fits_is_found(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    recipe(["tiny", "out=fitting", "train.batch_size=auto"])
    assert "batches of 16 images" in capsys.readouterr().out


def test_a_stopped_recipe_goes_on_with_the_batch_that_was_found_first(stopped, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(batch_size, "MOST_ON_CPU", 4)
        stopped("out=found", "train.batch_size=auto")
    recipe(["tiny", "out=found", "train.batch_size=auto"])  # now another number would be found
    assert "Going on after step 1 of 2" in capsys.readouterr().out


def test_list_names_tier_and_expectation(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    recipe([])
    printed = capsys.readouterr().out
    assert "tiny" in printed
    assert "instant" in printed
    assert "oks_ap >= 0.000 (0.000 - 0.000)" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["huge"], "expected one of tiny, got 'huge'"),
        (["tier=medium"], "expected one of instant, short, full, got 'medium'"),
        (["tiny", "train.epoch=2"], "did you mean 'epochs'"),
    ],
)
def test_faults_are_named(workplace, monkeypatch, words, message):
    monkeypatch.chdir(workplace)
    with pytest.raises(PosefoundryError, match=message):
        recipe(words)
