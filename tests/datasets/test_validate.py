import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from posefoundry.config import Convert, Validate
from posefoundry.datasets.checks import CheckResult, data_checks, run_checks
from posefoundry.datasets.tables import build_tables
from posefoundry.errors import PosefoundryError
from posefoundry.files import read_json, write_json_atomic
from posefoundry.stages import convert as convert_stage
from posefoundry.stages import validate as validate_stage

Annotation = Callable[..., dict[str, Any]]
WriteRaw = Callable[..., Path]


@dataclass
class Data:
    """A converted data folder, and ways to do it harm."""

    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def yolo(self) -> Path:
        return self.folder / "yolo"

    @property
    def receipt(self) -> Path:
        return self.folder / "receipt.jsonl"

    def convert(self) -> None:
        report = self.folder / "convert.json"
        convert_stage.run(Convert(images="copy"), raw=self.raw, yolo=self.yolo, receipt=self.receipt, report=report)

    def validate(self, settings: Validate | None = None) -> dict[str, Any]:
        """Runs the stage and returns its report's checks by name; `report` has them also after a failure."""
        validate_stage.run(
            settings or Validate(),
            raw=self.raw,
            yolo=self.yolo,
            receipt=self.receipt,
            report=self.folder / "validate.json",
            docs=self.folder / "docs",
        )
        return self.report

    @property
    def report(self) -> dict[str, Any]:
        return {check["name"]: check for check in read_json(self.folder / "validate.json")["checks"]}

    def check(self, name: str) -> CheckResult:
        """Runs one check alone, which is faster."""
        checks = [check for check in data_checks(Validate()) if check.name == name]
        (result,) = run_checks(checks, build_tables(self.raw, self.yolo, self.receipt), self.folder)
        return result

    def edit_label(self, *changes: tuple[int, str], line: int = 0) -> None:
        """Changes fields of a line of train/person.txt: class 0, box 1..4, keypoints 5.. of 3."""
        path = self.yolo / "labels" / "train" / "person.txt"
        lines = [text.split() for text in path.read_text().splitlines()]
        for index, value in changes:
            lines[line][index] = value
        path.write_text("".join(" ".join(fields) + "\n" for fields in lines))

    def edit_annotation(self, **changes: Any) -> None:
        path = self.raw / "annotations" / "train.json"
        content = read_json(path)
        content["annotations"][0].update(changes)
        write_json_atomic(path, content)

    def edit_json(self, name: str, change: Callable[[Any], None]) -> None:
        content = read_json(self.raw / name)
        change(content)
        write_json_atomic(self.raw / name, content)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, annotation: Annotation, write_raw: WriteRaw) -> Path:
    """Two persons in train (ids 1 and 2), one in val, one in test, converted."""
    folder = tmp_path_factory.mktemp("good")
    write_raw(folder / "raw", [annotation(1), annotation(2, bbox=[12.0, 20.0, 40.0, 50.0])])
    Data(folder).convert()
    return folder


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Data:
    """A copy of the good data to do harm to."""
    return Data(shutil.copytree(good, tmp_path / "data"))


def remove_receipt_line(data: Data) -> None:
    data.receipt.write_text("".join(data.receipt.read_text().splitlines(keepends=True)[1:]))


def replace_image(data: Data) -> None:
    cv2.imwrite(str(data.yolo / "images" / "train" / "person.png"), np.zeros((80, 90, 3), np.uint8))


def truncate_image(data: Data) -> None:
    path = data.yolo / "images" / "train" / "person.png"
    path.write_bytes(path.read_bytes()[:-20])


def same_fingerprint(*paths: str) -> Callable[[Data], None]:
    def change(manifest: dict[str, Any]) -> None:
        for record in manifest["files"]:
            if record["path"] in paths:
                record["sha256"] = "0" * 64

    return lambda data: data.edit_json("manifest.json", change)


def forget_fingerprint(data: Data) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"] = [record for record in manifest["files"] if record["path"] != "images/train/person.png"]

    data.edit_json("manifest.json", change)


def set_aside(annotation: dict[str, Any] | None) -> Callable[[Data], None]:
    entry = {"split": "val", "reason": "broken", "annotation": annotation, "image": None, "detail": ""}
    return lambda data: data.edit_json("set_aside.json", lambda entries: entries.append(entry))


