"""How the candidate did beside the model in production, and what is said of it."""

import copy
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from gate_rules import DEMAND, REJECT, at_least, gain, no_loss

from posefoundry.datasets.coco import load_coco_keypoints
from posefoundry.errors import PosefoundryError, RejectedError
from posefoundry.evaluation.judge import evaluator_of
from posefoundry.evaluation.passport import sha256_of_files
from posefoundry.files import sha256_of_file, write_json_atomic
from posefoundry.registry import store
from posefoundry.skeleton import COCO_PERSON, COCO_PERSON_CATEGORY
from posefoundry.stages import gate


def detections_at(content: dict, shift_px: float = 0.0) -> list[dict]:
    """Finds each person, to the right of where it is."""
    found = []
    for person in content["annotations"]:
        points = np.array(person["keypoints"], float).reshape(-1, 3)
        points[:, 0] += shift_px
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


def found_by(content: dict, *, seed: int) -> list[dict]:
    """What a fair model finds: keypoints beside where they are as far as annotators err, one person in ten missed."""
    rng, found = np.random.default_rng(seed), detections_at(content)
    for person, detection in zip(content["annotations"], found, strict=True):
        points = np.array(detection["keypoints"]).reshape(-1, 3)
        scale = 0.9 * person["area"] ** 0.5 * np.array(COCO_PERSON.sigmas)
        points[:, :2] += rng.normal(size=(17, 2)) * scale[:, None]
        detection |= {"keypoints": points.ravel().tolist(), "score": float(rng.uniform(0.3, 1.0))}
    return [detection for detection in found if rng.random() > 0.1]


