import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from posefoundry import cli
from posefoundry.registry.ledger import history
from posefoundry.registry.registration import Evidence, register_version
from posefoundry.registry.runs import TrainingRun

COMMANDS = ("promote", "rollback", "versions", "history", "ui", "predict")


@pytest.fixture
def run(command_line):
    return command_line


def test_what_the_system_refuses_is_a_message(run, tmp_path):
    (tmp_path / "file").touch()
    status, _, told = run("train", "model=yolov8n-pose.yaml", "data=coco8-pose.yaml", f"project={tmp_path / 'file'}")
    assert status == 2 and told.startswith("posefoundry: ") and "Traceback" not in told


@pytest.fixture
def register(project, trained, tmp_path):
    """Registers a version; each call makes another one."""

    def act(model_name="posefoundry"):
        with TrainingRun.start("people", "a run", {}) as training_run:
            pass
        evidence = Evidence(
            weights=trained / "best.safetensors",
            onnx=trained / "model.onnx",
            decision=trained / "decision.json",
            metrics={"oks_ap": 0.61},
            latency_p50_ms=12.3,
            example_image=trained / "street.png",
        )
        return register_version(model_name, "people", training_run.run_id, evidence)

    return act


def test_help_names_every_command():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"posefoundry {command}" in result.output.split("Example")[1]


