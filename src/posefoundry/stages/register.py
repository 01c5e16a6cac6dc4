"""The candidate becomes a version in the MLflow registry, behind the alias `candidate`."""

from collections.abc import Mapping
from pathlib import Path

from posefoundry.config import Register
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, sha256_of_file, write_json_atomic
from posefoundry.registry.registration import Evidence, register_version
from posefoundry.registry.runs import log_to_run
from posefoundry.stages.gate import read_object
from posefoundry.stages.runner import run_as_command


def run(
    settings: Register,
    *,
    weights: Path,
    artifacts: Path,
    evaluation: Path,
    decision: Path,
    release: Path,
    benchmark: Path,
    raw: Path,
    run: Path,
    report: Path,
) -> None:
    """Makes the exported model a version in the MLflow registry and points the alias `candidate` at it."""
    onnx = artifacts / "model.onnx"
    gate, released = decision / "decision.json", release / "decision.json"
    _require_passed(gate, "a candidate that passed the gate", "gate", {"candidate": weights})
    _require_passed(
        released, "artifacts that passed the release gate", "release stage", {"reference": weights, onnx.name: onnx}
    )
    run_id = log_to_run(run, {}, stage="register")
    version = register_version(
        settings.model_name,
        settings.experiment,
        run_id,
        Evidence(
            weights=weights,
            onnx=onnx,
            decision=gate,
            release=released,
            metrics=read_json(evaluation / "metrics.json"),
            latency_p50_ms=_latency_p50_ms(benchmark),
            example_image=_example_image(raw),
        ),
    )
    write_json_atomic(
        report,
        {"model_name": version.model_name, "version": version.version, "run_id": run_id, "uri": version.uri},
    )
    print(
        f"Registered version {version.version} of {version.model_name} as candidate.\n"
        "  posefoundry versions                              lists it beside the others\n"
        "  posefoundry ui                                    shows its runs and curves\n"
        '  posefoundry promote candidate --why "..."         puts it into production'
    )


def _require_passed(path: Path, expected: str, stage: str, judged: Mapping[str, Path]) -> None:
    """Refuses what a gate did not let pass, and files, by the names of their passports, that it has not judged."""
    decided = read_object(path)
    remedy = f"Only what passed is registered; run the pipeline from the {stage} on: dvc repro."
    if decided.get("passed") is not True:
        raise PosefoundryError(f"{path}: expected {expected}, got: {decided.get('verdict')} {remedy}")
    for name, file in judged.items():
        passport = decided.get("passports", {}).get(name) or {}
        if not file.is_file() or passport.get("weights_sha256") != sha256_of_file(file):
            raise PosefoundryError(f"{file}: expected the file that {path} has judged, got another one. {remedy}")


def _latency_p50_ms(benchmark: Path) -> float | None:
    """Returns the ONNX artifact's median time for one image, from pixels to persons; None where it was not measured."""
    figures = read_json(benchmark).get("runtimes", {}).get("onnxruntime", {}).get("batch_1", {})
    return figures.get("end_to_end_ms", {}).get("p50")


def _example_image(raw: Path) -> Path:
    """Returns the first test image with a person in it."""
    dataset = load_coco_keypoints(raw / "annotations" / "test.json")
    with_persons = {annotation["image_id"] for annotation in dataset.annotations if not annotation.get("iscrowd")}
    images = sorted(dataset.images, key=lambda image: (image["id"] not in with_persons, image["file_name"]))
    if not images:
        raise PosefoundryError(f"{raw}: expected a test image to register with the model as an example, found none.")
    return raw / "images" / "test" / images[0]["file_name"]


if __name__ == "__main__":
    run_as_command("register", run)
