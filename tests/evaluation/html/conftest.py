"""An evaluation and a decision with all their files, and the pages that are made of them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from posefoundry.evaluation.html import write_decision_page
from posefoundry.files import write_json_atomic

EVIL = "<script>alert(1)</script>'\" & co.png"


@pytest.fixture
def data(tmp_path, person, coco) -> dict[str, Path]:
    """Six images, one of a hostile name, each with a person; the last with four."""
    images, rng = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    people = [person(i, i, 60 * i, 40, 120, 300) for i in range(1, 7)]
    people += [person(10 + i, 6, 40 + 130 * i, 100, 60, 150) for i in range(3)]
    content = coco(people, n_images=6)
    content["images"][0]["file_name"] = EVIL.replace("/", "")
    for image in content["images"]:
        cv2.imwrite(str(images / image["file_name"]), rng.integers(0, 255, (480, 640, 3), np.uint8))
    write_json_atomic(tmp_path / "annotations.json", content)
    return {"annotations": tmp_path / "annotations.json", "images": images}


@pytest.fixture
def evaluation(tmp_path, data, detection) -> Path:
    """An evaluation's folder, with all its files."""
    folder = tmp_path / "evaluate"
    truth = json.loads(data["annotations"].read_text())
    people = truth["annotations"]
    found = [detection(p, score=0.5 + 0.04 * i, shift_xy=(3, i)) for i, p in enumerate(people[:8])]
    write_json_atomic(folder / "detections.json", found)
    rows = [
        f"{p['image_id']},{p['id']},{p['area']},{0.9 - 0.1 * i:.2f},{0.5 + 0.04 * i}" for i, p in enumerate(people[:8])
    ]
    rows.append(f"6,{people[8]['id']},{people[8]['area']},0,")
    (folder / "oks_hist.csv").write_text("image_id,annotation_id,area_px2,oks,score\n" + "\n".join(rows) + "\n")
    curve = "".join(f"{r / 100},{1 - r / 100},{1 - r / 200},{1 - r / 120}\n" for r in range(101))
    header = "recall,precision_oks50_95,precision_oks50,precision_oks75\n"
    (folder / "pr_curve.csv").write_text(header + curve)
    write_json_atomic(
        folder / "metrics.json", {"oks_ap": 0.6543, "oks_ap50": 0.9, "oks_ap_l": None, "images": 6, "persons": 9}
    )
    write_json_atomic(folder / "passport.json", {"model": EVIL, "sigmas": [0.1, 0.2], "versions": {"torch": "2"}})
    slices = [
        {"slice": f"keypoint={name}", "group": "keypoint", "value": name, "images": 6, "persons": 20, "oks_ap": ap}
        for name, ap in (("nose", 0.9), ("left_wrist", 0.3), ("right_wrist", None))
    ]
    slices.append({"slice": f"site={EVIL}", "group": "site", "value": EVIL, "persons": 11, "oks_ap": 0.5})
    write_json_atomic(folder / "slices.json", slices)
    write_json_atomic(folder / "warnings.json", ["The OKS AP flatters & misleads."])
    write_json_atomic(folder / "errors.json", {"counts": {"good": 90, "swap": 3}, "ap_lost": {"swap": 0.04}})
    write_json_atomic(folder / "calibration.json", {"bins": [
        {"score_low": 0.5, "score_high": 0.6, "detections": 4, "mean_score": 0.55, "fraction_right": 0.5},
        {"score_low": 0.6, "score_high": 0.7, "detections": 0, "mean_score": None, "fraction_right": None},
    ], "expected_calibration_error": 0.05})  # fmt: skip
    write_json_atomic(
        folder / "classes.json", {"classes": ["person", EVIL], "confusion": [[7, 1, 1], [0, 0, 0], [2, 0, 0]]}
    )
    write_json_atomic(folder / "images.json", [
        {"image_id": image["id"], "file_name": image["file_name"], "persons": 4 if image["id"] == 6 else 1, "found": 1,
         "missed": 0, "false_positives": 0, "score": 0.1 * image["id"], "mean_score": 0.9 - 0.1 * image["id"],
         "tags": {"site": EVIL if image["id"] % 2 else "yard"}}
        for image in truth["images"]
    ])  # fmt: skip
    return folder


@pytest.fixture
def gate(tmp_path, evaluation) -> Path:
    """A decision's folder, with all its files."""
    folder = tmp_path / "gate"
    rule = {
        "name": EVIL, "kind": "no_regression", "passed": False, "sentence": "It fell.", "candidate": 0.3,
        "production": 0.41, "difference": -0.11, "interval": [-0.2, -0.04], "p_value_holm": 0.01, "margin": 0.02,
    }  # fmt: skip
    write_json_atomic(folder / "decision.json", {
        "passed": False, "verdict": "Rejected: 1 of 1 rule fails.", "sentence": "Rejected: the left wrist got worse.",
        "mode": "demand_non_inferiority", "production_version": "7", "rules": [rule],
        "differences": [
            {"slice": "all", "persons": 9, "difference": 0.02, "interval": [-0.01, 0.05], "p_value_holm": 0.4},
            {"slice": "keypoint=left_wrist&size=small", "persons": 4, "difference": -0.11, "interval": [-0.2, -0.04],
             "proven": "worse"},
            {"slice": f"site={EVIL}", "persons": 1, "difference": 0.3, "interval": None},
        ],
        "power": {"images": 6, "smallest_visible_drop": 0.2, "sentence": "With 6 images little can be seen."},
        "changed_images": {
            "worse": [{"image_id": 1, "candidate": {"score": 0.2, "mean_oks": 0.4, "false_positives": 1},
                       "production": {"score": 0.6, "mean_oks": 0.6, "false_positives": 0}}],
            "better": [{"image_id": 6, "candidate": {"score": 0.9, "mean_oks": 0.9}, "production": None},
                       {"image_id": 99, "candidate": {"score": 0.9}, "production": {"score": 0.1}}],
        },
    })  # fmt: skip
    shutil.copy(evaluation / "detections.json", folder / "production_detections.json")
    return folder


@pytest.fixture
def decision_page(gate: Path, evaluation: Path, data: dict[str, Path]) -> Callable[[], Path]:
    """Writes the page of the decision as its files are now."""
    return lambda: write_decision_page(gate, **data, candidate_detections=evaluation / "detections.json")


@pytest.fixture
def sections() -> Callable[[str], dict[str, str]]:
    """Parts a page into its sections, by their ids."""
    return lambda page: dict(re.findall(r'<section id="(\w+)"(.*?)</section>', page, re.DOTALL))
