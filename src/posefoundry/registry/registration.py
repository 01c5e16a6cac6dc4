"""How a candidate becomes a version of the registered model."""

import base64
import hashlib
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from posefoundry.errors import PosefoundryError
from posefoundry.evaluation.passport import fingerprint_of_test
from posefoundry.files import read_json, sha256_of_file
from posefoundry.registry import store
from posefoundry.registry.lineage import lineage_tags
from posefoundry.registry.versions import CANDIDATE, CHECKSUM_TAGS, MEASURED_ON, ModelVersion, list_versions, resolve

# What the shipped code needs to predict; the rest of posefoundry's dependencies stay at home.
INFERENCE_REQUIREMENTS = (
    "torch",
    "numpy",
    "opencv-python-headless",
    "pydantic",
    "pyyaml",
    "safetensors",
    "onnxruntime",
)

# The tag by which a repeated registration finds what an earlier one made.
REGISTRATION = "registration"


@dataclass(frozen=True)
class Evidence:
    """What is registered: the artifacts, and what is known of them.

    Attributes:
        weights: `best.safetensors` with its sidecar beside it.
        onnx: The exported model, which predicts.
        decision: The gate's decision file.
        metrics: The evaluation's metrics on the test split; None marks one that does not exist here.
        latency_p50_ms: Median time of the ONNX model for one image, from pixels to persons; None where not measured.
        example_image: A real image, kept as the model's input example.
        release: The release gate's decision file; None where the artifacts were not judged.
    """

    weights: Path
    onnx: Path
    decision: Path
    metrics: Mapping[str, Any]
    latency_p50_ms: float | None
    example_image: Path
    release: Path | None = None


@store.faults_explained
def register_version(model_name: str, experiment: str, run_id: str, evidence: Evidence) -> ModelVersion:
    """Makes a candidate a version of the registered model and points the alias `candidate` at it.

    The same artifacts of the same run with the same decision are the same version: a registration that was killed, or
    is repeated, ends with one version and not two.

    Args:
        model_name: The registered model.
        experiment: The experiment that holds the logged model.
        run_id: The training run.
        evidence: Artifacts and findings.

    Raises:
        PosefoundryError: An artifact is missing, or the saved model does not load and predict.
    """
    for path in (evidence.weights, evidence.weights.with_suffix(".json"), evidence.onnx, evidence.example_image):
        if not path.is_file():
            raise PosefoundryError(f"{path}: expected this file to register, found none. Run the pipeline: dvc repro.")
    client = store.client()
    tags = _version_tags(run_id, evidence)
    entry = next((e for e in list_versions(model_name) if e.tags.get(REGISTRATION) == tags[REGISTRATION]), None)
    if entry is None:
        model_id = _logged_model(client, model_name, store.experiment_id(experiment), run_id, evidence, tags)
        _ensure_registered_model(client, model_name)
        created = client.create_model_version(
            model_name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags=tags,
            description=tags["gate.verdict"],
            model_id=model_id,
        )
        number = str(created.version)
    else:
        number = entry.version
    client.set_registered_model_alias(model_name, CANDIDATE, number)
    return resolve(model_name, number)


