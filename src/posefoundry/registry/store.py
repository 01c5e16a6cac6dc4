"""Where MLflow keeps runs and versions: a database in the project by default, a server by `MLFLOW_TRACKING_URI`."""

import fcntl
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit, urlunsplit

from posefoundry.errors import PosefoundryError

P = ParamSpec("P")
T = TypeVar("T")

# MLflow's own defaults report home, draw a progress bar for each file, and retry for minutes, which suits a
# rate-limited cloud and looks like a hang everywhere else.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
# The first call only asks whether anybody answers.
FIRST_CALL_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}

_reached: set[str] = set()


def project_root() -> Path:
    """Returns the nearest folder at or above the working directory that holds dvc.yaml, else the working directory."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def tracking_uri() -> str:
    """Returns `$MLFLOW_TRACKING_URI`, else the SQLite database `mlflow.db` in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def is_embedded(uri: str) -> bool:
    """Tells whether the store is a file of this machine, with no server that decides where artifacts go."""
    return uri.startswith("sqlite:")


def database_file(uri: str) -> Path:
    """Returns the file of an embedded store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def without_password(uri: str) -> str:
    """Returns a URI fit for messages and files: user and password left out."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def import_mlflow() -> Any:
    """Imports MLflow quiet and without telemetry."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Its database migrations and every created version are announced at INFO, every retry as a warning.
    for name, level in (("alembic", "WARNING"), ("mlflow", "WARNING"), ("urllib3.connectionpool", "ERROR")):
        logging.getLogger(name).setLevel(level)
    return mlflow


def client() -> Any:
    """Returns an `mlflow.MlflowClient` on the project's store, creating the embedded database at the first call.

    Raises:
        PosefoundryError: The server does not answer, or the database cannot be opened.
    """
    uri = tracking_uri()
    mlflow = import_mlflow()
    if uri in _reached:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        with _alone(uri), _environment(FIRST_CALL_ENVIRONMENT):
            check_database(uri)
            reached = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            reached.search_experiments(max_results=1)
            reached.search_registered_models(max_results=1)
    except PosefoundryError:
        raise
    except Exception as error:  # what a store raises depends on its kind: requests, SQLAlchemy, MLflow, OSError
        raise _unreachable(uri, error) from None
    _reached.add(uri)
    return reached


@contextmanager
def fluent() -> Iterator[Any]:
    """Yields the `mlflow` module pointed at the project's store, for what the client cannot do.

    MLflow exports the URI to the environment, where it would outlive a change of project in this process; the
    environment is put back.
    """
    client()
    mlflow = import_mlflow()
    uri, given = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


def faults_explained(function: Callable[P, T]) -> Callable[P, T]:
    """Turns what a store raises in the middle of an operation into a message that names the store."""

    @functools.wraps(function)
    def explained(*arguments: P.args, **named: P.kwargs) -> T:
        mlflow = import_mlflow()
        try:
            return function(*arguments, **named)
        except mlflow.MlflowException as error:
            raise PosefoundryError(
                f"MLflow at {without_password(tracking_uri())} failed: {_cause(error, tracking_uri())}. "
                "Try again; if it stays, the server's log says more."
            ) from error

    return explained


def experiment_id(name: str) -> str:
    """Returns the id of an experiment, creating it where it is missing.

    With the embedded store its artifacts go to `mlartifacts/` in the project; a server has its own place for them.

    Raises:
        PosefoundryError: The experiment lies in MLflow's bin.
    """
    mlflow_client, uri = client(), tracking_uri()
    location = str(project_root() / "mlartifacts" / name) if is_embedded(uri) else None
    with _alone(uri):
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(mlflow_client.create_experiment(name, artifact_location=location))
            except import_mlflow().MlflowException:
                # Somebody on the same server was quicker.
                found = mlflow_client.get_experiment_by_name(name)
                if found is None:
                    raise
    if found.lifecycle_stage != "active":
        raise PosefoundryError(
            f"MLflow: experiment {name!r} was deleted. Restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or name another one."
        )
    return str(found.experiment_id)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keeps a second process out while the embedded database is created; a server needs no such care."""
    if not is_embedded(uri):
        yield
        return
    folder = database_file(uri).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cause(error: Exception, uri: str) -> str:
    """Returns the operating system's word for a failed connection where there is one, else the message's first line."""
    message = str(error).replace(uri, without_password(uri)).strip() or type(error).__name__
    system_fault = re.search(r"\[Errno -?\d+\] ([^'\")]+)", message)
    return system_fault[1] if system_fault else message.splitlines()[0][:300].rstrip(".")


def check_database(uri: str) -> None:
    """Connects once to a database, which MLflow itself would try fifteen times over a hundred seconds.

    Raises:
        PosefoundryError: It cannot be opened.
    """
    if not uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):
        return
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> PosefoundryError:
    return PosefoundryError(
        f"MLflow: expected a tracking store at {without_password(uri)}, got: {_cause(error, uri)}. "
        "Start that server, correct MLFLOW_TRACKING_URI, or unset it to use the database in the project."
    )


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
