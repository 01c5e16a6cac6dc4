"""The vectorised evaluation against pycocotools, the arbiter, on sets made to be as nasty as real ones."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posefoundry.evaluation.fast_oks import average_precision, average_recall
from posefoundry.evaluation.oks import OksEvaluator, average


def random_set(seed, n_images, max_persons, max_detections, n_keypoints, n_classes, step):
    """Persons close together, so that detections have a choice; coordinates and scores on a grid, so that they tie."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []

    def on_grid(values):
        return (np.round(np.asarray(values) / step) * step).tolist() if step else np.asarray(values).tolist()

    for image_id in rng.permutation(np.arange(1, n_images + 1)).tolist():
        persons = []
        for _ in range(rng.integers(0, max_persons + 1)):
            size = float(rng.choice([12, 40, 90, 200]))
            x, y = rng.uniform(0, 60, 2)
            xy = rng.uniform(0, size, (n_keypoints, 2)) + np.array([x, y])
            if persons and rng.random() < 0.3:  # a twin, to the last bit or nearly
                xy = persons[-1] + rng.choice([0.0, 2.0])
            persons.append(xy)
            v = rng.choice([0, 1, 2], n_keypoints, p=[0.3, 0.2, 0.5]) * (rng.random() > 0.15)
            points = np.concatenate((np.array(on_grid(xy)), v[:, None]), axis=1) * (v > 0)[:, None]
            entry = {
                "id": len(annotations) + 10, "image_id": image_id,
                "category_id": int(rng.integers(1, n_classes + 1)), "bbox": on_grid([x, y, size, size]),
                "area": float(rng.choice([size * size * 0.53, 32.0**2, 96.0**2])), "iscrowd": int(rng.random() < 0.15),
                "keypoints": points.ravel().tolist(), "num_keypoints": int((v > 0).sum()),
            }  # fmt: skip
            annotations.append(entry)
        for _ in range(rng.integers(0, max_detections + 1)):
            size = float(rng.choice([12, 40, 90, 200]))
            xy = rng.uniform(0, size, (n_keypoints, 2)) + rng.uniform(0, 60, 2)
            if persons and rng.random() < 0.8:
                xy = persons[rng.integers(len(persons))] + rng.normal(0, rng.choice([0, 1, 4]), (n_keypoints, 2))
            low, high = xy.min(axis=0), xy.max(axis=0)
            points = np.concatenate((np.array(on_grid(xy)), np.ones((n_keypoints, 1))), axis=1)
            score = rng.integers(1, 6) / 5 if rng.random() < 0.7 else rng.random()
            detections.append({
                "image_id": image_id, "category_id": int(rng.integers(1, n_classes + 1)), "score": float(score),
                "bbox": on_grid([*low, *(high - low)]), "keypoints": points.ravel().tolist(),
            })  # fmt: skip
    order = rng.permutation(len(detections))
    names = [f"point_{k}" for k in range(n_keypoints)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 120} for i in range(1, n_images + 1)],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}", "keypoints": names} for c in range(1, n_classes + 1)],
    }
    return content, [detections[i] for i in order]


sets = st.builds(
    random_set,
    seed=st.integers(0, 2**32 - 1),
    n_images=st.integers(1, 5),
    max_persons=st.integers(0, 7),
    max_detections=st.sampled_from([0, 3, 12, 30]),
    n_keypoints=st.sampled_from([1, 4, 17, 21]),
    n_classes=st.integers(1, 2),
    step=st.sampled_from([0, 1, 8]),
)