def leave_out_all_of_val(data: Data) -> None:
    lines = [json.loads(line) for line in data.receipt.read_text().splitlines()]
    for line in lines:
        if line["split"] == "val":
            line.update(outcome="left_out", reason="crowd", line=None)
    data.receipt.write_text("".join(json.dumps(line) + "\n" for line in lines))


PERSON_1 = "train/person.png, annotation 1"
PERSON_2 = "train/person.png, annotation 2"

# The check that must fail, what is done to the data, and how the message names the culprit.
ERRORS: list[tuple[str, Callable[[Data], None], str]] = [
    ("receipt_complete", remove_receipt_line, PERSON_1),
    ("label_line", lambda d: (d.yolo / "labels/train/person.txt").unlink(), f"{PERSON_1}: the label file is missing"),
    ("label_line", lambda d: (d.yolo / "labels/train/person.txt").write_text(""), f"{PERSON_1}: line 1"),
    ("label_line", lambda d: d.edit_label((7, ""), line=1), f"{PERSON_2}: line 2 has 13 numbers instead of 14"),
    ("label_line", lambda d: d.edit_label((5, "left")), f"{PERSON_1}: line 1 holds something else than numbers"),
    ("label_line", lambda d: d.edit_label((5, "nan")), f"{PERSON_1}: line 1 holds NaN or infinity"),
    ("class", lambda d: d.edit_label((0, "1")), PERSON_1),
    ("class", lambda d: d.edit_label((0, "0.5"), line=1), PERSON_2),
    ("box_in_image", lambda d: d.edit_label((1, "0.1")), f"{PERSON_1}: box_outside 0.1"),
    ("keypoints_in_image", lambda d: d.edit_label((6, "1.25")), f"{PERSON_1}: keypoints_outside 0.25"),
    ("visibility", lambda d: d.edit_label((7, "3")), f"{PERSON_1}: odd_visibilities 1"),
    ("visibility", lambda d: d.edit_label((7, "0.5"), line=1), f"{PERSON_2}: odd_visibilities 1"),
    ("num_keypoints", lambda d: d.edit_annotation(num_keypoints=3), "num_keypoints 3, labelled_keypoints 2"),
    ("area", lambda d: d.edit_annotation(area=0), f"{PERSON_1}: area 0"),
    ("area", lambda d: d.edit_annotation(area=-4.5), f"{PERSON_1}: area -4.5"),
    ("label_equals_annotation", lambda d: d.edit_label((5, "0.300011")), f"{PERSON_1}: label_difference 1.1e-05"),
    ("label_equals_annotation", lambda d: d.edit_label((4, "0.624"), line=1), PERSON_2),
    ("label_equals_annotation", lambda d: d.edit_label((7, "1")), f"{PERSON_1}: label_difference 1"),
    ("label_equals_annotation", lambda d: d.edit_annotation(bbox=[10, 20, 40, 51]), PERSON_1),
    ("image_exists", lambda d: (d.yolo / "images/test/empty.png").unlink(), "test/empty.png"),
    ("image_annotated", lambda d: (d.yolo / "images/test/stray.png").write_bytes(b"x"), "test/stray.png"),
    ("label_exists", lambda d: (d.yolo / "labels/val/empty.txt").unlink(), "val/empty.png"),
    ("image_size", replace_image, "train/person.png: size 100x80, size_of_file 90x80"),
    ("image_size", lambda d: (d.yolo / "images/val/empty.png").write_bytes(b"x"), "size_of_file unreadable"),
    ("image_unchanged", truncate_image, "train/person.png: bytes"),
    ("label_lines", lambda d: (d.yolo / "labels/val/empty.txt").write_text("0\n"), "receipt_lines 0, label_lines 1"),
    ("fingerprint", forget_fingerprint, "train/person.png"),
    (
        "splits_disjoint",
        same_fingerprint("images/train/person.png", "images/val/person.png"),
        "train/person.png: val/person.png; val/person.png: train/person.png",
    ),
    ("min_persons", leave_out_all_of_val, "val: persons 0"),
    ("set_aside", set_aside({"id": 9}), "all: set_aside_fraction 0.2"),
]  # fmt: skip

