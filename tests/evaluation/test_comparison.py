"""What a gate shows of two models beside its verdict."""

from posefoundry.evaluation.comparison import changed_images
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.skeleton import COCO_SIGMAS


def test_images_change_by_persons_and_by_what_is_seen_where_nobody_is(person, detection, coco):
    people = [person(i, i, 100, 100, 50, 100) for i in (1, 2, 3)]
    evaluator = OksEvaluator(coco(people, 5), sigmas=COCO_SIGMAS)
    nobody = [person(0, image, 300, 100, 50, 100) for image in (2, 5)]
    before = [detection(people[0]), detection(people[1])]
    now = [detection(p) for p in people] + [detection(p) for p in nobody]
    candidate, production = evaluator.evaluate_in_detail(now), evaluator.evaluate_in_detail(before)
    changed = changed_images(evaluator, candidate, production)
    # In image 3 a person is found, in 5 nobody is and somebody is seen, in 2 somebody too many; 1 and 4 are as before.
    assert [row["image_id"] for row in changed["better"]] == [3]
    assert [row["image_id"] for row in changed["worse"]] == [5, 2]
    assert changed["worse"][0] == {
        "image_id": 5, "file_name": "005.png",
        "candidate": {"score": 0.0, "mean_oks": None, "false_positives": 1},
        "production": {"score": 1.0, "mean_oks": None, "false_positives": 0},
    }  # fmt: skip
    assert changed["worse"][1]["candidate"] == {"score": 0.5, "mean_oks": 1.0, "false_positives": 1}
    assert changed_images(evaluator, production, candidate)["better"][0]["image_id"] == 5
