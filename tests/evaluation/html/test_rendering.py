"""What both pages share: whole where files are missing, harmless whatever they show, and their words."""

import json
import re

import pytest

from posefoundry.evaluation.html import write_evaluation_page
from posefoundry.evaluation.html.rendering import signed, slice_title


@pytest.mark.parametrize("content", [None, "null", "[]", "{}", '{"a"', '[{"image_id": 3}, 7, null]'])
def test_a_section_without_its_file_says_why(evaluation, data, gate, decision_page, sections, content):
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
    text = decision_page().read_text()
    assert "Left out." in sections(text)["rules"] and "Rejected" in text, "no decision is no permission"


def test_names_from_outside_are_text_and_nothing_else(evaluation, data, decision_page):
    for path in (write_evaluation_page(evaluation, **data), decision_page()):
        page = path.read_text()
        assert page.count("<script") == 1
        assert "&lt;script&gt;alert(1)" in page
        for facets in re.findall(r"data-facets='([^']*)'", page):
            json.loads(facets)
        assert not re.findall(r"""(?:src|href)=["'](?!data:|#|(?:\.\./gate/)?[\w.]+["'])""", page)


def test_words_for_slices_and_differences():
    assert slice_title("keypoint=left_wrist&size=small") == "left wrist, size small"
    assert slice_title("camera=A & B") == "camera A & B"
    assert [signed(0.11), signed(-0.0001), signed(-0.2), signed(None)] == ["+0.110", "0.000", "−0.200", "n/a"]  # noqa: RUF001
