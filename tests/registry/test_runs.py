import json
import math
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from unittest.mock import ANY

import cv2
import numpy as np
import pytest

from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.registry import metric_sender, runs, store
from posefoundry.registry.runs import TrainingRun, flatten, log_to_run


@pytest.fixture
def run_file(project):
    with TrainingRun.start("people", "a run", {}) as run:
        run.write_run_file(project / "run.json")
    return project / "run.json"


def run_of(run_id):
    return store.client().get_run(run_id)


def test_a_run_keeps_parameters_metrics_tags_and_ends_finished(project):
    params = {"train": {"loss": {"box": 7.5}, "weights": None}, "long": "x" * 9000}
    with TrainingRun.start("people", "a run", params, {"colour": "blue"}) as run:
        run.log_metrics({"val_oks_ap": 0.25, "val_oks_ap_m": None}, step=1)
        run.log_metrics({"val_oks_ap": 0.5}, step=2)
    told = run_of(run.run_id)
    assert told.info.status == "FINISHED"
    assert told.info.run_name == "a run"
    assert told.data.params["train.loss.box"] == "7.5"
    assert told.data.params["train.weights"] == "None"
    assert len(told.data.params["long"]) == 6000
    assert told.data.metrics == {"val_oks_ap": 0.5}
    history = store.client().get_metric_history(run.run_id, "val_oks_ap")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5)]
    assert told.data.tags["colour"] == "blue"
    assert {"system.python", "system.cpu", "system.torch", "stage.train"} <= told.data.tags.keys()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (StoppedError, "KILLED")],
)
def test_a_run_that_ends_early_says_how(error, status, project):
    with pytest.raises(error), TrainingRun.start("people", "a run", {}) as run:
        raise error
    assert run_of(run.run_id).info.status == status
    assert "stage.train" not in run_of(run.run_id).data.tags


def test_the_run_of_a_killed_process_is_closed_by_the_next(project):
    program = (
        "import os, signal; from posefoundry.registry.runs import TrainingRun;"
        "print(TrainingRun.start('people', 'killed', {}).run_id, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    assert run_of(killed).info.status == "RUNNING"
    with TrainingRun.start("people", "alive", {}) as alive, TrainingRun.start("people", "next", {}):
        assert run_of(killed).info.status == "KILLED"
        assert run_of(alive.run_id).info.status == "RUNNING"


def test_pictures_keep_their_colours(project):
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    with TrainingRun.start("people", "a run", {}) as run:
        run.log_image(red, "batches/first")
        run.log_artifact(project / "dvc.yaml", "code")
    folder = project / "mlartifacts" / "people" / run.run_id / "artifacts"
    assert cv2.imread(str(folder / "images" / "batches" / "first.png"))[0, 0].tolist() == [0, 0, 255]
    assert (folder / "code" / "dvc.yaml").is_file()


def test_the_dataset_is_an_input_with_its_dvc_hash(project):
    digest = "0123456789abcdef0123456789abcdef.dir"
    (project / "dvc.lock").write_text(f"stages: {{convert: {{outs: [{{path: data/yolo, md5: {digest}}}]}}}}")
    with TrainingRun.start("people", "a run", {}) as run:
        run.log_dataset(project.__class__("data/yolo"))
    [entry] = run_of(run.run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.dataset.source_type) == ("data/yolo", digest, "dvc")
    assert json.loads(entry.dataset.source)["dvc_hash"] == digest
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "training"}


@contextmanager
def refusing_metrics(run):
    """A store that takes no metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run._client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        yield


@contextmanager
def silent_server(monkeypatch):
    """A server that accepts connections and never answers, and did answer when the training began."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setattr(store, "_reached", {uri})
        yield


def steps_told(run_id, key="loss"):
    return [point.step for point in store.client().get_metric_history(run_id, key)]


def test_a_store_that_goes_away_does_not_end_the_training(project, monkeypatch, capsys):
    monkeypatch.setattr(metric_sender, "RETRY_AFTER_S", 0.01)
    with TrainingRun.start("people", "a run", {}) as run:
        with refusing_metrics(run):
            run.log_metrics({"loss": 2.0}, step=1)
            assert not run._metrics.flush(0.5)
        run.log_metrics({"loss": 1.0}, step=2)
    assert capsys.readouterr().err.count("could not record metrics: gone") == 1
    assert steps_told(run.run_id) == [1, 2]


def test_metrics_outlive_a_kill_and_the_run_stays_the_same(project, capsys):
    kept_in = project / "checkpoints"
    killed = TrainingRun.start("people", "a run", {}, kept_in=kept_in)
    killed.log_metrics({"loss": 3.0}, step=0)
    assert killed._metrics.flush(20)
    with refusing_metrics(killed):
        killed.log_metrics({"loss": 2.0}, step=1)
        killed._metrics.close()
    with (kept_in / "mlflow_metrics.jsonl").open("a") as stream:
        stream.write('{"points": [["loss", 1.')  # the line it was killed at

    with TrainingRun.start("people", "a run", {}, kept_in=kept_in) as again:
        assert run_of(again.run_id).info.status == "RUNNING"
        for step in (1, 2):  # the step after its last checkpoint is trained and told again
            again.log_metrics({"loss": 2.0 - step}, step=step)
    assert again.run_id == killed.run_id
    assert steps_told(again.run_id) == [0, 1, 2]
    assert run_of(again.run_id).info.status == "FINISHED"