@pytest.fixture
def street(inputs, person) -> dict:
    """24 other test images: in each a small person, 40 px tall, far off, and six large ones."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 960, "height": 360} for i in range(1, 25)]
    rng, persons = np.random.default_rng(0), []
    for image in images:
        cv2.imwrite(str(inputs["raw"] / "images" / "test" / image["file_name"]), np.zeros((360, 960, 3), np.uint8))
        persons.append(person(len(persons) + 1, image["id"], *rng.uniform(0, 60, 2).tolist(), 20.0, 40.0))
        for column in range(40, 900, 150):
            height = float(rng.uniform(210, 250))
            persons.append(person(len(persons) + 1, image["id"], column, 100.0, height / 2, height))
    content = {"images": images, "annotations": persons, "categories": [COCO_PERSON_CATEGORY]}
    write_json_atomic(inputs["raw"] / "annotations" / "test.json", content)
    passport = json.loads((inputs["evaluation"] / "passport.json").read_text()) | {
        "annotations_sha256": sha256_of_file(inputs["raw"] / "annotations" / "test.json"),
        "images_sha256": sha256_of_files(sorted((inputs["raw"] / "images" / "test").iterdir())),
    }
    write_json_atomic(inputs["evaluation"] / "passport.json", passport)
    return content


@pytest.fixture
def contest(inputs, in_production, project, monkeypatch, make_weights):
    """Lets version 3 in production and the candidate find what a test wants them to, in the images they are shown."""

    def put(*, production: list[dict], candidate: list[dict]) -> None:
        in_production(make_weights(project / "old" / "best.safetensors", seed=1))
        judge = gate.judge_weights

        def judge_as_wanted(*arguments, **named):
            judgement = judge(*arguments, **named)
            evaluation = judgement.evaluator.evaluate_in_detail(production)
            return replace(judgement, detections=production, evaluation=evaluation)

        monkeypatch.setattr(gate, "judge_weights", judge_as_wanted)
        annotations = inputs["raw"] / "annotations" / "test.json"
        evaluator = evaluator_of(annotations, load_coco_keypoints(annotations))
        metrics = json.loads((inputs["evaluation"] / "metrics.json").read_text()) | evaluator.evaluate(candidate)
        write_json_atomic(inputs["evaluation"] / "metrics.json", metrics)
        write_json_atomic(inputs["evaluation"] / "detections.json", candidate)

    return put


def test_a_candidate_that_fell_behind_production_is_rejected(inputs, contest, rejection, annotated):
    contest(production=detections_at(annotated), candidate=detections_at(annotated, shift_px=4.0))
    decision, _ = rejection(no_loss(0.02))
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
    assert json.loads((inputs["report"] / "production_detections.json").read_text()) == detections_at(annotated)
    run = store.client().get_run(json.loads(inputs["run"].read_text())["run_id"])
    assert run.data.metrics["gate_oks_ap_difference"] == pytest.approx(row["difference"])
    assert run.data.metrics["gate_oks_ap_difference_high"] < -0.02
    assert run.data.tags["gate.mode"] == "reject_on_proven_regression"


def test_the_kind_of_error_that_grew_is_named(inputs, contest, rejection, annotated):
    ears = [COCO_PERSON.keypoint_names.index(f"{side}_ear") for side in ("left", "right")]
    inverted = copy.deepcopy(found := detections_at(annotated))
    for detection in inverted:
        points = detection["keypoints"]
        for left, right in zip(range(3 * ears[0], 3 * ears[0] + 2), range(3 * ears[1], 3 * ears[1] + 2), strict=True):
            points[left], points[right] = points[right], points[left]
    contest(production=found, candidate=inverted)
    decision, _ = rejection(no_loss(0.02))
    errors = decision["errors"]
    assert errors["candidate"]["counts"]["inversion"] > 0 == errors["production"]["counts"]["inversion"]
    lost = errors["candidate"]["ap_lost"]["inversion"]
    assert lost > 0.05 > errors["production"]["ap_lost"]["inversion"]
    assert errors["sentence"].startswith(f"AP lost to inversions rose from 0.000 to {lost:.3f}")
    page = (inputs["report"] / "index.html").read_text()
    assert page.count(errors["sentence"]) == 1 and page.index(errors["sentence"]) < page.index('id="rules"')
    assert f'<td class="num">0.000</td><td class="num">{lost:.3f}</td><td class="num">+{lost:.3f}</td>' in page


def test_of_a_candidate_that_is_nowhere_worse_no_error_is_named(contest, run_gate, annotated):
    contest(production=detections_at(annotated, shift_px=4.0), candidate=detections_at(annotated))
    errors = run_gate()["errors"]
    assert errors["sentence"] is None and errors["production"]["ap_lost"]["jitter"] > 0.01


def test_a_better_candidate_passes_even_where_it_must_be_proven(contest, run_gate, annotated):
    contest(production=detections_at(annotated, shift_px=4.0), candidate=detections_at(annotated))
    decision = run_gate(no_loss(0.0), gain(), mode=DEMAND)
    assert "a gain is proven" in decision["rules"][-1]["sentence"]
    assert len(decision["changed_images"]["better"]) == 12


def test_a_wrist_gone_astray_is_caught_by_its_slice_while_the_whole_hardly_moves(contest, run_gate, rejection, street):
    found = found_by(street, seed=1)
    astray, rng = copy.deepcopy(found), np.random.default_rng(4)
    left_wrist = COCO_PERSON.keypoint_names.index("left_wrist")
    for detection in astray:
        if detection["bbox"][3] < 100:  # the regression that is planted: on small persons, up to half their height
            detection["keypoints"][3 * left_wrist] += float(rng.uniform(3, 20))
    contest(production=found, candidate=astray)
    margin = 0.02
    overall = run_gate(at_least(0.3), no_loss(margin), shown_slices=("size",))
    rows = {row["slice"]: row for row in overall["differences"]}
    assert rows["size=small"]["persons"] == 24 and rows["size=large"]["persons"] == 6 * 24
    assert 0.3 < rows["all"]["production"] < 0.9
    assert -margin < rows["all"]["difference"] < 0
    slices = ("all", "keypoint&size=small", "size=large")
    decision, message = rejection(at_least(0.99), no_loss(margin, *slices), resamples=4000, shown_slices=())
    floor, wrist = (rule for rule in decision["rules"] if not rule["passed"])
    assert (floor["slice"], wrist["slice"]) == ("all", "keypoint=left_wrist&size=small")
    assert decision["sentence"] == (
        "The candidate must not follow version 3 in production: at the left wrist of small persons it is "
        f"{-wrist['difference']:.3f} AP below version 3, proven; 1 other rule fails."
    )
    assert wrist["difference"] < -0.2
    assert "oks_ap in keypoint=left_wrist&size=small keeps up with production: Pose accuracy" in message
    assert "at the left wrist of small persons is 0." in message and "among 19 slices" in message
    assert len(decision["rules"]) == 2 + 19  # floor and comparable


def test_a_loss_at_one_site_is_seen_by_the_tag_of_its_images(inputs, contest, run_gate, rejection, annotated):
    at_gate = {image["id"]: image["id"] % 6 > 0 for image in annotated["images"]}
    lines = [f"{image['file_name']},{'gate' if at_gate[image['id']] else 'yard'}" for image in annotated["images"]]
    (inputs["raw"] / "tags.csv").write_text("\n".join(["file_name,site", *lines]) + "\n")
    found = detections_at(annotated)
    moved = detections_at(annotated, shift_px=6.0)
    contest(production=found, candidate=[m if at_gate[m["image_id"]] else f for f, m in zip(found, moved, strict=True)])
    decision, _ = rejection(no_loss(0.05, "site"))
    assert [rule["slice"] for rule in decision["rules"] if not rule["passed"]] == ["site=gate"]
    assert "site=yard" in {row["slice"] for row in decision["differences"]}
    with pytest.raises(PosefoundryError, match="camera"):
        run_gate(no_loss(0.05, "camera"))


@pytest.mark.parametrize(("mode", "passes"), [(REJECT, True), (DEMAND, False)])
def test_too_few_images_for_the_margin_are_told(inputs, contest, run_gate, rejection, annotated, mode, passes):
    ours, theirs = (shaken(annotated, seed) for seed in (1, 2))
    contest(production=theirs, candidate=ours)
    decision = run_gate(no_loss(0.01), mode=mode) if passes else rejection(no_loss(0.01), mode=mode)[0]
    power = decision["power"]
    assert power["images"] == 24 and power["is_enough"] is False
    assert power["smallest_visible_drop"] > 0.01 and power["images_needed"] > 24
    says = f"With 24 images a drop under {power['smallest_visible_drop']:.3f} AP cannot be seen"
    assert power["sentence"].startswith(says)
    assert "cannot be seen" not in decision["sentence"] + decision["verdict"]
    page = (inputs["report"] / "index.html").read_text()
    assert page.count(power["sentence"]) == 1
    assert page.index("<h1>") < page.index(power["sentence"]) < page.index('id="rules"')


def test_more_slices_than_the_resamples_can_tell_apart_are_an_error(contest, run_gate, annotated):
    contest(production=detections_at(annotated), candidate=detections_at(annotated))
    with pytest.raises(PosefoundryError, match=r"17 slices, .* by 24 images, .* at least 2940, got 400") as error:
        run_gate(no_loss(0.05, "keypoint"), confidence=0.95, resamples=400)
    assert not isinstance(error.value, RejectedError)


def test_a_slice_that_is_not_there_is_an_error_before_anything_is_judged(
    in_production, project, monkeypatch, make_weights, run_gate
):
    in_production(make_weights(project / "old" / "best.safetensors", seed=1))
    monkeypatch.setattr(gate, "judge_weights", lambda *a, **k: pytest.fail("judged"))
    with pytest.raises(PosefoundryError, match="left_wirst") as error:
        run_gate(no_loss(0.0, "keypoint=left_wirst"))
    assert not isinstance(error.value, RejectedError)


def test_the_same_seed_gives_the_same_decision(contest, run_gate, annotated):
    contest(production=shaken(annotated, 1), candidate=shaken(annotated, 2))
    first = run_gate()
    assert first["differences"] == run_gate()["differences"]
    assert first["differences"] != run_gate(no_loss(0.99), seed=1)["differences"]
