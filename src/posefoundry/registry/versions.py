"""Versions of the model in the MLflow registry: what there is, and the artifacts behind it."""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.files import sha256_of_file
from posefoundry.registry import store

CANDIDATE, PRODUCTION, PREVIOUS = "candidate", "production", "previous"

# The tag with the fingerprint of what a version's figures were measured on, and by which rules.
MEASURED_ON = "sha256.test"

# By which tag of a version an artifact is checked.
CHECKSUM_TAGS = {
    "model.onnx": "sha256.onnx",
    "best.safetensors": "sha256.weights",
    "decision.json": "sha256.decision",
}


@dataclass(frozen=True)
class ModelVersion:
    """One version in the registry."""

    model_name: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str | None
    created: datetime

    @property
    def uri(self) -> str:
        """Where `mlflow.pyfunc.load_model` finds it."""
        return f"models:/{self.model_name}/{self.version}"

    @property
    def gate_passed(self) -> bool:
        """Whether the gate let it through."""
        return self.tags.get("gate.passed") == "true"


@dataclass(frozen=True)
class ProductionModel:
    """The weights of the version behind the alias `production`, on this disk."""

    version: str
    weights: Path


@store.faults_explained
def list_versions(model_name: str) -> list[ModelVersion]:
    """Returns all versions, newest first; none if the model does not exist yet."""
    client = store.client()
    aliases = aliases_of(client, model_name)
    found = client.search_model_versions(f"name = '{model_name}'")
    versions = [
        ModelVersion(
            model_name=model_name,
            version=str(entry.version),
            aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(entry.version))),
            tags=dict(entry.tags),
            run_id=entry.run_id or None,
            created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        )
        for entry in found
    ]
    return sorted(versions, key=lambda entry: int(entry.version), reverse=True)


def resolve(model_name: str, version_or_alias: str) -> ModelVersion:
    """Finds a version by its number (`3`) or by an alias (`candidate`, `production`, `previous`).

    Raises:
        PosefoundryError: There is no such version; the message lists what there is.
    """
    versions = list_versions(model_name)
    for entry in versions:
        if version_or_alias == entry.version or version_or_alias in entry.aliases:
            return entry
    where = f"in {store.without_password(store.tracking_uri())}"
    if not versions:
        raise PosefoundryError(
            f"Expected a registered model {model_name!r} {where}, found none. Run the pipeline: dvc repro. "
            "If it says that nothing has changed, this store is new to it: dvc repro --force register."
        )
    known = ", ".join(" ".join([entry.version, *(f"({alias})" for alias in entry.aliases)]) for entry in versions[:20])
    raise PosefoundryError(
        f"Expected a version or alias of {model_name!r} {where}, got {version_or_alias!r}. Known: {known}."
    )


@store.faults_explained
def in_production(model_name: str) -> ModelVersion | None:
    """Returns the version behind the alias `production`; None where nothing is in production.

    Raises:
        PosefoundryError: The store cannot be reached.
    """
    number = aliases_of(store.client(), model_name).get(PRODUCTION)
    return None if number is None else resolve(model_name, number)


@store.faults_explained
def production_weights(model_name: str, into: Path) -> ProductionModel | None:
    """Fetches the weights of the model in production and their sidecar into a folder.

    Returns:
        Version and path of `best.safetensors`; None where nothing is in production.

    Raises:
        PosefoundryError: The store cannot be reached, or the weights are missing there or altered.
    """
    entry = in_production(model_name)
    if entry is None:
        return None
    weights = fetch_artifact(entry, "best.safetensors", into)
    fetch_artifact(entry, "best.json", into)
    return ProductionModel(entry.version, weights)


def aliases_of(client: Any, model_name: str) -> dict[str, str]:
    """Returns alias -> version; none if the model does not exist yet."""
    try:
        # SQLite gives the numbers as integers, a server as strings.
        return {alias: str(version) for alias, version in client.get_registered_model(model_name).aliases.items()}
    except store.import_mlflow().MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def fetch_artifact(entry: ModelVersion, name: str, into: Path) -> Path:
    """Fetches one artifact of a version (model.onnx, best.safetensors, best.json, decision.json) into a folder.

    Raises:
        PosefoundryError: The artifact is not there, or is not the one that was registered.
    """
    into.mkdir(parents=True, exist_ok=True)
    with store.fluent() as mlflow:
        try:
            # Not MLflow's dst_path: it would keep the folders around the file.
            with tempfile.TemporaryDirectory(dir=into) as aside:
                uri = f"{entry.uri}/artifacts/{name}"
                fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=aside)).replace(
                    into / name
                )
        except (mlflow.MlflowException, OSError) as error:
            raise PosefoundryError(
                f"{entry.uri}: expected the artifact {name}, got: {str(error).splitlines()[0][:300]}. "
                "It was registered by other means, or its artifact store is out of reach or was cleared."
            ) from None
    expected = entry.tags.get(CHECKSUM_TAGS.get(name, ""))
    if expected and sha256_of_file(fetched) != expected:
        raise PosefoundryError(
            f"{entry.uri}: expected {name} with SHA-256 {expected}, got {sha256_of_file(fetched)}. It was altered "
            "after it was registered; restore the artifact store, or use another version."
        )
    return fetched
