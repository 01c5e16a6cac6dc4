"""Stage export: the accepted model in the formats that ship, each compared with PyTorch."""

from pathlib import Path
from typing import Any

from posefoundry.config import Export
from posefoundry.datasets.yolo import image_files
from posefoundry.errors import RejectedError
from posefoundry.export.artifacts import export_artifacts
from posefoundry.files import atomic_directory, read_json, write_json_atomic
from posefoundry.stages.runner import run_as_command


def run(settings: Export, *, raw: Path, weights: Path, decision: Path, artifacts: Path, report: Path) -> None:
    """Export the accepted model to ONNX and TensorRT and compare each artifact with PyTorch on test images."""
    _require_passed(decision / "decision.json")
    with atomic_directory(artifacts) as folder:
        exported = export_artifacts(settings, weights, image_files(raw / "images" / "test"), folder)
    exported["artifacts"] = [
        {"path": (artifacts / made.pop("file")).as_posix(), **made} for made in exported["artifacts"]
    ]
    write_json_atomic(report, exported)
    for artifact in exported["artifacts"]:
        print(_line(artifact))
    for skipped in exported["skipped"]:
        print(f"{skipped['format']}: skipped, {skipped['reason']}")


def _require_passed(path: Path) -> None:
    decision = read_json(path)
    if not isinstance(decision, dict) or decision.get("passed") is not True:
        verdict = decision.get("verdict") if isinstance(decision, dict) else decision
        raise RejectedError(f"{path}: expected a model that passed the gate, got: {verdict}")


def _line(artifact: dict[str, Any]) -> str:
    parity = artifact["parity"]
    return (
        f"{artifact['format']}: {artifact['path']}, {artifact['bytes'] / 1e6:.1f} MB, {artifact['precision']}, within "
        f"{parity['max_error_px']:.2g} px and {parity['max_error_score']:.1g} of PyTorch's scores"
    )


if __name__ == "__main__":
    run_as_command("export", run)
