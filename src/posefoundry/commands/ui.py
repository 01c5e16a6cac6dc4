"""MLflow's pages on the project's own store."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from posefoundry.errors import PosefoundryError
from posefoundry.registry import store

HOST = "127.0.0.1"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0


def serve(port: int) -> int:
    """Runs MLflow's server until Ctrl-C and returns the exit status.

    Raises:
        PosefoundryError: The port is taken, or the server ends or stays silent at its start.
    """
    uri = store.tracking_uri()
    if uri.startswith(("http:", "https:")):
        print(f"The store is a server with pages of its own: {store.without_password(uri)}")
        return 0
    if _answers(port):
        raise PosefoundryError(
            f"Expected port {port} to be free, got a program that listens there. Choose another: posefoundry ui --port "
            f"{port + 1 if port < 65535 else 5001}."
        )
    store.check_database(uri)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # as Ctrl-C, or the server would outlive us
    server = _start(uri, port)
    try:
        _wait_until_ready(server, port)
        print(f"MLflow on {store.without_password(uri)}: http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def _start(uri: str, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        HOST,
        "--port",
        str(port),
    ]
    command += ["--artifacts-destination", str(store.project_root() / "mlartifacts")]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level=warning"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    # Without this it keeps eight more processes of 245 MB for jobs that only a shared server has.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    # A session of its own: Ctrl-C reaches us alone, and we end the server with all its workers.
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise PosefoundryError(f"MLflow's server failed to start, with exit status {server.returncode}; see above.")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise PosefoundryError(f"MLflow's server did not answer on {HOST}:{port} within {START_LIMIT_S:.0f} s.")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, stop)
        except ProcessLookupError:
            return
        try:
            server.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            continue
        return


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0