def _version_tags(run_id: str, evidence: Evidence) -> dict[str, str]:
    decision, sidecar = read_json(evidence.decision), read_json(evidence.weights.with_suffix(".json"))
    info = sidecar.get("info", sidecar)
    checksums = {
        CHECKSUM_TAGS[name]: sha256_of_file(path)
        for name, path in {
            "model.onnx": evidence.onnx,
            "best.safetensors": evidence.weights,
            "decision.json": evidence.decision,
        }.items()
    }
    identity = json.dumps({"run": run_id, **checksums}, sort_keys=True)
    compared_with = decision.get("production_version")
    keypoint_names = info["skeleton"]["keypoint_names"]
    tags = {
        **lineage_tags(),
        **checksums,
        REGISTRATION: hashlib.sha256(identity.encode()).hexdigest(),
        "training_run": run_id,
        "architecture": info["architecture"],
        "skeleton.keypoints": f"{len(keypoint_names)}: {', '.join(keypoint_names)}",
        "gate.passed": str(decision.get("passed") is True).lower(),
        "gate.verdict": str(decision.get("verdict", "")),
        "gate.compared_with": "" if compared_with is None else str(compared_with),
    }
    passport = (decision.get("passports") or {}).get("candidate") or {}
    if fingerprint := fingerprint_of_test(passport):
        tags[MEASURED_ON] = fingerprint
    if evidence.release is not None:
        tags["release.verdict"] = str(read_json(evidence.release).get("verdict", ""))
    tags |= {name: f"{value:.4f}" for name, value in _numbers(evidence.metrics).items()}
    if evidence.latency_p50_ms is not None:
        tags["latency_p50_ms"] = f"{evidence.latency_p50_ms:.2f}"
    return tags


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def _logged_model(
    client: Any, model_name: str, experiment_id: str, run_id: str, evidence: Evidence, tags: dict[str, str]
) -> str:
    """Uploads the model, or finds it where an earlier registration was cut off after the upload."""
    key = f"tags.{REGISTRATION} = '{tags[REGISTRATION]}'"
    for earlier in client.search_logged_models([experiment_id], filter_string=key):
        if str(earlier.status) == "READY":
            return earlier.model_id
        client.delete_logged_model(earlier.model_id)
    model = client.create_logged_model(experiment_id, name=model_name, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "model")
        save_pyfunc(saved, evidence, run_id=run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(saved))
    _link_to_run(client, run_id, model.model_id, evidence.metrics)
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def save_pyfunc(folder: Path, evidence: Evidence, *, run_id: str | None = None, model_id: str | None = None) -> None:
    """Writes the MLflow model: the ONNX artifact that predicts, the weights for a later gate, and the code to run it.

    The input example is predicted on once from the written folder, so a model that cannot be used is never registered.

    Raises:
        PosefoundryError: The written model does not load or does not predict.
    """
    import posefoundry

    package = Path(posefoundry.__file__).parent
    example = [_data_uri(evidence.example_image)]
    # MLflow warns that the hint `list[Any]` checks nothing, past any filter; checking is the model's own business.
    hushed = warnings.catch_warnings(record=True)
    with store.fluent() as mlflow, hushed, tempfile.TemporaryDirectory() as aside:
        from mlflow.models import Model

        code = shutil.copytree(package, Path(aside, "posefoundry"), ignore=shutil.ignore_patterns("__pycache__"))
        import_path = list(sys.path)
        try:
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(package / "registry" / "pyfunc_model.py"),
                artifacts={
                    "onnx": str(evidence.onnx),
                    "weights": str(evidence.weights),
                    "sidecar": str(evidence.weights.with_suffix(".json")),
                    "decision": str(evidence.decision),
                },
                code_paths=[str(code)],
                pip_requirements=[f"{name}=={_public_version(name)}" for name in INFERENCE_REQUIREMENTS],
                input_example=(example, {"confidence": 0.25, "nms_iou": 0.7}),
                mlflow_model=Model(run_id=run_id, model_id=model_id),
            )
            mlflow.pyfunc.load_model(str(folder)).predict(example)
        except Exception as error:  # whatever the reason, this model must not be registered
            raise PosefoundryError(
                f"{evidence.onnx}: expected a model that predicts through MLflow, got: {error}"
            ) from error
        finally:
            sys.path[:] = import_path  # loading put the copy's folder there, which is gone now


def _data_uri(image: Path) -> str:
    """Returns an image file as text that fits into JSON."""
    kind = {"jpg": "jpeg", "tif": "tiff"}.get(suffix := image.suffix.lstrip(".").lower(), suffix)
    return f"data:image/{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"


def _link_to_run(client: Any, run_id: str, model_id: str, metrics: Mapping[str, Any]) -> None:
    """Shows the model, with its metrics, beside the run that trained it."""
    from mlflow.entities import LoggedModelOutput, Metric

    now_ms = int(time.time() * 1000)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    measured = [
        Metric(f"test_{name}", value, now_ms, 0, model_id=model_id) for name, value in _numbers(metrics).items()
    ]
    client.log_batch(run_id, metrics=measured)


def _ensure_registered_model(client: Any, model_name: str) -> None:
    mlflow = store.import_mlflow()
    try:
        client.create_registered_model(model_name)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _public_version(package: str) -> str:
    """Returns the installed version as an index knows it: 2.13.0, not 2.13.0+cpu."""
    return package_version(package).partition("+")[0]