WARNINGS: list[tuple[str, Callable[[Data], None], str]] = [
    ("area_measured", lambda d: d.edit_annotation(area=None), PERSON_1),
    ("area_in_box", lambda d: d.edit_annotation(area=2100), f"{PERSON_1}: area_of_box 1.05"),
    ("images_distinct", same_fingerprint("images/val/person.png", "images/val/empty.png"), "val/empty.png"),
    ("images_set_aside", set_aside(None), "val: images_set_aside 1"),
]


def ids(cases: list[tuple[str, Any, str]]) -> list[str]:
    return [f"{name}-{number}" for number, (name, *_) in enumerate(cases)]


def test_good_data_passes(data: Data) -> None:
    report = data.validate()
    assert {name for name, check in report.items() if not check["passed"]} == set()
    assert {check.name for check in data_checks(Validate())} == set(report)
    assert [report[name]["rows"] for name in ("area", "image_size", "min_persons")] == [4, 6, 4]


@pytest.mark.parametrize(("name", "harm", "culprit"), ERRORS, ids=ids(ERRORS))
def test_planted_fault_is_an_error_and_is_named(
    data: Data, name: str, harm: Callable[[Data], None], culprit: str
) -> None:
    harm(data)
    result = data.check(name)
    assert not result.passed and result.fault is None and result.check.level == "error"
    assert culprit in "; ".join(result.offenders)


@pytest.mark.parametrize(("name", "harm", "culprit"), WARNINGS, ids=ids(WARNINGS))
def test_what_is_odd_is_a_warning(data: Data, name: str, harm: Callable[[Data], None], culprit: str) -> None:
    harm(data)
    result = data.check(name)
    assert not result.passed and result.fault is None and result.check.level == "warning"
    assert culprit in "; ".join(result.offenders)


def test_warnings_do_not_stop_but_are_said(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    data.edit_annotation(area=2100)
    failed = [name for name, check in data.validate().items() if not check["passed"]]
    assert failed == ["area_in_box"] and read_json(data.folder / "validate.json")["passed"] is True
    assert f"warning: area_in_box: 'No area is larger than its box' fails for 1 of 4: {PERSON_1}" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"bbox": [-10, 20, 60, 50]}, {"inside_image": f"{PERSON_1}: box"}),
        ({"bbox": [10, 20, 40, 90]}, {"inside_image": f"{PERSON_1}: box"}),
        ({"keypoints": [30, 30, 2, 35, -3, 1, 0, 0, 0]}, {"inside_image": f"{PERSON_1}: keypoints"}),
        ({"keypoints": [30, 30, 2, 76, 30, 1, 0, 0, 0]}, {"keypoints_near_box": f"{PERSON_1}: keypoints_off_box 0.52"}),
    ],
)
def test_clipped_and_stray_persons_are_warnings(
    tmp_path: Path, annotation: Annotation, write_raw: WriteRaw, changes: dict[str, Any], warnings: dict[str, str]
) -> None:
    """Their labels still equal what the annotations say within the image."""
    write_raw(tmp_path / "raw", [annotation(1, **changes)])
    data = Data(tmp_path)
    data.convert()
    assert {name: check["offenders"][0] for name, check in data.validate().items() if not check["passed"]} == warnings


def test_report_and_docs_are_there_to_look_at_after_a_failure(data: Data) -> None:
    (data.yolo / "labels" / "val" / "person.txt").unlink()
    with pytest.raises(
        PosefoundryError, match=r"2 of them failed:\n  label_line: .* annotation 1: the label.*\n  label_ex"
    ):
        data.validate()
    report = read_json(data.folder / "validate.json")
    assert report["passed"] is False and report["failed_errors"] == 2 and report["failed_warnings"] == 0
    front = unescape((data.folder / "docs" / "index.html").read_text())
    assert "2 of 25 checks failed" in front
    assert "Each image has a label file" in front and "val/person.png, annotation 1: the label file is missing" in front


