"""Hard examples all the way: out of a model's failures, corrected, back in, and told apart by the next gate."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from posefoundry import cli
from posefoundry.config import Evaluate, Gate, Ingest, NoRegression, Register, SyntheticSource
from posefoundry.files import write_json_atomic
from posefoundry.registry.runs import TrainingRun
from posefoundry.registry.versions import ProductionModel
from posefoundry.stages import evaluate, gate, ingest

PEOPLE = SyntheticSource(image_size_px=96, train_images=2, val_images=1, test_images=6, max_persons=2)
TAKEN_IN = Ingest(source="synthetic", seed=2, synthetic=PEOPLE, corrections=Path("data/corrections"))
JUDGED_BY = Evaluate(max_detections=20, overlay_images=0)
# Stated before there are corrections, and from then on about them.
RULES = Gate(
    rules=(NoRegression(rule="no_regression", margin=0.5, slices=("all", "corrected")),), resamples=400,
    shown_slices=("size",),
)  # fmt: skip


def take_in_and_judge(project: Path, weights: Path) -> dict:
    """Ingest, evaluate and gate, where dvc.yaml has their files."""
    raw, reports, run = project / "data" / "raw", project / "reports", project / "models" / "mlflow_run.json"
    ingest.run(TAKEN_IN, raw=raw, report=reports / "ingest" / "report.json")
    evaluate.run(
        JUDGED_BY,
        raw=raw,
        weights=weights,
        run=run,
        checkpoints=project / "models/checkpoints",
        report=reports / "evaluate",
    )
    gate.run(
        RULES, JUDGED_BY, Register(), raw=raw, evaluation=reports / "evaluate", data_checks=reports / "none.json",
        run=run, report=reports / "gate",
    )  # fmt: skip
    return json.loads((reports / "gate" / "decision.json").read_text())


def corrected_in_cvat(exported: Path, target: Path) -> list[str]:
    """What CVAT exports after the work: what is there, a wrist drawn anew, the box as the extent of the points."""
    content = json.loads((exported / "ground_truth.json").read_text())
    for annotation in content["annotations"]:
        points = np.array(annotation["keypoints"], float).reshape(-1, 3)
        points[9] = [*(points[9, :2] + 2), 2]
        seen = points[points[:, 2] > 0, :2]
        extent = [*seen.min(axis=0), *np.ptp(seen, axis=0)]
        annotation |= {"keypoints": points.ravel().tolist(), "bbox": extent, "area": extent[2] * extent[3]}
    for image in content["images"]:
        image.pop("reason", None)
    write_json_atomic(target, content)
    return sorted(image["file_name"] for image in content["images"])


def test_the_next_gate_tells_how_the_model_did_on_corrected_images(project, monkeypatch, make_weights):
    (project / "data" / "corrections").mkdir(parents=True)
    with TrainingRun.start("posefoundry", "train", {}) as run:
        run.write_run_file(project / "models" / "mlflow_run.json")
    old = make_weights(project / "old" / "best.safetensors", seed=1)
    monkeypatch.setattr(gate, "aliases_of", lambda client, name: {"production": "3"})
    monkeypatch.setattr(gate, "production_weights", lambda name, into: ProductionModel("3", old))
    weights = make_weights(project / "models" / "best.safetensors", seed=0)
    before = take_in_and_judge(project, weights)
    assert [rule["slice"] for rule in before["rules"]] == [None, "all"]

    monkeypatch.setattr(sys, "argv", ["posefoundry", "hard-examples", "count=2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    names = corrected_in_cvat(project / "hard_examples", project / "data/corrections/round_1/annotations.json")

    after = take_in_and_judge(project, weights)
    tags = (project / "data/raw/tags.csv").read_text().splitlines()
    assert sorted(line.removesuffix(",yes") for line in tags if line.endswith(",yes")) == names
    [told] = [
        row for row in json.loads((project / "reports/evaluate/slices.json").read_text())
        if row["slice"] == "corrected=yes"
    ]  # fmt: skip
    assert told["images"] == 2
    rows = {row["slice"]: row for row in after["differences"]}
    assert rows["corrected=yes"]["images"] == 2 and rows["corrected=no"]["images"] == 4
    assert rows["corrected=yes"]["candidate"] == pytest.approx(told["oks_ap"])
    ruled = {rule["slice"]: rule["sentence"] for rule in after["rules"]}
    assert set(ruled) == {None, "all", "corrected=yes", "corrected=no"}
    assert ruled["corrected=yes"].startswith("Pose accuracy (OKS AP) in corrected images is 0.")
    page = (project / "reports/gate/index.html").read_text()
    assert "corrected yes" in page
    digests = [decision["passports"]["candidate"]["annotations_sha256"] for decision in (before, after)]
    assert digests[0] != digests[1]  # another data version