@given(sets)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_figures_are_those_of_pycocotools(arbiter, drawn):
    content, detections = drawn
    sigmas = np.linspace(0.03, 0.1, len(content["categories"][0]["keypoints"]))
    expected, poses = arbiter(content, detections, sigmas)
    evaluation = OksEvaluator(content, sigmas=sigmas, area_rule="annotation").evaluate_in_detail(detections)
    assert evaluation.metrics == pytest.approx(expected, abs=1e-9)
    per_class = poses.eval["precision"][:, :, :, 0, 0]
    for c, matches in enumerate(evaluation.slices["all"]):
        reference = per_class[:, :, c]
        if (reference < 0).all():
            assert np.isnan(average_precision(matches)).all()
        else:
            np.testing.assert_allclose(average_precision(matches), reference.mean(axis=1), atol=1e-9)
            np.testing.assert_allclose(average_recall(matches), poses.eval["recall"][:, c, 0, 0], atol=1e-9)


@given(sets)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_are_what_pycocotools_finds_in_a_file_made_for_the_slice(arbiter, drawn):
    content, detections = drawn
    sigmas = np.linspace(0.03, 0.1, len(content["categories"][0]["keypoints"]))
    evaluation = OksEvaluator(content, sigmas=sigmas, crossed=["keypoint=point_0&persons"]).evaluate_in_detail(
        detections
    )

    def unlabel(wanted):
        kept = []
        for entry in content["annotations"]:
            points = np.array(entry["keypoints"]).reshape(-1, 3)
            points = np.where(wanted(points[:, 2])[:, None], points, 0)
            n_labelled = int((points[:, 2] > 0).sum())
            kept.append(entry | {"keypoints": points.ravel().tolist(), "num_keypoints": n_labelled})
        return content | {"annotations": kept}

    counts = {image["id"]: 0 for image in content["images"]}
    for entry in content["annotations"]:
        counts[entry["image_id"]] += not entry["iscrowd"] and entry["num_keypoints"] > 0

    def only_images(whole, wanted):
        kept = {i for i, n in counts.items() if wanted(n)}
        inside = [entry for entry in detections if entry["image_id"] in kept]
        annotations = [entry for entry in whole["annotations"] if entry["image_id"] in kept]
        images = [image for image in content["images"] if image["id"] in kept]
        return whole | {"annotations": annotations, "images": images}, inside

    first_alone = unlabel(lambda v: np.arange(len(v)) == 0)

    def of_class(category_id):
        persons = [entry for entry in content["annotations"] if entry["category_id"] == category_id]
        categories = [entry for entry in content["categories"] if entry["id"] == category_id]
        found = [entry for entry in detections if entry["category_id"] == category_id]
        return content | {"annotations": persons, "categories": categories}, found

    def of_border(is_wanted):
        """Others are ignored like persons without keypoints; their detections are too large for any area range."""
        persons = content["annotations"]
        persons = [entry if touches(entry) == is_wanted else entry | {"num_keypoints": 0} for entry in persons]
        found = [entry if touches(entry) == is_wanted else entry | {"bbox": [0, 0, 1e6, 1e6]} for entry in detections]
        return content | {"annotations": persons}, found

    def touches(entry):
        x, y, width, height = entry["bbox"]
        return min(x, y) <= 1 or max(x + width, y + height) >= 120 - 1

    names = {category["name"]: category["id"] for category in content["categories"]}
    cases = {
        **{f"class={name}": of_class(category_id) for name, category_id in names.items()},
        "truncation=truncated": of_border(True),
        "truncation=whole": of_border(False),
        "keypoint=point_0": (first_alone, detections),
        "visibility=visible": (unlabel(lambda v: v == 2), detections),
        "visibility=occluded": (unlabel(lambda v: v == 1), detections),
        "persons=2-3": only_images(content, lambda n: 2 <= n <= 3),
        "persons=4+": only_images(content, lambda n: n > 3),
        "keypoint=point_0&persons=4+": only_images(first_alone, lambda n: n > 3),
    }
    for name, (made, found) in cases.items():
        expected, _ = arbiter(made, found, sigmas)
        matches = evaluation.slices[name]
        assert average(matches) == pytest.approx(expected["oks_ap"], abs=1e-9), name
        assert average(matches, 0.75) == pytest.approx(expected["oks_ap75"], abs=1e-9), name
        assert average(matches, recall=True) == pytest.approx(expected["oks_ar"], abs=1e-9), name