def test_docs_are_whole_without_a_network(data: Data) -> None:
    data.edit_annotation(area=2100)
    data.validate()
    data.validate()
    docs = data.folder / "docs"
    pages = {page.relative_to(docs): unescape(page.read_text()) for page in docs.rglob("*.html")}
    assert not [name for name, text in pages.items() if "http" in text or "<script" in text]
    front = pages[Path("index.html")]
    links = re.findall(r'href="([^"]+)"', front)
    assert len(links) == 3 and all((docs / link).is_file() for link in links)
    persons = pages[next(docs.glob("validations/**/*persons.html")).relative_to(docs)]
    assert "No person's area is 0 or less" in persons and "1.05" in persons


def test_bounds_come_from_the_settings(data: Data) -> None:
    set_aside({"id": 9})(data)
    data.validate(Validate(max_set_aside_fraction=0.2))
    with pytest.raises(PosefoundryError, match=r"min_persons: .* at least 2 labelled persons .* val: persons 1"):
        data.validate(Validate(max_set_aside_fraction=0.2, min_persons_per_split=2))


def test_first_five_offenders_are_named(tmp_path: Path, annotation: Annotation, write_raw: WriteRaw) -> None:
    write_raw(tmp_path / "raw", [annotation(i, bbox=[10.0, 10.0 + i, 40.0, 50.0]) for i in range(8)])
    data = Data(tmp_path)
    data.convert()
    (data.yolo / "labels" / "train" / "person.txt").unlink()
    with pytest.raises(PosefoundryError, match=r"label_line: .* fails for 8 of 10"):
        data.validate()
    assert [text.split(":")[0] for text in data.report["label_line"]["offenders"]] == [
        f"train/person.png, annotation {i}" for i in range(5)
    ]


def test_data_without_any_person_fails_plainly(tmp_path: Path, write_raw: WriteRaw) -> None:
    write_raw(tmp_path / "raw", [])
    data = Data(tmp_path)
    for split in ("val", "test"):
        data.edit_json(f"annotations/{split}.json", lambda content: content.update(annotations=[]))
    data.convert()
    with pytest.raises(
        PosefoundryError, match=r"1 of them failed:\n  min_persons: .* train: persons 0; val: persons 0"
    ):
        data.validate()


def test_fault_of_the_set_up_is_told_from_a_fault_of_the_data(data: Data, tmp_path: Path) -> None:
    tables = build_tables(data.raw, data.yolo, data.receipt)
    tables = replace(tables, persons=tables.persons.drop(columns="area"))
    results = {result.check.name: result for result in run_checks(data_checks(Validate()), tables, tmp_path)}
    failed = [result for result in results.values() if not result.passed]
    assert [result.check.name for result in failed] == ["area", "area_measured"]
    assert failed[0].fault and '"area"' in failed[0].fault and failed[0].failed_rows == 0


def test_fault_of_the_set_up_is_said(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def could_not_run(checks: list[Any], *_: Any) -> list[CheckResult]:
        return [CheckResult(check=checks[0], rows=4, failed_rows=0, offenders=(), fault='column "outcome" is missing')]

    monkeypatch.setattr(validate_stage, "run_checks", could_not_run)
    with pytest.raises(PosefoundryError, match="receipt_complete: could not run, because of the set-up and not of the"):
        data.validate()


@pytest.mark.parametrize("name", ["receipt.jsonl", "raw/manifest.json", "raw/set_aside.json", "yolo/dataset.yaml"])
def test_missing_file_is_named(data: Data, name: str) -> None:
    (data.folder / name).unlink()
    with pytest.raises(PosefoundryError, match=Path(name).name):
        data.validate()


def test_command_ends_with_status_2_and_no_traceback(data: Data) -> None:
    (data.yolo / "labels" / "val" / "person.txt").write_text("0 0.5\n")
    (data.folder / "params.yaml").write_text("{}\n")
    names = ("raw", "yolo", "receipt.jsonl")
    paths = [part for name in names for part in (f"--{Path(name).stem}", name)]
    done = subprocess.run(
        [sys.executable, "-m", "posefoundry.stages.validate", *paths, "--report", "report.json", "--docs", "docs"],
        cwd=data.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "val/person.png, annotation 1: line 1 has 2 numbers instead of 14" in done.stderr
    assert "Traceback" not in done.stderr and (data.folder / "docs" / "index.html").exists()
