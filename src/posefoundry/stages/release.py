"""Stage release: are the files that ship as good as the model they were made from, fast and small enough?"""

from pathlib import Path
from typing import Any

from posefoundry.config import Evaluate, Release
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.gate import Shipped, decide_release
from posefoundry.evaluation.html import write_decision_page
from posefoundry.evaluation.judge import judge_weights
from posefoundry.evaluation.passport import first_difference
from posefoundry.evaluation.progress import progress_bar
from posefoundry.files import atomic_directory, sha256_of_file, write_json_atomic
from posefoundry.inference.backends import RUNTIMES
from posefoundry.registry.runs import log_to_run
from posefoundry.stages.evaluate import SPLIT
from posefoundry.stages.gate import print_decision, read_object, reasons
from posefoundry.stages.runner import run_as_command

# What an artifact's passport may differ in from that of the PyTorch model: it is another runtime, on purpose.
OF_RUNTIME = ("runtime", "precision")


def run(
    settings: Release,
    evaluate: Evaluate,
    *,
    raw: Path,
    artifacts: Path,
    evaluation: Path,
    benchmark: Path,
    run: Path,
    report: Path,
) -> None:
    """Judges the exported artifacts on the test split and by latency and size; exit status 3 if one falls short."""
    metrics, passport = (read_object(evaluation / name) for name in ("metrics.json", "passport.json"))
    latencies = read_object(benchmark).get("runtimes", {})
    shipped, passports = [], {}
    for path in sorted(path for path in artifacts.iterdir() if path.suffix in RUNTIMES):
        artifact, passports[path.name] = _judge(path, passport, latencies, evaluate, raw)
        shipped.append(artifact)
    decision = decide_release(settings, shipped, metrics)
    document = {
        **decision.to_dict(),
        "artifacts": {artifact.name: artifact.metrics for artifact in shipped},
        "reference": metrics,
        "passports": {"reference": passport, **passports},
    }
    with atomic_directory(report) as folder:
        write_json_atomic(folder / "decision.json", document)
        write_decision_page(folder, annotations=raw / "annotations" / f"{SPLIT}.json", images=raw / "images" / SPLIT)
    print_decision("Release", decision)
    figures: dict[str, float | None] = {"release_passed": float(decision.passed)}
    for artifact in shipped:
        runtime = RUNTIMES[Path(artifact.name).suffix]
        figures |= {f"{runtime}_test_{name}": artifact.metrics.get(name) for name in ("oks_ap", "box_ap")}
    tags = {"release.passed": str(decision.passed).lower(), "release.verdict": decision.verdict}
    log_to_run(run, figures, [report / "index.html", report / "decision.json"], tags, stage="release")
    if not decision.passed:
        raise RejectedError(reasons(decision))


def _judge(
    path: Path, reference: dict[str, Any], latencies: dict[str, Any], settings: Evaluate, raw: Path
) -> tuple[Shipped, dict[str, Any]]:
    """Returns what an artifact did, and the passport of that: only the file's hash where it could not be judged."""
    n_bytes = path.stat().st_size
    settings = settings.model_copy(update={"crossed_slices": ()})  # no rule is about slices, which tags may have named
    try:
        with progress_bar(f"evaluate {path.name}") as progress:
            judgement = judge_weights(
                path, raw / "annotations" / f"{SPLIT}.json", raw / "images" / SPLIT, settings, progress=progress
            )
    except PosefoundryError as error:  # such as an engine on a machine without its GPU
        return Shipped(path.name, n_bytes, {}, str(error)), {"weights_sha256": sha256_of_file(path)}
    passport = judgement.passport
    obstacle = None
    if field := first_difference(reference, {**passport, **{name: reference.get(name) for name in OF_RUNTIME}}):
        obstacle = (
            f"{field} was {reference.get(field)} for the PyTorch model and is {passport.get(field)} now. Evaluate the "
            "model again: dvc repro --force evaluate."
        )
    batches = latencies.get(RUNTIMES[path.suffix], {})
    latency_ms = {
        int(name.removeprefix("batch_")): figures["end_to_end_ms"]
        for name, figures in batches.items()
        if name.startswith("batch_") and "end_to_end_ms" in figures
    }
    return Shipped(path.name, n_bytes, judgement.metrics, obstacle, latency_ms), passport


if __name__ == "__main__":
    run_as_command("release", run)