def test_a_run_that_was_deleted_meanwhile_is_told_anew(project):
    kept_in = project / "checkpoints"
    with TrainingRun.start("people", "a run", {}, kept_in=kept_in) as lost:
        lost.log_metrics({"loss": 3.0}, step=0)
    store.client().delete_run(lost.run_id)
    with TrainingRun.start("people", "a run", {}, kept_in=kept_in) as again:
        again.log_metrics({"loss": 2.0}, step=1)
    assert again.run_id != lost.run_id
    assert steps_told(again.run_id) == [0, 1]


def test_a_training_goes_on_while_the_store_is_away(project, monkeypatch, capsys):
    kept_in = project / "checkpoints"
    killed = TrainingRun.start("people", "a run", {}, kept_in=kept_in)
    run_file = project / "models" / "run.json"
    with monkeypatch.context() as patch:
        patch.setattr(store, "client", lambda: (_ for _ in ()).throw(PosefoundryError("nobody answers")))
        with TrainingRun.start("people", "a run", {}, kept_in=kept_in) as run:
            run.write_run_file(run_file)
            run.log_metrics({"loss": 3.0}, step=0)
    assert run.run_id == killed.run_id
    assert "nobody answers" in capsys.readouterr().err
    assert steps_told(run.run_id) == []
    for _ in range(2):
        log_to_run(run_file, {"oks_ap": 0.5})
    assert steps_told(run.run_id) == [0]


def test_nothing_waits_for_a_server_that_accepts_and_never_answers(project, monkeypatch):
    with silent_server(monkeypatch):
        run = TrainingRun("0123456789abcdef", "people", "a run")
        assert run._client
        began = time.monotonic()
        run.log_dataset(project / "data")
        run.log_image(np.zeros((4, 4, 3), np.uint8), "batch")
        run.log_artifact(project / "dvc.yaml")
        run.log_metrics({"loss": 1.0}, step=0)
        assert time.monotonic() - began < 20  # of the 60 s that one request may last
        assert run._errands.wait(0.5) == 3
        assert len(run._metrics.close(timeout_s=0.5)) == 1


def test_a_requested_stop_waits_little_for_a_server_that_never_answers(project, monkeypatch, capsys):
    monkeypatch.setattr(runs, "STOPPING_S", 0.2)
    journal = project / "journal.jsonl"
    with silent_server(monkeypatch):
        run = TrainingRun("0123456789abcdef", "people", "a run", journal)
        assert run._client
        began = time.monotonic()
        with pytest.raises(StoppedError), run:
            run.log_metrics({"loss": 1.0}, step=0)
            run.log_artifact(project / "dvc.yaml")
            raise StoppedError
        assert time.monotonic() - began < 20  # of the 60 s that one request may last
    assert "the run's end (KILLED) could not be recorded" in capsys.readouterr().err
    assert metric_sender.read_journal(journal)[:2] == ([metric_sender.Point("loss", 1.0, ANY, 0)], 0)
    with journal.open("ab") as stream:
        stream.write(b"\xff\xfe\x80\n")
    assert metric_sender.read_journal(journal)[:2] == ([metric_sender.Point("loss", 1.0, ANY, 0)], 0)


def test_a_skipped_step_that_waits_for_the_next_stage_does_not_break_it(project):
    run_file = project / "run.json"
    with TrainingRun.start("people", "a run", {}) as run:
        run.write_run_file(run_file)
        with refusing_metrics(run):
            run.log_metrics({"loss": math.nan, "box": 1.0}, step=10)
            run._metrics.close()
    assert (project / "mlflow_unsent.json").is_file()
    log_to_run(run_file, {"oks_ap": 0.5})
    assert steps_told(run.run_id, "loss") == steps_told(run.run_id, "box") == [10]
    assert math.isnan(run_of(run.run_id).data.metrics["loss"])


def test_a_later_stage_adds_to_the_run(run_file, project):
    run_id = log_to_run(
        run_file, {"oks_ap": 0.5, "oks_ap_m": None}, [project / "dvc.yaml"], {"verdict": "good"}, stage="gate"
    )
    assert run_id == json.loads(run_file.read_text())["run_id"]
    told = run_of(run_id)
    assert told.data.metrics == {"oks_ap": 0.5}
    assert told.data.tags["verdict"] == "good"
    assert told.data.tags["stage.gate"].endswith("+00:00")
    assert told.info.status == "FINISHED"
    assert (project / "mlartifacts" / "people" / run_id / "artifacts" / "gate" / "dvc.yaml").is_file()


@pytest.mark.parametrize("how", ["unknown to the store", "deleted"])
def test_a_run_that_is_gone_is_replaced_once(how, run_file, capsys):
    content = json.loads(run_file.read_text())
    if how == "deleted":
        store.client().delete_run(content["run_id"])
    else:
        content["run_id"] = "0" * 32
        run_file.write_text(json.dumps(content))
    before = run_file.read_bytes()
    replacement = log_to_run(run_file, {"oks_ap": 0.5})
    assert "takes its place" in capsys.readouterr().out
    assert log_to_run(run_file, {"box_ap": 0.7}) == replacement != content["run_id"]
    told = run_of(replacement)
    assert told.data.metrics == {"oks_ap": 0.5, "box_ap": 0.7}
    assert told.data.tags["restored_from"] == content["run_id"]
    assert told.info.run_name == "a run"
    assert run_file.read_bytes() == before


def test_a_run_file_that_names_no_run_is_refused(project):
    (project / "run.json").write_text('{"experiment": "people"}')
    with pytest.raises(PosefoundryError, match=r"expected run_id and experiment.*dvc repro --force train"):
        log_to_run(project / "run.json", {})


def test_parameters_flatten_to_dotted_names():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": "1", "d": "[1, 2]"}
