"""The gate stage: what it decides, what it leaves behind, and how its process ends."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from posefoundry.config import Evaluate, Floor, Gate, Improvement, NoRegression, Register
from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.judge import evaluator_of, judge_weights
from posefoundry.evaluation.passport import sha256_of_files
from posefoundry.files import sha256_of_file, write_json_atomic
from posefoundry.registry import store
from posefoundry.registry.registration import Evidence, register_version
from posefoundry.registry.runs import TrainingRun
from posefoundry.registry.versions import ProductionModel
from posefoundry.skeleton import COCO_PERSON, COCO_PERSON_CATEGORY, Skeleton
from posefoundry.stages import gate

JUDGED_BY = Evaluate(max_detections=20)
N_IMAGES = 24


def rules(*chosen, **settings) -> Gate:
    return Gate(rules=chosen, **{"resamples": 400} | settings)


def floor(metric: str, bound: float) -> Floor:
    return Floor(rule="floor", metric=metric, at_least=bound)


def no_loss(margin: float, *slices: str) -> NoRegression:
    return NoRegression(rule="no_regression", margin=margin, slices=slices or ("all",))


LENIENT = rules(floor("box_ap", 0.0), no_loss(0.99))


@pytest.fixture
def inputs(project: Path, make_weights: Callable[..., Path]) -> dict[str, Path]:
    """A candidate, evaluated on test images of one person each, and its training run."""
    raw = project / "raw"
    (raw / "images" / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, persons = [], []
    for i in range(1, N_IMAGES + 1):
        cv2.imwrite(str(raw / "images" / "test" / f"{i}.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 64})
        keypoints = rng.uniform(5, 60, (17, 2)).round(1).tolist()
        persons.append({
            "id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 55, 55], "area": 1500.0, "iscrowd": 0,
            "num_keypoints": 17, "keypoints": [n for x, y in keypoints for n in (x, y, 2)],
        })  # fmt: skip
    content = {"images": images, "annotations": persons, "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(raw / "annotations" / "test.json", content)
    (raw / "tags.csv").write_text("file_name\n")
    write_json_atomic(project / "reports" / "validate.json", {"passed": True, "checks": []})
    weights = make_weights(project / "models" / "best.safetensors")
    judgement = judge_weights(weights, raw / "annotations" / "test.json", raw / "images" / "test", JUDGED_BY)
    write_json_atomic(project / "reports" / "evaluate" / "metrics.json", judgement.metrics)
    write_json_atomic(project / "reports" / "evaluate" / "passport.json", judgement.passport)
    write_json_atomic(project / "reports" / "evaluate" / "detections.json", judgement.detections)
    with TrainingRun.start("posefoundry", "train", {}) as run:
        run.write_run_file(project / "models" / "mlflow_run.json")
    return {
        "raw": raw,
        "evaluation": project / "reports" / "evaluate",
        "data_checks": project / "reports" / "validate.json",
        "run": project / "models" / "mlflow_run.json",
        "report": project / "reports" / "gate",
    }


@pytest.fixture
def in_production(monkeypatch):
    """Puts weights into production as version 3, without a registry."""

    def put(weights: Path) -> None:
        monkeypatch.setattr(gate, "aliases_of", lambda client, name: {"production": "3"})
        monkeypatch.setattr(gate, "production_weights", lambda name, into: ProductionModel("3", weights))

    return put


def run_gate(inputs, settings=LENIENT, judged_by=JUDGED_BY):
    gate.run(settings, judged_by, Register(), **inputs)
    return read_decision(inputs)


def read_decision(inputs):
    return json.loads((inputs["report"] / "decision.json").read_text())


def rejection(inputs, settings=LENIENT, judged_by=JUDGED_BY):
    with pytest.raises(RejectedError) as rejected:
        gate.run(settings, judged_by, Register(), **inputs)
    decision = read_decision(inputs)
    assert decision["passed"] is False
    return decision, str(rejected.value)


def test_the_data_s_warnings_are_shown_as_a_count(inputs, capsys):
    run_gate(inputs, Gate(rules=[{"rule": "data_checks"}]))
    line = next(line for line in capsys.readouterr().out.splitlines() if "data checks" in line)
    assert " 0 warnings " in line


def test_a_first_candidate_above_its_floors_passes(inputs):
    decision = run_gate(inputs)
    assert decision["passed"] is True
    assert decision["verdict"] == "Passed: all 2 rules hold."
    assert decision["production_version"] is None
    assert decision["errors"]["production"] is None and decision["errors"]["sentence"] is None
    assert decision["passports"]["candidate"] == json.loads((inputs["evaluation"] / "passport.json").read_text())
    assert decision["candidate"] == json.loads((inputs["evaluation"] / "metrics.json").read_text())


def test_a_rejected_candidate_is_told_why_and_so_is_its_run(inputs):
    decision, message = rejection(inputs, rules(floor("oks_ap", 0.99), floor("box_ap", 0.0)))
    assert message.startswith("These rules fail:\n  oks_ap reaches its floor: Pose accuracy (OKS AP) is 0.")
    assert "box_ap" not in message
    assert [rule["passed"] for rule in decision["rules"]] == [False, True]
    run_id = json.loads(inputs["run"].read_text())["run_id"]
    run = store.client().get_run(run_id)
    assert run.data.tags["gate.passed"] == "false"
    assert run.data.tags["gate.verdict"] == decision["verdict"]
    assert run.data.metrics["gate_passed"] == 0
    assert [artifact.path for artifact in store.client().list_artifacts(run_id, "gate")] == [
        "gate/decision.json",
        "gate/index.html",
    ]


def test_the_candidate_that_is_in_production_is_not_judged_twice(inputs, in_production, project, monkeypatch):
    in_production(project / "models" / "best.safetensors")
    monkeypatch.setattr(gate, "judge_weights", lambda *a, **k: pytest.fail("judged the same weights again"))
    decision = run_gate(inputs, rules(no_loss(0.0)))
    assert decision["production_version"] == "3"
    assert decision["production"] == decision["candidate"]


def test_another_model_in_production_is_judged_on_the_same_images(inputs, in_production, project, make_weights):
    weights = make_weights(project / "old" / "best.safetensors", seed=1, image_size_px=64)
    in_production(weights)
    decision = run_gate(inputs)
    images, annotations = inputs["raw"] / "images" / "test", inputs["raw"] / "annotations" / "test.json"
    expected = judge_weights(weights, annotations, images, JUDGED_BY)
    assert decision["passports"]["production"] == expected.passport
    assert decision["production"] == expected.metrics
    passports = decision["passports"]
    assert [passports[who]["input_size_px"] for who in ("candidate", "production")] == [96, 64]
    comparable = decision["rules"][1]
    assert comparable["sentence"] == "Version 3 in production was judged on the same images in the same way."


# A standing figure in a box of 1 x 1, in the order of COCO's keypoints.
STANDING_XY = np.array([
    [0.50, 0.06], [0.54, 0.04], [0.46, 0.04], [0.58, 0.06], [0.42, 0.06], [0.68, 0.20], [0.32, 0.20], [0.80, 0.36],
    [0.20, 0.36], [0.88, 0.50], [0.12, 0.50], [0.62, 0.52], [0.38, 0.52], [0.64, 0.74], [0.36, 0.74], [0.66, 0.96],
    [0.34, 0.96],
])  # fmt: skip


def annotated(inputs) -> dict:
    return json.loads((inputs["raw"] / "annotations" / "test.json").read_text())


def detections_at(content: dict, shift_px: float = 0.0, keypoints: tuple[int, ...] = tuple(range(17))) -> list[dict]:
    """Finds each person, with some of the keypoints beside where they are."""
    found = []
    for person in content["annotations"]:
        points = np.array(person["keypoints"], float).reshape(-1, 3)
        points[list(keypoints), 0] += shift_px
        found.append({
            "image_id": person["image_id"], "category_id": 1, "bbox": person["bbox"], "score": 0.9,
            "keypoints": points.ravel().tolist(),
        })  # fmt: skip
    return found


def shaken(content: dict, seed: int) -> list[dict]:
    """Finds each person, some better than others."""
    rng = np.random.default_rng(seed)
    persons = [{**content, "annotations": [person]} for person in content["annotations"]]
    return [detections_at(person, shift_px=rng.normal(0, 4))[0] for person in persons]


@pytest.fixture
def production_finds(in_production, project, monkeypatch, make_weights):
    """Lets version 3 in production find what a test wants it to find, in the images it is shown."""

    def put(detections: list[dict]) -> None:
        in_production(make_weights(project / "old" / "best.safetensors", seed=1))
        judge = gate.judge_weights

        def judge_as_wanted(*arguments, **named):
            judgement = judge(*arguments, **named)
            evaluation = judgement.evaluator.evaluate_in_detail(detections)
            return replace(judgement, detections=detections, evaluation=evaluation)

        monkeypatch.setattr(gate, "judge_weights", judge_as_wanted)

    return put


def candidate_finds(inputs, detections: list[dict]) -> None:
    evaluator = evaluator_of(inputs["raw"] / "annotations" / "test.json", load_coco(inputs))
    metrics = json.loads((inputs["evaluation"] / "metrics.json").read_text()) | evaluator.evaluate(detections)
    write_json_atomic(inputs["evaluation"] / "metrics.json", metrics)
    write_json_atomic(inputs["evaluation"] / "detections.json", detections)


def load_coco(inputs):
    return load_coco_keypoints(inputs["raw"] / "annotations" / "test.json")


def test_a_candidate_that_fell_behind_production_is_rejected(inputs, production_finds):
    content = annotated(inputs)
    production_finds(detections_at(content))
    candidate_finds(inputs, detections_at(content, shift_px=4.0))
    decision, _ = rejection(inputs, rules(no_loss(0.02)))
    [row] = [row for row in decision["differences"] if row["slice"] == "all"]
    assert row["production"] == pytest.approx(1) and row["difference"] < -0.3
    assert decision["verdict"].startswith("Rejected: Pose accuracy (OKS AP) is 0.")
    assert "a loss of more than 0.020 is proven (95 % interval -" in decision["verdict"]
    assert decision["sentence"] == (
        "The candidate must not follow version 3 in production: over all persons it is "
        f"{-row['difference']:.3f} AP below version 3, proven."
    )
    assert len(decision["changed_images"]["worse"]) == 12 and decision["changed_images"]["better"] == []
    worst = decision["changed_images"]["worse"][0]
    assert worst["production"]["mean_oks"] == pytest.approx(1) and worst["candidate"]["mean_oks"] < 0.95
    assert json.loads((inputs["report"] / "production_detections.json").read_text()) == detections_at(content)
    run = store.client().get_run(json.loads(inputs["run"].read_text())["run_id"])
    assert run.data.metrics["gate_oks_ap_difference"] == pytest.approx(row["difference"])
    assert run.data.metrics["gate_oks_ap_difference_high"] < -0.02
    assert run.data.tags["gate.mode"] == "reject_on_proven_regression"


def test_the_kind_of_error_that_grew_is_named(inputs, production_finds):
    content = annotated(inputs)
    ears = [COCO_PERSON.keypoint_names.index(f"{side}_ear") for side in ("left", "right")]
    inverted = copy.deepcopy(found := detections_at(content))
    for detection in inverted:
        points = detection["keypoints"]
        for left, right in zip(range(3 * ears[0], 3 * ears[0] + 2), range(3 * ears[1], 3 * ears[1] + 2), strict=True):
            points[left], points[right] = points[right], points[left]
    production_finds(found)
    candidate_finds(inputs, inverted)
    decision, _ = rejection(inputs, rules(no_loss(0.02)))
    errors = decision["errors"]
    assert errors["candidate"]["counts"]["inversion"] > 0 == errors["production"]["counts"]["inversion"]
    lost = errors["candidate"]["ap_lost"]["inversion"]
    assert lost > 0.05 > errors["production"]["ap_lost"]["inversion"]
    assert errors["sentence"].startswith(f"AP lost to inversions rose from 0.000 to {lost:.3f}")
    page = (inputs["report"] / "index.html").read_text()
    assert page.count(errors["sentence"]) == 1 and page.index(errors["sentence"]) < page.index('id="rules"')
    assert f'<td class="num">0.000</td><td class="num">{lost:.3f}</td><td class="num">+{lost:.3f}</td>' in page


def test_of_a_candidate_that_is_nowhere_worse_no_error_is_named(inputs, production_finds):
    content = annotated(inputs)
    production_finds(detections_at(content, shift_px=4.0))
    candidate_finds(inputs, detections_at(content))
    errors = run_gate(inputs)["errors"]
    assert errors["sentence"] is None and errors["production"]["ap_lost"]["jitter"] > 0.01


def test_a_better_candidate_passes_even_where_it_must_be_proven(inputs, production_finds):
    content = annotated(inputs)
    production_finds(detections_at(content, shift_px=4.0))
    candidate_finds(inputs, detections_at(content))
    settings = rules(no_loss(0.0), Improvement(rule="improvement"), mode="demand_non_inferiority")
    decision = run_gate(inputs, settings)
    assert "a gain is proven" in decision["rules"][-1]["sentence"]
    assert len(decision["changed_images"]["better"]) == 12


def standing(annotation_id: int, image_id: int, x: float, y: float, height: float) -> dict:
    """A person of one build, whose area is about half its box, as in COCO."""
    points = STANDING_XY * [height / 2, height] + [x, y]
    return {
        "id": annotation_id, "image_id": image_id, "category_id": 1, "bbox": [x, y, height / 2, height],
        "area": height**2 / 4, "iscrowd": 0, "num_keypoints": 17,
        "keypoints": [n for px, py in points.tolist() for n in (px, py, 2)],
    }  # fmt: skip


def street(inputs) -> dict:
    """Other test images: in each a small person, 40 px tall, far off, and six large ones."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 960, "height": 360} for i in range(1, N_IMAGES + 1)]
    rng, persons = np.random.default_rng(0), []
    for image in images:
        cv2.imwrite(str(inputs["raw"] / "images" / "test" / image["file_name"]), np.zeros((360, 960, 3), np.uint8))
        persons.append(standing(len(persons) + 1, image["id"], *rng.uniform(0, 60, 2).tolist(), 40.0))
        for column in range(40, 900, 150):
            persons.append(standing(len(persons) + 1, image["id"], column, 100.0, float(rng.uniform(210, 250))))
    content = {"images": images, "annotations": persons, "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(inputs["raw"] / "annotations" / "test.json", content)
    passport = json.loads((inputs["evaluation"] / "passport.json").read_text()) | {
        "annotations_sha256": sha256_of_file(inputs["raw"] / "annotations" / "test.json"),
        "images_sha256": sha256_of_files(sorted((inputs["raw"] / "images" / "test").iterdir())),
    }
    write_json_atomic(inputs["evaluation"] / "passport.json", passport)
    return content


def found_by(content: dict, *, seed: int) -> list[dict]:
    """What a fair model finds: keypoints beside where they are as far as annotators err, one person in ten missed."""
    rng, found = np.random.default_rng(seed), detections_at(content)
    for person, detection in zip(content["annotations"], found, strict=True):
        points = np.array(detection["keypoints"]).reshape(-1, 3)
        scale = 0.9 * person["area"] ** 0.5 * np.array(COCO_PERSON.sigmas)
        points[:, :2] += rng.normal(size=(17, 2)) * scale[:, None]
        detection |= {"keypoints": points.ravel().tolist(), "score": float(rng.uniform(0.3, 1.0))}
    return [detection for detection in found if rng.random() > 0.1]


def test_a_wrist_gone_astray_is_caught_by_its_slice_while_the_whole_hardly_moves(inputs, production_finds):
    content = street(inputs)
    found = found_by(content, seed=1)
    production_finds(found)
    astray, rng = copy.deepcopy(found), np.random.default_rng(4)
    left_wrist = COCO_PERSON.keypoint_names.index("left_wrist")
    for detection in astray:
        if detection["bbox"][3] < 100:  # the regression that is planted: on small persons, up to half their height
            detection["keypoints"][3 * left_wrist] += float(rng.uniform(3, 20))
    candidate_finds(inputs, astray)
    margin = 0.02
    overall = run_gate(inputs, rules(floor("oks_ap", 0.3), no_loss(margin), shown_slices=("size",)))
    rows = {row["slice"]: row for row in overall["differences"]}
    assert rows["size=small"]["persons"] == N_IMAGES and rows["size=large"]["persons"] == 6 * N_IMAGES
    assert 0.3 < rows["all"]["production"] < 0.9
    assert -margin < rows["all"]["difference"] < 0
    slices = ("all", "keypoint&size=small", "size=large")
    settings = rules(floor("oks_ap", 0.99), no_loss(margin, *slices), resamples=4000, shown_slices=())
    decision, message = rejection(inputs, settings)
    failed = [rule for rule in decision["rules"] if not rule["passed"]]
    assert [rule["slice"] for rule in failed] == ["all", "keypoint=left_wrist&size=small"]
    failed = failed[1:]
    assert decision["sentence"] == (
        "The candidate must not follow version 3 in production: at the left wrist of small persons it is "
        f"{-failed[0]['difference']:.3f} AP below version 3, proven; 1 other rule fails."
    )
    assert failed[0]["difference"] < -0.2
    assert "oks_ap in keypoint=left_wrist&size=small keeps up with production: Pose accuracy" in message
    assert "at the left wrist of small persons is 0." in message and "among 19 slices" in message
    assert len(decision["rules"]) == 2 + 19  # floor and comparable


def test_a_loss_at_one_site_is_seen_by_the_tag_of_its_images(inputs, production_finds):
    content = annotated(inputs)
    at_gate = {image["id"]: image["id"] % 6 > 0 for image in content["images"]}
    lines = [f"{image['file_name']},{'gate' if at_gate[image['id']] else 'yard'}" for image in content["images"]]
    (inputs["raw"] / "tags.csv").write_text("\n".join(["file_name,site", *lines]) + "\n")
    found = detections_at(content)
    production_finds(found)
    moved = detections_at(content, shift_px=6.0)
    candidate_finds(inputs, [m if at_gate[m["image_id"]] else f for f, m in zip(found, moved, strict=True)])
    decision, _ = rejection(inputs, rules(no_loss(0.05, "site")))
    assert [rule["slice"] for rule in decision["rules"] if not rule["passed"]] == ["site=gate"]
    assert "site=yard" in {row["slice"] for row in decision["differences"]}
    with pytest.raises(PosefoundryError, match="camera"):
        run_gate(inputs, rules(no_loss(0.05, "camera")))


@pytest.mark.parametrize(("mode", "passes"), [("reject_on_proven_regression", True), ("demand_non_inferiority", False)])
def test_too_few_images_for_the_margin_are_told(inputs, production_finds, mode, passes):
    ours, theirs = (shaken(annotated(inputs), seed) for seed in (1, 2))
    production_finds(theirs)
    candidate_finds(inputs, ours)
    settings = rules(no_loss(0.01), mode=mode)
    decision = run_gate(inputs, settings) if passes else rejection(inputs, settings)[0]
    power = decision["power"]
    assert power["images"] == N_IMAGES and power["is_enough"] is False
    assert power["smallest_visible_drop"] > 0.01 and power["images_needed"] > N_IMAGES
    says = f"With 24 images a drop under {power['smallest_visible_drop']:.3f} AP cannot be seen"
    assert power["sentence"].startswith(says)
    assert "cannot be seen" not in decision["sentence"] + decision["verdict"]
    page = (inputs["report"] / "index.html").read_text()
    assert page.count(power["sentence"]) == 1
    assert page.index("<h1>") < page.index(power["sentence"]) < page.index('id="rules"')


def test_more_slices_than_the_resamples_can_tell_apart_are_an_error(inputs, production_finds):
    content = annotated(inputs)
    production_finds(detections_at(content))
    candidate_finds(inputs, detections_at(content))
    with pytest.raises(PosefoundryError, match=r"17 slices, .* by 24 images, .* at least 2940, got 400") as error:
        run_gate(inputs, rules(no_loss(0.05, "keypoint"), confidence=0.95, resamples=400))
    assert not isinstance(error.value, RejectedError)


def test_a_slice_that_is_not_there_is_an_error_before_anything_is_judged(
    inputs, in_production, project, monkeypatch, make_weights
):
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    monkeypatch.setattr(gate, "judge_weights", lambda *a, **k: pytest.fail("judged"))
    with pytest.raises(PosefoundryError, match="left_wirst") as error:
        run_gate(inputs, rules(no_loss(0.0, "keypoint=left_wirst")))
    assert not isinstance(error.value, RejectedError)


def test_the_same_seed_gives_the_same_decision(inputs, production_finds):
    production_finds(shaken(annotated(inputs), 1))
    candidate_finds(inputs, shaken(annotated(inputs), 2))
    first = run_gate(inputs)
    assert first["differences"] == run_gate(inputs)["differences"]
    assert first["differences"] != run_gate(inputs, rules(no_loss(0.99), seed=1))["differences"]


def test_production_with_other_keypoints_rejects(inputs, in_production, project, make_weights):
    in_production(make_weights(project / "old" / "best.safetensors", skeleton=Skeleton.from_names(["a", "b"])))
    decision, message = rejection(inputs)
    assert "Version 3 in production could not be compared: The model's keypoints are 2 (a, b)" in message
    assert decision["production_version"] == "3"


def test_production_that_cannot_be_loaded_rejects(inputs, in_production, project, make_weights):
    weights = make_weights(project / "old" / "best.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    in_production(weights)
    _, message = rejection(inputs)
    assert "Version 3 in production could not be compared" in message
    decision = run_gate(inputs, rules(floor("box_ap", 0.0), no_loss(0.0), incomparable_production="waive"))
    assert decision["production_version"] == "3" and decision["differences"] == []


def test_a_changed_skeleton_can_be_waived_and_is_told(inputs, in_production, project, make_weights):
    in_production(make_weights(project / "old" / "best.safetensors", skeleton=Skeleton.from_names(["a", "b"])))
    decision = run_gate(inputs, rules(floor("box_ap", 0.0), no_loss(0.0), incomparable_production="waive"))
    assert decision["production_version"] == "3" and decision["power"] is None
    assert "it could not be compared, which gate.incomparable_production waives" in decision["sentence"]
    assert "The model's keypoints are 2 (a, b)" in decision["rules"][1]["sentence"]


def test_test_images_without_anybody_prove_nothing(inputs, in_production, project, make_weights):
    content = annotated(inputs) | {"annotations": []}
    write_json_atomic(inputs["raw"] / "annotations" / "test.json", content)
    weights, images = project / "models" / "best.safetensors", inputs["raw"] / "images" / "test"
    judgement = judge_weights(weights, inputs["raw"] / "annotations" / "test.json", images, JUDGED_BY)
    write_json_atomic(inputs["evaluation"] / "metrics.json", judgement.metrics)
    write_json_atomic(inputs["evaluation"] / "passport.json", judgement.passport)
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    nothing, message = rejection(inputs, rules(Floor(rule="floor", slice="corrected", at_least=0.9)))
    assert nothing["rules"] == [] and nothing["verdict"].startswith("Rejected: no rule finds anything to judge")
    assert message == nothing["sentence"] and "Add one on all persons" in message
    decision, _ = rejection(inputs, rules(floor("oks_ap", 0.0), no_loss(0.5)))
    assert [rule["passed"] for rule in decision["rules"]] == [False, True, False]
    assert "has no value on these test images, so it proves nothing" in decision["rules"][2]["sentence"]
    assert decision["power"] is None and decision["differences"] == []
    assert (inputs["report"] / "index.html").stat().st_size > 0


@pytest.mark.parametrize("field", ["confidence", "images_sha256"])
def test_numbers_that_were_measured_otherwise_reject_by_the_field(inputs, in_production, project, field, make_weights):
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    judged_by = JUDGED_BY
    if field == "confidence":
        judged_by = Evaluate(max_detections=20, confidence=0.5)
    else:
        cv2.imwrite(str(inputs["raw"] / "images" / "test" / "1.png"), np.zeros((64, 96, 3), np.uint8))
    _, message = rejection(inputs, judged_by=judged_by)
    assert f"Version 3 in production could not be compared: {field} was" in message


def test_production_comes_out_of_the_registry_and_rejects_where_it_is_gone_from_there(inputs, trained, project):
    evidence = Evidence(
        weights=trained / "best.safetensors", onnx=trained / "model.onnx", decision=trained / "decision.json",
        metrics={}, latency_p50_ms=None, example_image=trained / "street.png",
    )  # fmt: skip
    run_id = json.loads(inputs["run"].read_text())["run_id"]
    version = register_version("posefoundry", "posefoundry", run_id, evidence)
    store.client().set_registered_model_alias("posefoundry", "production", version.version)
    decision = run_gate(inputs)
    assert decision["production_version"] == version.version
    assert decision["passports"]["production"]["weights_sha256"] == sha256_of_file(trained / "best.safetensors")
    [stored] = project.glob("mlartifacts/**/best.safetensors")
    stored.unlink()
    decision, message = rejection(inputs)
    assert decision["production_version"] == version.version
    assert f"Version {version.version} in production could not be compared" in message
    assert "best.safetensors" in message and "Traceback" not in message


def test_a_store_out_of_reach_is_an_error_and_no_verdict(inputs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(PosefoundryError) as error:
        run_gate(inputs)
    assert not isinstance(error.value, RejectedError)
    assert not inputs["report"].exists()


def test_without_a_limit_on_regression_production_is_left_alone(inputs, monkeypatch):
    monkeypatch.setattr(gate, "aliases_of", lambda *a: pytest.fail("asked for production"))
    assert run_gate(inputs, rules(floor("box_ap", 0.0)))["passed"] is True


@pytest.mark.parametrize(("bound", "status"), [(0.0, 0), (0.99, 3)])
def test_the_process_ends_with_0_or_3(inputs, project, bound, status):
    (project / "params.yaml").write_text(f"gate: {{rules: [{{rule: floor, metric: box_ap, at_least: {bound}}}]}}\n")
    command = [sys.executable, "-m", "posefoundry.stages.gate"]
    for name in ("raw", "evaluation", "data_checks", "run", "report"):
        command += [f"--{name.replace('_', '-')}", str(inputs[name].relative_to(project))]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == status, ended.stderr
    assert read_decision(inputs)["passed"] is (status == 0)
    assert "box_ap reaches its floor" in ended.stdout
    assert ("fail" in ended.stdout) is (status == 3)
    if status == 3:
        assert ended.stderr.startswith(
            "gate: rejected. These rules fail:\n  box_ap reaches its floor: Person detection"
        )
        assert "Traceback" not in ended.stderr


def test_metrics_that_are_no_metrics_end_with_2(inputs, project):
    (inputs["evaluation"] / "metrics.json").write_text("[1, 2]")
    (project / "params.yaml").write_text("{}")
    command = [sys.executable, "-m", "posefoundry.stages.gate"]
    for name in ("raw", "evaluation", "data_checks", "run", "report"):
        command += [f"--{name.replace('_', '-')}", str(inputs[name])]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "metrics.json: expected what the stage before writes" in ended.stderr
    assert not inputs["report"].exists()
