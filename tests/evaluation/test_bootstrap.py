"""The paired bootstrap: the numbers of evaluating each resample anew, and intervals that hold what they promise."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry.evaluation import bootstrap
from posefoundry.evaluation.bootstrap import draw_images, resample_differences, resampled_precision
from posefoundry.evaluation.fast_oks import SliceMatches, average_precision
from posefoundry.evaluation.intervals import (
    confidence_interval,
    holm,
    p_value_not_above,
    p_value_not_below,
    p_value_two_sided,
    resampled_tail,
    resamples_needed,
)
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.skeleton import COCO_PERSON

SIGMAS = COCO_PERSON.sigmas


def matches_of(truth, detections, slice_name="all") -> tuple[SliceMatches, ...]:
    return OksEvaluator(truth, sigmas=SIGMAS).evaluate_in_detail(detections).slices[slice_name]


def worse(detections, seed=0):
    """The same detections with shaken keypoints, some of them lost."""
    random = np.random.default_rng(seed)
    shaken = []
    for detection in detections:
        if random.random() < 0.1:
            continue
        points = np.array(detection["keypoints"]).reshape(-1, 3)
        points[:, :2] += random.normal(0, 3, (len(points), 2))
        shaken.append({**detection, "keypoints": points.ravel().tolist(), "score": float(random.random())})
    return shaken


def brute_force_ap(truth, detections, drawn: Sequence[int]) -> np.ndarray:
    """Copies the drawn images with all that is in them, in order, and lets pycocotools judge the copies."""
    content = {"images": [], "annotations": [], "categories": truth["categories"]}
    found = []
    for new_id, place in enumerate(drawn, 1):
        old_id = truth["images"][place]["id"]
        content["images"].append({**truth["images"][place], "id": new_id})
        for entries, copies in ((truth["annotations"], content["annotations"]), (detections, found)):
            for entry in entries:
                if entry["image_id"] == old_id:
                    copy = {**entry, "image_id": new_id, "id": len(copies) + 1}
                    copies.append(copy | {"area": entry.get("area", entry["bbox"][2] * entry["bbox"][3])})
    index = [COCO(), COCO()]
    with contextlib.redirect_stdout(io.StringIO()):
        for part, entries in zip(index, (content["annotations"], found), strict=True):
            part.dataset = {**content, "annotations": entries}
            part.createIndex()
        evaluation = COCOeval(*index, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


def drawn_matches(random, n_images, *, gap=0.0, thresholds=(-1.0, 0.0)) -> tuple[SliceMatches, SliceMatches]:
    """Images of another make: persons of varying difficulty, seen by two models, the second worse by `gap`."""
    positives = random.poisson(1.8, n_images)
    image = np.repeat(np.arange(n_images), positives)
    difficulty = random.normal(0, 0.7, len(image)) + random.normal(0, 0.5, n_images)[image]
    models = []
    for shift in (0.0, gap):
        quality = difficulty - shift + random.normal(0, 0.6, len(image))
        score = quality + random.normal(0, 0.7, len(image))
        nobody = np.repeat(np.arange(n_images), random.poisson(1.0, n_images))
        images = np.concatenate((image, nobody))
        scores = np.concatenate((score, random.normal(-0.8, 1, len(nobody))))
        right = [np.concatenate((quality > t, np.zeros(len(nobody), bool))) for t in thresholds]
        order = np.argsort(-scores, kind="stable")
        matched = np.stack(right)[:, order]
        models.append(SliceMatches(images[order], scores[order], matched, np.zeros_like(matched), positives))
    return models[0], models[1]


def chosen(matches: SliceMatches, counts: np.ndarray) -> SliceMatches:
    """The images that were drawn, each as often as it was, side by side."""
    drawn = np.repeat(np.arange(len(counts)), counts)
    by_image = np.argsort(matches.image_index, kind="stable")
    starts = np.searchsorted(matches.image_index[by_image], np.arange(len(counts) + 1))
    columns = [by_image[starts[i] : starts[i + 1]] for i in drawn]
    new = np.repeat(np.arange(len(drawn)), [len(part) for part in columns])
    old = np.concatenate(columns)
    order = np.argsort(-matches.scores[old], kind="stable")
    old, new = old[order], new[order]
    return SliceMatches(
        new, matches.scores[old], matches.matched[:, old], matches.ignored[:, old], matches.positives_of_image[drawn]
    )


def test_resamples_are_what_pycocotools_says_of_copied_images(crowd_scene):
    truth, detections = crowd_scene
    random = np.random.default_rng(1)
    scores = random.permutation(len(detections)) / 1000  # no ties: copies of an image may stand in any order
    detections = [d | {"score": float(s)} for d, s in zip(detections, scores, strict=True)]
    draws = random.integers(0, 12, (25, 12))
    weights = np.stack([np.bincount(draw, minlength=12) for draw in draws], axis=1)
    (matches,) = matches_of(truth, detections)
    expected = np.stack([brute_force_ap(truth, detections, sorted(draw)) for draw in draws], axis=1)
    assert np.ptp(expected.mean(axis=0)) > 0.1
    np.testing.assert_allclose(resampled_precision(matches, weights), expected, atol=1e-9, rtol=0)


def test_differences_are_paired_and_those_of_brute_force(crowd_scene):
    truth, better = crowd_scene
    candidate = worse(better, seed=3)
    models = matches_of(truth, candidate), matches_of(truth, better)
    result = resample_differences({"all": models}, resamples=40, seed=5)["all"]
    seeds = np.random.SeedSequence(5).spawn(1)
    weights = draw_images(12, 40, np.random.default_rng(seeds[0]))
    draws = [np.repeat(np.arange(12), column) for column in weights.T]
    expected = [brute_force_ap(truth, candidate, d) - brute_force_ap(truth, better, d) for d in draws]
    np.testing.assert_allclose(result.differences, expected, atol=1e-9, rtol=0)
    evaluator = OksEvaluator(truth, sigmas=SIGMAS)
    for metric in ("oks_ap", "oks_ap50", "oks_ap75"):
        difference = result.of(metric)
        assert difference.candidate == pytest.approx(evaluator.evaluate(candidate)[metric], abs=1e-9)
        assert difference.production == pytest.approx(evaluator.evaluate(better)[metric], abs=1e-9)
        assert difference.value == pytest.approx(difference.candidate - difference.production, abs=1e-12)
    assert (result.persons, result.images) == (len(evaluator.persons), len({p["image_id"] for p in found(evaluator)}))


def found(evaluator):
    return [evaluator.annotations[i] for i in evaluator.persons]


def test_blocks_are_exact_until_there_are_too_many(monkeypatch):
    random = np.random.default_rng(2)
    matches, _ = drawn_matches(random, 40)
    weights = draw_images(40, 30, random)
    anew = np.stack([average_precision(chosen(matches, column)) for column in weights.T], axis=1)
    np.testing.assert_allclose(resampled_precision(matches, weights), anew, atol=1e-9, rtol=0)
    monkeypatch.setattr(bootstrap, "MAX_BLOCKS", 24)
    roughly = resampled_precision(matches, weights)
    assert np.abs(roughly - anew).max() > 0  # it was cut short
    assert np.sqrt(((roughly - anew).mean(axis=0) ** 2).mean()) < 0.15 * anew.mean(axis=0).std()


def test_many_blocks_are_thinned_at_little_cost():
    random = np.random.default_rng(2)
    first, second = drawn_matches(random, 1500, gap=0.1)
    weights = draw_images(1500, 12, random)
    anew = np.stack([average_precision(chosen(first, w)) - average_precision(chosen(second, w)) for w in weights.T], 1)
    roughly = resampled_precision(first, weights) - resampled_precision(second, weights)
    error = (roughly - anew).mean(axis=0)
    assert 0 < np.sqrt((error**2).mean()) < 0.05 * anew.mean(axis=0).std()


def test_all_images_once_is_the_figure_itself():
    for n_images in (30, 1500):
        matches, _ = drawn_matches(np.random.default_rng(0), n_images)
        whole = resampled_precision(matches, np.ones((n_images, 1), np.int64))[:, 0]
        np.testing.assert_allclose(whole, average_precision(matches), atol=1e-9, rtol=0)


def test_a_seed_decides_everything_and_threads_nothing():
    models = drawn_matches(np.random.default_rng(0), 30)
    slices = {"all": ((models[0],), (models[1],))}
    one, same, other = (
        resample_differences(slices, resamples=1200, seed=seed, workers=workers)["all"].differences
        for seed, workers in ((1, 1), (1, 4), (2, 4))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_same_model_twice_never_differs():
    matches, _ = drawn_matches(np.random.default_rng(0), 30)
    difference = resample_differences({"all": ((matches,), (matches,))}, resamples=200, seed=0)["all"].of("oks_ap")
    assert confidence_interval(difference.resampled, 0.95, 30) == (0, 0)
    assert p_value_two_sided(difference.resampled, 30) == 1


def test_the_rounding_of_sums_is_no_evidence():
    resampled = np.full(1000, -1e-12)
    assert p_value_not_below(resampled, 0.0, 60) == p_value_not_above(resampled, 0.0, 60) == 1
    assert p_value_not_below(resampled - 1e-4, 0.0, 60) < 0.01


def test_classes_without_anybody_are_left_out_of_the_mean():
    first, second = drawn_matches(np.random.default_rng(0), 30)
    nobody = SliceMatches(
        first.image_index, first.scores, np.zeros_like(first.matched), first.ignored, np.zeros(30, np.int64)
    )
    alone = resample_differences({"all": ((first,), (second,))}, resamples=50, seed=0)["all"]
    beside = resample_differences({"all": ((first, nobody), (second, nobody))}, resamples=50, seed=0)["all"]
    np.testing.assert_array_equal(alone.differences, beside.differences)
    empty = resample_differences({"all": ((nobody,), (nobody,))}, resamples=50, seed=0)["all"].of("oks_ap")
    assert np.isnan(empty.candidate) and np.isnan(empty.resampled).all()
    assert confidence_interval(empty.resampled, 0.95, 0) is None


def test_a_resample_without_anybody_has_no_value():
    positives = np.array([1] + [0] * 9)
    matches = SliceMatches(np.array([0]), np.ones(1), np.ones((1, 1), bool), np.zeros((1, 1), bool), positives)
    weights = np.zeros((10, 2), np.int64)
    weights[0, 0] = weights[1, 1] = 10
    np.testing.assert_array_equal(resampled_precision(matches, weights), [[1, np.nan]])


@pytest.mark.parametrize(("n_images", "seed"), [(20, 7), (150, 1)])
def test_a_95_percent_interval_holds_the_truth_in_93_to_97_percent_of_simulated_sets(n_images, seed):
    random = np.random.default_rng(seed)
    population = drawn_matches(random, 4000, gap=0.2, thresholds=(-0.8, -0.2))
    first, second = (average_precision(matches).mean() for matches in population)
    truth = first - second
    assert 0.4 < second < first < 0.7 and truth > 0.05
    sets, held, below, plain, unpaired = 1000, 0, 0, 0, 0
    weights, others = (draw_images(n_images, 300, random) for _ in range(2))
    for _ in range(sets):
        counts = np.bincount(random.integers(0, 4000, n_images), minlength=4000)
        models = [chosen_fast(matches, counts) for matches in population]
        candidate, production = (resampled_precision(model, weights).mean(axis=0) for model in models)
        low, high = confidence_interval(candidate - production, 0.95, np.count_nonzero(models[0].positives_of_image))
        held += low <= truth <= high
        below += truth < low
        low, high = np.quantile(candidate - production, [0.05, 0.95])
        plain += low <= truth <= high
        if n_images == 20:
            low, high = np.quantile(candidate - resampled_precision(models[1], others).mean(axis=0), [0.025, 0.975])
            unpaired += low <= truth <= high
    assert 0.93 <= held / sets <= 0.97
    assert 0.01 <= below / sets <= 0.05  # and misses it on either side
    # What it is measured by tells a 90 % interval, and one that pairs nothing, from it.
    assert plain / sets < 0.92
    assert n_images != 20 or unpaired / sets > 0.97


def chosen_fast(matches: SliceMatches, counts: np.ndarray) -> SliceMatches:
    """Like `chosen` for images that were drawn at most a few times out of many."""
    kept = np.flatnonzero(counts)
    columns = np.flatnonzero(counts[matches.image_index])
    place = np.full(len(counts), -1)
    place[kept] = np.arange(len(kept))
    part = SliceMatches(
        place[matches.image_index[columns]], matches.scores[columns], matches.matched[:, columns],
        matches.ignored[:, columns], matches.positives_of_image[kept],
    )  # fmt: skip
    return chosen(part, counts[kept])


def test_p_values_are_the_other_side_of_the_interval():
    resampled = np.random.default_rng(0).normal(-0.02, 0.01, 10_000)
    for images in (20, 5000):
        low, high = confidence_interval(resampled, 0.95, images)
        assert p_value_not_below(resampled, high, images) == pytest.approx(0.025, abs=3e-4)
        assert p_value_not_above(resampled, low, images) == pytest.approx(0.025, abs=3e-4)
    assert low == pytest.approx(-0.0396, abs=1e-3) and high == pytest.approx(-0.0004, abs=1e-3)
    assert p_value_two_sided(resampled, 5000) == pytest.approx(0.0455, abs=0.005)
    least = p_value_not_below(resampled, 1.0, 5000)  # never 0: so many resamples prove no more
    assert least == pytest.approx(1 / 10_001, rel=0.02)
    assert p_value_not_below(np.array([0.1, np.nan, 0.2]), 0.15, 10**9) == pytest.approx(2 / 3)


def test_few_images_widen_the_interval_to_that_of_a_t_distribution():
    resampled = np.random.default_rng(0).normal(0, 1, 200_000)
    low, high = confidence_interval(resampled, 0.95, 20)
    # 2.093: the table's 97.5 % quantile of t with 19 degrees of freedom
    assert (-low, high) == (pytest.approx(2.093 * (20 / 19) ** 0.5, abs=0.02),) * 2
    assert confidence_interval(resampled, 0.95, 1) is None and p_value_not_below(resampled - 9, 0.0, 1) == 1


@pytest.mark.parametrize(("level", "images"), [(0.025, 20), (0.001, 20), (0.025, 5000)])
def test_as_many_resamples_as_needed_prove_and_one_less_does_not(level, images):
    needed = resamples_needed(level, images)
    assert needed >= 1 / resampled_tail(level, images) > 1 / level - 1e-6
    assert p_value_not_below(np.full(needed, -1.0), 0.0, images) <= level
    assert p_value_not_below(np.full(needed - 2, -1.0), 0.0, images) > level


def test_holm_on_the_textbook_case():
    # Holm 1979 as worked by hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 and never less than the one before.
    corrected = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.005})
    assert corrected == pytest.approx({"c": 0.06, "a": 0.03, "d": 0.06, "b": 0.02})
    assert holm({"x": 0.6, "y": 0.9}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}
