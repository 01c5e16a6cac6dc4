"""How long each runtime takes for pre-processing, inference and post-processing, measured side by side."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posefoundry.inference.predictor import Predictor

STAGES = ("preprocess", "inference", "postprocess", "end_to_end")
RUNS_PER_TURN = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of every timed run of one runtime, of a whole batch each.

    Attributes:
        milliseconds: For each of `STAGES`, an array (runs,).
    """

    milliseconds: dict[str, np.ndarray]

    def summary(self, stage: str) -> dict[str, float]:
        """Returns mean, p50, p95 and p99 of a stage in ms."""
        values = self.milliseconds[stage]
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}

    def speed_against(self, reference: "Latency", stage: str) -> float:
        """Returns how many times faster than `reference` a stage ran: the median over runs timed side by side."""
        return float(np.median(reference.milliseconds[stage] / self.milliseconds[stage]))


def measure_latency(
    predictors: Mapping[str, Predictor], batches: Sequence[Sequence[np.ndarray]], *, warmup_runs: int, timed_runs: int
) -> dict[str, Latency]:
    """Times every runtime on the same batches in turn, so that the machine's moods fall on all alike.

    A turn is a few timed runs behind one that is not timed: caches and threads that the runtime before has taken are
    its own again, as in service. The order rotates, so that none always follows the same neighbour.

    Args:
        predictors: By name.
        batches: BGR uint8 images in memory, best all of one shape; taken in order, from the first again at the end.
        warmup_runs: Runs of each runtime before all, not timed.
        timed_runs: Timed runs of each runtime.
    """
    names = list(predictors)
    runs: dict[str, list[list[float]]] = {name: [] for name in names}
    for name in names:
        for run in range(warmup_runs):
            _time_once(predictors[name], batches[run % len(batches)])
    for turn, start in enumerate(range(0, timed_runs, RUNS_PER_TURN)):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _time_once(predictors[name], batches[start % len(batches)])
            for run in range(start, min(start + RUNS_PER_TURN, timed_runs)):
                runs[name].append(_time_once(predictors[name], batches[run % len(batches)]))
    return {name: Latency(dict(zip(STAGES, np.array(rows).T, strict=True))) for name, rows in runs.items()}


def _time_once(predictor: Predictor, images: Sequence[np.ndarray]) -> list[float]:
    """Returns the milliseconds of the three stages and of all."""
    start = time.perf_counter()
    batch, letterboxes = predictor.preprocess(images)
    preprocessed = time.perf_counter()
    decoded = predictor.infer(batch)
    inferred = time.perf_counter()
    predictor.postprocess(decoded, letterboxes)
    done = time.perf_counter()
    marks = ((start, preprocessed), (preprocessed, inferred), (inferred, done), (start, done))
    return [1000 * (end - begin) for begin, end in marks]
