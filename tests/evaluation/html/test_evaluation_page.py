"""What the page of an evaluation shows, and what it takes."""

import json
import re

from posefoundry.evaluation.html import write_evaluation_page
from posefoundry.evaluation.html.evaluation_page import _findings
from posefoundry.files import write_json_atomic


def test_the_evaluation_page_shows_what_the_files_say(evaluation, data, sections):
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


def test_an_image_that_is_gone_leaves_its_place_empty(evaluation, data):
    (data["images"] / "003.png").unlink()
    assert "The picture cannot be read." in write_evaluation_page(evaluation, **data).read_text()
