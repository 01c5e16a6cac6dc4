"""The gate's paired bootstrap at the size of COCO's val split: seconds, and the error of cutting into blocks.

    python benchmarks/bootstrap.py [resamples]

5,000 images, 11,000 persons, 20 detections an image; two models, over everybody and in all slices by size, keypoint,
visibility, number of persons and truncation.
"""

import sys
import time

import numpy as np
from evaluation import synthetic_val

from posefoundry.evaluation import bootstrap
from posefoundry.evaluation.bootstrap import draw_images, resample_differences, resampled_precision
from posefoundry.evaluation.oks import OksEvaluator
from posefoundry.skeleton import COCO_SIGMAS


def main() -> None:
    resamples = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    truth, detections = synthetic_val()
    rng = np.random.default_rng(1)
    worse = []
    for detection in detections:
        points = np.array(detection["keypoints"]).reshape(-1, 3)
        points[:, :2] += rng.normal(0, 0.01 * detection["bbox"][3], (len(points), 2))
        worse.append(detection | {"keypoints": points.ravel().tolist()})
    evaluator = OksEvaluator(truth, sigmas=COCO_SIGMAS)
    models = [evaluator.evaluate_in_detail(found).slices for found in (detections, worse)]
    slices = {name: (models[0][name], models[1][name]) for name in models[0] if not name.startswith("class=")}
    started, processor = time.perf_counter(), time.process_time()
    result = resample_differences(slices, resamples=resamples, seed=0)
    print(f"{resamples} resamples of {len(slices)} slices: {time.perf_counter() - started:.1f} s on the clock, "
          f"{time.process_time() - processor:.1f} s of processor time")  # fmt: skip
    difference = result["all"].of("oks_ap")
    print(f"difference {difference.value:+.4f}, standard deviation {difference.resampled.std():.4f}")

    weights = draw_images(len(truth["images"]), 100, rng)
    roughly = _differences(slices["all"], weights)
    bootstrap.MAX_BLOCKS = 10**9
    exactly = np.concatenate([_differences(slices["all"], weights[:, i : i + 10]) for i in range(0, 100, 10)])
    error = roughly - exactly
    print(f"error of the blocks over 100 resamples: root mean square {np.sqrt((error**2).mean()):.6f}, greatest "
          f"{np.abs(error).max():.6f}, against a standard deviation of {exactly.std():.4f}")  # fmt: skip


def _differences(models, weights: np.ndarray) -> np.ndarray:
    ours, theirs = (resampled_precision(classes[0], weights).mean(axis=0) for classes in models)
    return ours - theirs


if __name__ == "__main__":
    main()