def test_help_waits_for_nothing_heavy():
    program = (
        "import sys; from typer.testing import CliRunner; from posefoundry import cli;"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0;"
        "print({'mlflow', 'torch', 'numpy', 'cv2', 'pydantic', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_installed_command_answers():
    command = Path(sys.executable).with_name("posefoundry")
    done = subprocess.run([command, "promote"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Missing argument" in done.stderr


def test_the_story_of_two_versions(run, register):
    register()
    status, out, err = run("promote", "candidate", "--why", "the first")
    assert (status, err) == (0, "")
    assert "version 1 is in production, previous is none" in out
    register()
    status, out, err = run("promote", "2", "--why", "better")
    assert status == 0
    assert "version 2 is in production, previous is 1" in out
    assert "the gate compared version 2 with nothing, but in production is version 1" in err
    status, out, _ = run("versions")
    [second, first] = [line for line in out.splitlines() if "passed" in line]
    assert ("candidate, production" in second) and ("0.6100" in second) and ("12.30" in second)
    assert ("previous" in first) and ("candidate" not in first)
    status, out, _ = run("rollback", "--why", "misses cyclists")
    assert "version 1 is in production, previous is 2" in out
    status, out, err = run("history")
    assert (status, err) == (0, "")
    assert all(part in out for part in ("the first", "better", "misses cyclists", "Ada <ada@example.org>", "rollback"))


@pytest.mark.parametrize(
    ("compared_with", "aliases", "is_told"),
    [
        ("1", ("candidate",), True),
        ("2", ("candidate",), False),
        ("", ("candidate",), False),
        ("1", ("candidate", "production"), False),
        ("1", (), False),
    ],
)
def test_a_candidate_that_was_compared_with_an_older_production_is_told(
    run, monkeypatch, compared_with, aliases, is_told
):
    from posefoundry.registry import versions

    def version(number, aliases, compared_with):
        tags = {"gate.compared_with": compared_with}
        return versions.ModelVersion("posefoundry", number, aliases, tags, None, datetime.now(UTC))

    production = version("2", () if "production" in aliases else ("production",), "1")
    found = [version("3", aliases, compared_with), production]
    monkeypatch.setattr(versions, "list_versions", lambda name: found)
    status, out, _ = run("versions")
    assert status == 0
    told = "The gate compared version 3 with version 1, but in production is version 2.\nTo judge it again where it"
    assert (told in out) is is_told


def test_a_refusal_is_one_message_and_a_status(run, project):
    status, out, err = run("promote", "candidate", "--why", "x")
    assert (status, out) == (2, "")
    assert err.startswith("posefoundry: Expected a registered model 'posefoundry'")
    assert "Traceback" not in err


def test_empty_tables_say_so(run, project):
    assert "No version of posefoundry is registered yet" in run("versions")[1]
    assert "Nothing of posefoundry was ever promoted" in run("history")[1]


def test_a_broken_history_is_told_with_a_status(run, register):
    register()
    register()
    run("promote", "1", "--why", "x")
    from posefoundry.registry import store

    store.client().set_registered_model_alias("posefoundry", "production", "2")
    status, _, err = run("history")
    assert status == 1
    assert "the alias was moved without a record" in err


def test_the_model_name_comes_from_the_parameters(run, register, project):
    (project / "params.yaml").write_text("register: {model_name: dancers}\n")
    register("dancers")
    assert run("promote", "candidate", "--why", "x")[0] == 0
    assert len(history("dancers").records) == 1
    assert "No version of other" in run("versions", "--model-name", "other")[1]


def test_faulty_parameters_are_named(run, project):
    (project / "params.yaml").write_text("register: {model_nam: dancers}\n")
    status, _, err = run("versions")
    assert status == 2
    assert "did you mean 'model_name'?" in err


def test_predict_draws_a_folder_and_survives_a_bad_file(run, trained, project):
    photos = project / "photos"
    photos.mkdir()
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(photos / name), cv2.imread(str(trained / "street.png")))
    (photos / "bad.jpg").write_bytes(b"not an image")
    (photos / "notes.txt").write_text("x")
    before = {path: path.read_bytes() for path in photos.iterdir()}
    status, out, err = run("predict", photos, "--weights", trained / "model.onnx", "--out", "drawn")
    assert status == 1
    assert f"Skipped {photos / 'bad.jpg'}: expected an image" in err
    assert f"Model: {trained / 'model.onnx'}" in out
    assert out.splitlines()[-1].endswith("persons in 2 images, drawn in drawn/; 1 failed")
    assert sorted(path.name for path in (project / "drawn").iterdir()) == ["a.png", "b.jpg"]
    drawn, original = cv2.imread("drawn/a.png"), cv2.imread(str(photos / "a.png"))
    assert drawn.shape == original.shape
    assert np.any(drawn != original)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


def test_predict_uses_production_else_the_trained_weights(run, register, trained, project):
    image = trained / "street.png"
    status, _, err = run("predict", image)
    assert status == 2
    assert "Expected a model in production or models/train/best.safetensors, found neither" in err
    (project / "models/train").mkdir(parents=True)
    for name in ("best.safetensors", "best.json"):
        shutil.copy(trained / name, project / "models/train" / name)
    status, out, _ = run("predict", image)
    assert status == 0
    assert "best.safetensors (nothing is in production)" in out
    assert "0 persons in 1 image, drawn in predictions/" in out
    register()
    run("promote", "candidate", "--why", "x")
    status, out, _ = run("predict", image)
    assert "Model: models:/posefoundry/1 (model.onnx)" in out
    for uri in ("models:/posefoundry@candidate", "models:/posefoundry/1"):
        assert "Model: models:/posefoundry/1 (model.onnx)" in run("predict", image, "--weights", uri)[1]


def test_predict_without_a_store_makes_none(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run("predict", trained / "street.png")[0] == 2
    assert list(tmp_path.glob("mlflow.db")) == []


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("nowhere", "drawn", "nowhere: expected an image or a folder of images, found nothing there"),
        ("empty", "drawn", "empty: expected images"),
        ("photos", "photos", "Expected another folder for the drawn images than photos"),
        ("photos/a.png", "photos", "Expected another folder for the drawn images than photos"),
    ],
)
def test_predict_refuses(source, out, message, run, trained, project):
    (project / "empty").mkdir()
    (project / "photos").mkdir()
    shutil.copy(trained / "street.png", project / "photos" / "a.png")
    status, _, err = run("predict", source, "--out", out, "--weights", trained / "model.onnx")
    assert status == 2
    assert message in err
    assert (project / "photos" / "a.png").read_bytes() == (trained / "street.png").read_bytes()


def test_ui_refuses_a_taken_port(run, project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = run("ui", "--port", port)
    assert status == 2
    assert f"Expected port {port} to be free" in err


def test_ui_of_a_server_is_its_own(run, project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hidden@tracking.example.org")
    assert run("ui") == (0, "The store is a server with pages of its own: https://tracking.example.org\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ui_serves_until_it_is_ended(ending, project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "posefoundry.cli", "ui", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                assert answer.status == 200
            os.kill(server.pid, ending)
            assert server.wait(20) == 0
        finally:
            server.kill()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
