"""The registry over an MLflow server, whose client answers and fails in other types than the embedded store."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.registry import store
from posefoundry.registry.ledger import history
from posefoundry.registry.promotion import promote, rollback
from posefoundry.registry.registration import register_version
from posefoundry.registry.runs import TrainingRun, log_to_run
from posefoundry.registry.versions import aliases_of, list_versions, production_weights


@pytest.fixture
def server(project, empty_store, tmp_path, monkeypatch):
    shutil.copy(empty_store, tmp_path / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", uri.rpartition(":")[2], "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "kept"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            _wait(uri)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(uri):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(uri)


@pytest.mark.slow
def test_the_whole_story_over_a_server(server, project, evidence, tmp_path):
    for number in "12":
        with TrainingRun.start("people", "a run", {"a": 1}) as run:
            run.log_metrics({"loss": 1.0}, step=1)
            run.log_dataset(project / "data")
            run.write_run_file(project / "run.json")
        assert log_to_run(project / "run.json", {"oks_ap": 0.5}, [project / "dvc.yaml"], stage="evaluate") == run.run_id
        version = register_version("posefoundry", "people", run.run_id, evidence)
        assert (version.version, version.aliases) == (number, ("candidate",))
        assert register_version("posefoundry", "people", run.run_id, evidence) == version
        promote("posefoundry", "candidate", why=f"reason {number}")
    rollback("posefoundry", why="worse")
    assert aliases_of(store.client(), "posefoundry") == {"candidate": "2", "production": "1", "previous": "2"}
    told = history("posefoundry")
    assert told.problems == ()
    assert [(r.action, r.from_version, r.to_version) for r in told.records] == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
    ]
    production = production_weights("posefoundry", tmp_path / "weights")
    assert production.weights.read_bytes() == evidence.weights.read_bytes()
    with store.fluent() as mlflow:
        model = mlflow.pyfunc.load_model("models:/posefoundry@production")
        assert model.predict(str(evidence.example_image))[0]["persons"]
    assert list((tmp_path / "kept").rglob("model.onnx"))  # kept by the server, not by this project
    assert not (project / "mlartifacts").exists()
    with pytest.raises(PosefoundryError, match="is in production already"):
        promote("posefoundry", "1", why="again")
    assert list_versions("other") == []
    assert production_weights("other", tmp_path) is None
