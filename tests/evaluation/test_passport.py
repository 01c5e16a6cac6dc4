"""Which figures may be compared."""

import pytest

from posefoundry.evaluation.passport import COMPARABLE_FIELDS, fingerprint_of_test, first_difference


@pytest.mark.parametrize("field", COMPARABLE_FIELDS)
def test_passports_that_differ_in_the_test_itself_are_not_comparable(field):
    passport = dict.fromkeys(COMPARABLE_FIELDS, "same") | {"input_size_px": 640, "model": "yolov8n-pose"}
    assert first_difference(passport, passport | {field: "other"}) == field
    assert first_difference(passport, {key: value for key, value in passport.items() if key != field}) == field


def test_passports_may_differ_in_what_belongs_to_the_model():
    passport = dict.fromkeys(COMPARABLE_FIELDS, "same") | {"input_size_px": 640, "model": "yolov8n-pose"}
    assert first_difference(passport, passport | {"input_size_px": 320, "model": "yolo11s-pose"}) is None


def test_a_passport_without_a_model_compares_with_its_like():
    of_file = {"annotations_sha256": "a", "area_rule": "box", "sigmas": [0.1], "max_poses_per_image": 20}
    assert first_difference(of_file, dict(of_file)) is None
    assert first_difference(of_file, of_file | {"confidence": 0.1}) == "confidence"
    assert first_difference({}, {}) == "annotations_sha256", "nothing known is nothing alike"


def test_the_fingerprint_of_a_test_is_that_of_what_must_be_equal():
    passport = {"annotations_sha256": "a", "confidence": 0.1, "device": "cpu"}
    assert fingerprint_of_test(passport) == fingerprint_of_test(passport | {"device": "cuda"})
    assert fingerprint_of_test(passport) != fingerprint_of_test(passport | {"confidence": 0.2})
    assert fingerprint_of_test({"device": "cpu"}) is None
