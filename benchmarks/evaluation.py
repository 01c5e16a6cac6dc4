"""OKS evaluation at the size of COCO's val split: this project's, with all slices, beside pycocotools, in one run.

    python benchmarks/evaluation.py [runs]

5,000 images, 11,000 persons, 20 detections an image. Seconds of processor time, which others on the machine do not
lengthen as they do the time on the clock; both sides use one core. Reading the entries is told apart. The
exit status is 1 if the figures differ by more than 1e-9, because then the times are of different work.

pycocotools: evaluate and accumulate of keypoints, for all persons, the medium and the large. Here: the same ten
figures, the six of boxes, and AP of all slices: everybody, 3 sizes, 17 keypoints, visible and occluded keypoints,
truncated and whole persons, 3 ranges of persons in the image, 1 class; 25 of these 29 are matched anew, the others are
parts of one.
"""

import contextlib
import io
import sys
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefoundry.evaluation.ground_truth import read_detections
from posefoundry.evaluation.oks import OKS_METRICS, OksEvaluator, average
from posefoundry.skeleton import COCO_PERSON_CATEGORY, COCO_SIGMAS

TOLERANCE = 1e-9
N_IMAGES, N_PERSONS, DETECTIONS_PER_IMAGE = 5000, 11000, 20


def synthetic_val():
    """Half of the images hold nobody, as in COCO; persons overlap; most detections are near some person."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, N_IMAGES + 1)]
    peopled = rng.choice(N_IMAGES, N_IMAGES // 2, replace=False) + 1
    share = rng.gamma(1.0, size=len(peopled))
    image_of_person = np.sort(rng.choice(peopled, N_PERSONS, p=share / share.sum()))
    annotations, detections = [], []
    people_of = {}
    for number, image_id in enumerate(image_of_person.tolist(), 1):
        height = float(np.exp(rng.uniform(np.log(24), np.log(420))))
        width = height * rng.uniform(0.3, 0.7)
        x, y = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
        xy = rng.uniform(0, 1, (17, 2)) * [width, height] + [x, y]
        v = rng.choice([0, 1, 2], 17, p=[0.35, 0.1, 0.55]) * (rng.random() > 0.35)
        people_of.setdefault(image_id, []).append((xy, height, width, x, y))
        points = np.concatenate((xy.round(), v[:, None]), axis=1) * (v > 0)[:, None]
        annotations.append({
            "id": number, "image_id": image_id, "category_id": 1, "bbox": [x, y, width, height],
            "area": width * height * 0.55, "iscrowd": int(rng.random() < 0.02), "keypoints": points.ravel().tolist(),
            "num_keypoints": int((v > 0).sum()),
        })  # fmt: skip
    for image in images:
        people = people_of.get(image["id"], [])
        for turn in range(DETECTIONS_PER_IMAGE):
            if people and turn < 3 * len(people):
                xy, height, width, x, y = people[turn % len(people)]
                xy = xy + rng.normal(0, height * rng.choice([0.01, 0.03, 0.1]), (17, 2))
                score = rng.uniform(0.2, 1) / (1 + turn // len(people))
            else:
                height = rng.uniform(20, 400)
                width, x, y = height / 2, rng.uniform(0, 500), rng.uniform(0, 300)
                xy, score = rng.uniform(0, 1, (17, 2)) * [width, height] + [x, y], rng.uniform(0, 0.3)
            points = np.concatenate((xy, np.ones((17, 1))), axis=1).round(2)
            detections.append({
                "image_id": image["id"], "category_id": 1, "bbox": [x, y, width, height], "score": float(score),
                "keypoints": points.ravel().tolist(),
            })  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": [COCO_PERSON_CATEGORY]}, detections


def by_pycocotools(content, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        results = truth.loadRes([dict(entry) for entry in detections])
        read = time.process_time()
        evaluation = COCOeval(truth, results, "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        done = time.process_time()
        evaluation.summarize()
    return read - start, done - read, dict(zip(OKS_METRICS, evaluation.stats, strict=True))


def by_posefoundry(content, detections):
    start = time.process_time()
    evaluator = OksEvaluator(content, sigmas=COCO_SIGMAS)
    arrays = read_detections(detections, evaluator.truth)
    read = time.process_time()
    evaluation = evaluator.evaluate_arrays(arrays)
    figures = {name: average(matches) for name, matches in evaluation.slices.items()}
    done = time.process_time()
    return read - start, done - read, evaluation.metrics, figures


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    content, detections = synthetic_val()
    ours, theirs = [], []
    for _ in range(runs):  # in turns, so that what else the machine does falls on both
        theirs.append(by_pycocotools(content, detections))
        ours.append(by_posefoundry(content, detections))
    expected, metrics, slices = theirs[0][2], ours[0][2], ours[0][3]
    largest = np.max([abs(expected[key] - metrics[key]) for key in OKS_METRICS])  # NaN if any of them is
    print(f"{N_IMAGES} images, {N_PERSONS} persons, {len(detections)} detections; best of {runs} runs")
    print(f"{'':42}{'reading':>10}{'evaluation':>13}")
    (their_read, their_time), (our_read, our_time) = (
        (min(run[0] for run in side), min(run[1] for run in side)) for side in (theirs, ours)
    )
    print(f"{'pycocotools, keypoints':42}{their_read:9.2f}s{their_time:12.2f}s")
    print(f"{f'posefoundry, keypoints, boxes, {len(slices)} slices':42}{our_read:9.2f}s{our_time:12.2f}s")
    print(f"{'times faster':42}{their_read / our_read:10.1f}{their_time / our_time:13.1f}")
    print(f"largest difference in the ten OKS figures: {largest:.1e} (OKS AP {metrics['oks_ap']:.6f})")
    if not largest <= TOLERANCE:
        sys.exit(
            f"The ten OKS figures are not pycocotools': expected a difference up to {TOLERANCE}, got {largest:.1e}."
        )


if __name__ == "__main__":
    main()
