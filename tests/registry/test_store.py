import os
import socket
import subprocess
import sys
import time

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.registry import store


def test_the_store_is_the_database_of_the_nearest_project(project, monkeypatch):
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert store.tracking_uri() == f"sqlite:///{project}/mlflow.db"


def test_without_a_project_the_store_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_environment_names_another_store(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert store.tracking_uri() == "http://tracking:5000"


def test_an_experiment_is_created_once_with_its_artifacts_in_the_project(project):
    first = store.experiment_id("people")
    assert store.experiment_id("people") == first
    assert store.client().get_experiment(first).artifact_location == f"{project}/mlartifacts/people"


def test_a_deleted_experiment_is_named_with_its_remedy(project):
    number = store.experiment_id("people")
    store.client().delete_experiment(number)
    with pytest.raises(PosefoundryError, match=rf"'people' was deleted.*restore --experiment-id {number}"):
        store.experiment_id("people")


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_is_not_there_is_named_without_its_password(scheme, project, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"{scheme}://user:hidden@127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    begin = time.monotonic()
    with pytest.raises(
        PosefoundryError, match=rf"expected a tracking store at {scheme}://127\.0\.0\.1.*Start that server"
    ) as told:
        store.client()
    assert "hidden" not in str(told.value)
    assert time.monotonic() - begin < 30  # MLflow alone would try for minutes


def test_a_file_that_is_no_database_is_refused(project):
    (project / "mlflow.db").write_bytes(os.urandom(5000))
    with pytest.raises(PosefoundryError, match="not a database"):
        store.client()


def test_the_environment_is_left_as_it_was(project):
    with store.fluent() as mlflow:
        assert mlflow.get_tracking_uri() == store.tracking_uri()
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
def test_two_processes_may_create_the_store_at_once(tmp_path):
    command = [sys.executable, "-c", "from posefoundry.registry import store; print(store.experiment_id('people'))"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "12"
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert [errors for _, errors in told] == ["", ""]  # and no chatter
