"""The pages: whole where files are missing, harmless whatever they show, small, and well behaved in a browser."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from posefoundry.evaluation.html import pictures, write_decision_page, write_evaluation_page
from posefoundry.evaluation.html.decision_page import _forest
from posefoundry.evaluation.html.evaluation_page import _findings
from posefoundry.evaluation.html.rendering import signed, slice_title
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


def decision_page(gate: Path, evaluation: Path, data: dict[str, Path]) -> Path:
    return write_decision_page(gate, **data, candidate_detections=evaluation / "detections.json")


def sections(page: str) -> dict[str, str]:
    return dict(re.findall(r'<section id="(\w+)"(.*?)</section>', page, re.DOTALL))


def test_the_evaluation_page_shows_what_the_files_say(evaluation, data):
    page = sections(write_evaluation_page(evaluation, **data).read_text())
    assert not any("Left out" in section for section in page.values())
    assert "<strong>0.654</strong>" in page["numbers"]
    assert "89 % of 9 persons are found" not in page["numbers"], "five of nine have an OKS of .50 or more"
    assert "56 % of 9 persons are found" in page["numbers"]
    assert "<b>Mind:</b> The OKS AP flatters &amp; misleads." in page["numbers"]
    assert "The weakest keypoint is the left wrist: AP 0.300 on 20 persons." in page["numbers"]
    assert "Most AP is lost to swaps: without, the AP would be 0.040 higher." in page["numbers"]
    assert page["gallery"].count("<figure") == 3 * 6
    assert '<a href="../gate/index.html">' in page["gallery"]
    assert page["gallery"].count("data:image/jpeg") == 6, "a photograph is in the page once"
    assert page["classes"].count("<td style") == 9


def test_the_weakest_slice_is_told_in_words_and_what_costs_nothing_is_not_told():
    rows = [
        {"slice": f"visibility={value}", "group": "visibility", "value": value, "persons": 20, "oks_ap": ap}
        for value, ap in (("visible", 0.8), ("occluded", 0.4))
    ]
    assert _findings([], rows, {"ap_lost": {"swap": 0.0004}}) == [
        "AP is lowest at occluded keypoints: 0.400 on 20 persons."
    ]
    assert _findings([], [], {"ap_lost": {"swap": 0.0005, "miss": None, "jitter": "x"}}) == [
        "Most AP is lost to swaps: without, the AP would be 0.001 higher."
    ]


def test_the_decision_page_shows_what_the_decision_says(gate, evaluation, data):
    text = decision_page(gate, evaluation, data).read_text()
    page = sections(text)
    assert "<h1>The left wrist got worse.</h1>" in text
    assert "passes only where it is proven not to be worse" in text
    assert "left wrist, size small" in page["differences"]
    assert text.count("With 6 images little can be seen.") == 1
    assert text.index("<h1>") < text.index("With 6 images little can be seen.") < text.index('<section id="rules"')
    assert page["changed"].count("<figure") == 2, "an image that is not in the annotations is not shown"
    assert page["changed"].count('class="panel"') == 6
    assert "candidate <b>OKS 0.40, 1 false</b>" in page["changed"]
    assert '<b class="change">−0.40</b>' in page["changed"]  # noqa: RUF001


@pytest.mark.parametrize(
    ("mode", "asked", "strictly"),
    [
        ("reject_on_proven_regression", "no proven loss over 0.030", "no proven loss"),
        ("demand_non_inferiority", "a loss over 0.030 ruled out", "a loss ruled out"),
    ],
)
def test_what_was_asked_is_what_the_mode_asks(gate, evaluation, data, mode, asked, strictly):
    decision = json.loads((gate / "decision.json").read_text())
    kept = {"kind": "no_regression", "passed": True, "difference": -0.049, "margin": 0.03}
    strict = decision["rules"][0] | {"name": "strict", "margin": 0.0}
    decision["rules"] = [
        kept | {"name": "kept", "slice": "size=small"},
        kept | {"name": "whole", "slice": "all"},
        strict,
    ]
    write_json_atomic(gate / "decision.json", decision | {"mode": mode})
    shown = sections(decision_page(gate, evaluation, data).read_text())["rules"]
    assert re.findall(r'<td data-title="asked"><div>([^<]*)<', shown) == [strictly, asked, asked]
    names = [shown.index(f'<th scope="row">{name}') for name in ("strict", "whole", "kept")]
    assert names == sorted(names), "what fails comes first"
    assert shown.count("<details") == 1 and names[1] < shown.index("<details") < names[2]
    assert "1 rule is kept in its slice" in shown


def test_images_change_only_against_a_model_in_production(gate, evaluation, data):
    decision = json.loads((gate / "decision.json").read_text()) | {"changed_images": {"better": [], "worse": []}}
    write_json_atomic(gate / "decision.json", decision)
    page = sections(decision_page(gate, evaluation, data).read_text())
    assert "rose or fell by 0.05 or more" in page["changed"]
    write_json_atomic(gate / "decision.json", decision | {"differences": []})
    assert "changed" not in sections(decision_page(gate, evaluation, data).read_text())


@pytest.mark.parametrize("content", [None, "null", "[]", "{}", '{"a"', '[{"image_id": 3}, 7, null]'])
def test_a_section_without_its_file_says_why(evaluation, data, gate, content):
    for folder in (evaluation, gate):
        for path in list(folder.iterdir()):
            path.unlink() if content is None else path.write_text(content)
    page = sections(write_evaluation_page(evaluation, **data).read_text())
    reasons = {None: "There is no slices.json", '{"a"': "slices.json cannot be read"}
    if not (content or "").startswith("[{"):
        assert (
            f"Left out. {reasons.get(content, '' if content == 'null' else 'slices.json holds nothing')}"
            in page["slices"]
        )
        assert "Left out." in page["errors"] and "Left out." in page["gallery"]
    text = decision_page(gate, evaluation, data).read_text()
    assert "Left out." in sections(text)["rules"] and "Rejected" in text, "no decision is no permission"


def test_numbers_of_any_kind_make_a_page(evaluation, data):
    for name in ("metrics", "passport", "errors", "calibration", "classes"):
        content = {
            "oks_ap": "x",
            "images": None,
            "counts": [],
            "ap_lost": {"swap": None},
            "bins": [None, {}],
            "confusion": [3],
        }
        write_json_atomic(evaluation / f"{name}.json", content)
    write_json_atomic(evaluation / "slices.json", [{"group": None, "oks_ap": 1e400}, {"slice": 3, "persons": True}])
    write_json_atomic(evaluation / "images.json", [{"image_id": 1, "score": None, "tags": 3}, {"image_id": "x"}])
    assert "n/a" in write_evaluation_page(evaluation, **data).read_text()


def test_names_from_outside_are_text_and_nothing_else(evaluation, gate, data):
    for path in (write_evaluation_page(evaluation, **data), decision_page(gate, evaluation, data)):
        page = path.read_text()
        assert page.count("<script") == 1
        assert "&lt;script&gt;alert(1)" in page
        for facets in re.findall(r"data-facets='([^']*)'", page):
            json.loads(facets)
        assert not re.findall(r"""(?:src|href)=["'](?!data:|#|(?:\.\./gate/)?[\w.]+["'])""", page)


def test_images_are_filtered_by_the_areas_that_scaled_oks(evaluation, data):
    truth = json.loads(data["annotations"].read_text())
    for annotation in truth["annotations"]:
        annotation["area"] = 0.0  # so that OKS takes the box
    write_json_atomic(data["annotations"], truth)
    page = write_evaluation_page(evaluation, **data).read_text()
    sizes = {size for facets in re.findall(r"data-facets='([^']*)'", page) for size in re.findall(r"size=\w+", facets)}
    assert sizes == {"size=medium", "size=large"}


def test_images_are_filtered_by_who_is_cut_and_who_is_occluded(evaluation, data):
    truth = json.loads(data["annotations"].read_text())
    for image in truth["images"]:
        image["width"] = image["height"] = 10_000
    for annotation in truth["annotations"]:
        annotation["bbox"][:2] = (0, 50) if annotation["image_id"] == 2 else (50, 50)
        annotation["keypoints"][2::3] = [1 if annotation["image_id"] == 4 else 2] * len(annotation["keypoints"][2::3])
    write_json_atomic(data["annotations"], truth)
    page = write_evaluation_page(evaluation, **data).read_text()
    cards = re.findall(r"data-facets='([^']*)'.*?class=\"file\">(\d+)\.png", page, re.DOTALL)
    of_image = {int(number): json.loads(facets) for facets, number in cards}
    assert {i for i, facets in of_image.items() if "truncation=truncated" in facets} == {2}
    assert {i for i, facets in of_image.items() if "visibility=occluded" in facets} == {4}
    assert "visibility=visible" in of_image[2] and "visibility=visible" not in of_image[4]


def test_the_same_files_make_the_same_page(evaluation, data):
    first = write_evaluation_page(evaluation, **data).read_bytes()
    assert write_evaluation_page(evaluation, **data).read_bytes() == first


def test_photographs_become_smaller_until_they_fit_and_the_last_are_left_out(data):
    paths = dict(enumerate(sorted(data["images"].iterdir())))
    whole = pictures.load_photos(paths)
    size = sum(len(photo.uri) for photo in whole.values())
    smaller = pictures.load_photos(paths, size - 1)
    assert sum(len(photo.uri) for photo in smaller.values()) < size and all(p.uri for p in smaller.values())
    assert [smaller[0].width, smaller[0].height] == [whole[0].width, whole[0].height], (
        "what is drawn on it stays in place"
    )
    few = pictures.load_photos(paths, 60_000)
    shown = [bool(photo.uri) for photo in few.values()]
    assert shown[0] and not shown[-1] and shown == sorted(shown, reverse=True)
    assert sum(len(photo.uri) for photo in few.values()) <= 60_000
    assert "keep this page small" in few[5].fault


def test_an_image_that_is_gone_leaves_its_place_empty(evaluation, data):
    (data["images"] / "003.png").unlink()
    assert "The picture cannot be read." in write_evaluation_page(evaluation, **data).read_text()


@pytest.mark.parametrize(
    ("interval", "proven", "change"),
    [
        ([0.01, 0.05], "better", "better"),
        ([-0.05, -0.01], "worse", "worse"),
        ([0.01, 0.05], None, "open"),  # not after the correction for many slices
        (None, "perhaps", "open"),
        ([None, 0.4], None, "open"),
    ],
)
def test_a_difference_is_coloured_only_where_it_is_proven(interval, proven, change):
    row = {"slice": "all", "difference": np.mean(interval).item() if interval and None not in interval else 0.4}
    plot = _forest([{**row, "interval": interval, "proven": proven}], None)
    assert plot is not None
    assert [drawn["change"] for drawn in plot["rows"]] == [change]
    assert all(0 <= drawn["left"] <= drawn["left"] + drawn["width"] <= 100 for drawn in plot["rows"])


def test_words_for_slices_and_differences():
    assert slice_title("keypoint=left_wrist&size=small") == "left wrist, size small"
    assert slice_title("camera=A & B") == "camera A & B"
    assert [signed(0.11), signed(-0.0001), signed(-0.2), signed(None)] == ["+0.110", "0.000", "−0.200", "n/a"]  # noqa: RUF001


class Browser:
    """A headless Chromium, driven by its DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        from websockets.sync.client import connect

        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and port_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
            (target,) = (entry for entry in json.load(reply) if entry["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path, *, width: int, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=850, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + 60
        while not self.run(f"document.readyState === 'complete' && location.href === {json.dumps(page.as_uri())}"):
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.02)

    def close(self) -> None:
        self._socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


VISIBLE = "[...document.querySelectorAll({selector!r})].filter((e) => e.checkVisibility()).length"
CONTRAST = r"""(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parse(colour).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (colour.startsWith("rgb(")) return colour;
      if (parse(colour).at(-1) > 0) return null;  // translucent: no single colour
    }
  };
  const faint = [];
  for (const e of document.querySelectorAll("h1, h2, h3, p, a, b, small, th, td, dt, dd, summary, label, span")) {
    const background = e.checkVisibility() && e.textContent.trim() && !e.matches(".skip") && behind(e);
    if (!background) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(background)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${e.tagName} ${e.className} ${e.textContent.trim()}`);
  }
  return faint;
})()"""
UNNAMED = """[...document.querySelectorAll("svg[role=img], button, select, input")].filter(
  (e) => !(e.ariaLabel || e.textContent.trim() || e.closest("label"))
).length"""
CHOOSE = """(() => {{
  const field = document.querySelector({selector!r});
  {change};
  field.dispatchEvent(new Event({event!r}));
}})()"""
SLICES = """[...document.querySelectorAll("#slice-table tbody tr:not([hidden]) td:nth-child(3)")].map(
  (cell) => cell.dataset.value
)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["evaluation", "decision"])
def test_a_browser_shows_the_page_without_fault(browser, evaluation, gate, data, which, width, scheme):
    path = write_evaluation_page(evaluation, **data) if which == "evaluation" else decision_page(gate, evaluation, data)
    browser.open(path, width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") == width, "nothing sticks out sideways"
    assert browser.run(CONTRAST) == []
    assert browser.run(UNNAMED) == 0, "whoever cannot see it is told what it is"
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    faults = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in faults] == []


def test_the_evaluation_page_filters_sorts_and_enlarges(browser, evaluation, data):
    browser.open(write_evaluation_page(evaluation, **data), width=1280)
    cards = VISIBLE.format(selector="#gallery .card")
    assert browser.run(cards) == 6
    browser.run(CHOOSE.format(selector="[data-facet]", change="field.value = 'persons=4+'", event="change"))
    assert browser.run(cards) == 1
    assert browser.run("document.querySelector('#gallery-count').textContent") == "1 of 6 images"
    browser.run("document.querySelector('#clear-facets').click()")
    last = ".facets label:last-of-type [data-facet]"
    browser.run(CHOOSE.format(selector=last, change="field.selectedIndex = 1", event="change"))
    assert browser.run(cards) == 3, "a tag of any letters can be chosen"
    browser.run("document.querySelector('#clear-facets').click(); document.querySelector('[data-tab=best]').click()")
    assert browser.run(VISIBLE.format(selector=".gallery-group")) == 1
    assert browser.run("document.querySelector('.gallery-group:not([hidden]) .file').textContent") == "006.png"
    assert browser.run(VISIBLE.format(selector="#gallery .panel.second")) == 0
    browser.run("document.querySelector('#see-aside').click()")
    assert browser.run(VISIBLE.format(selector="#gallery .panel.second")) == 6
    browser.run("document.querySelectorAll('#slice-table thead button')[2].click()")
    assert browser.run(SLICES) == ["0.9", "0.5", "0.3", ""], "large first, and what has no value last"
    browser.run("document.querySelectorAll('#slice-table thead button')[2].click()")
    assert browser.run(SLICES) == ["0.3", "0.5", "0.9", ""]
    browser.run(CHOOSE.format(selector="#slice-find", change="field.value = 'wrist'", event="input"))
    assert browser.run(SLICES) == ["0.3", ""]
    browser.run("document.querySelector('.gallery-group:not([hidden]) .enlarge').click()")
    assert browser.run("document.querySelector('#enlarged').open") is True
    assert browser.run("document.querySelector('#enlarged .stage use').getBoundingClientRect().width") > 300
    assert browser.run("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == browser.run(
        "document.querySelectorAll('[id]').length"
    )


def test_without_scripts_everything_is_there_to_read(browser, evaluation, data):
    path = write_evaluation_page(evaluation, **data)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(path, width=390)
        assert browser.run(VISIBLE.format(selector="#gallery .card")) == 18
        assert browser.run(VISIBLE.format(selector="#slice-table tbody tr")) == 4
        assert browser.run(VISIBLE.format(selector=".js-only")) == 0, "nothing is offered that would do nothing"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
