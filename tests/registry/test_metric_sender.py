"""What is told of steps that come twice, with a journal between the processes."""

import json
import math
from pathlib import Path

from posefoundry.registry.metric_sender import MetricSender, Point, read_points, write_points


class Store:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float]] = []

    def __call__(self, points: list[Point]) -> None:
        self.told += [(point.step, point.value) for point in points]


def tell(sender: MetricSender, value: float, *steps: int) -> None:
    for step in steps:
        sender.add([Point("loss", value, 0, step)])


def test_steps_after_a_return_count_and_a_resumed_training_goes_on_where_that_one_was(tmp_path: Path) -> None:
    store, journal = Store(), tmp_path / "journal.jsonl"
    diverging = MetricSender(store, journal)
    tell(diverging, 1.0, 0, 1, 2, 3)
    diverging.go_back()  # to step 1
    tell(diverging, 2.0, 1, 2)
    assert diverging.close() == []  # killed after step 2

    resumed = MetricSender(store, journal)
    tell(resumed, 2.0, 2, 3, 4)
    assert resumed.close() == []
    given_up, valid = store.told[:4], store.told[4:]
    assert given_up == [(step, 1.0) for step in (0, 1, 2, 3)]
    assert valid == [(step, 2.0) for step in (1, 2, 3, 4)]


def test_a_return_soon_after_a_resumption_repeats_what_the_killed_process_told(tmp_path: Path) -> None:
    store, journal = Store(), tmp_path / "journal.jsonl"
    killed = MetricSender(store, journal)
    tell(killed, 1.0, 0, 1, 2)
    killed.close()
    resumed = MetricSender(store, journal)
    tell(resumed, 1.0, 1)  # told already
    resumed.go_back()
    tell(resumed, 2.0, 1, 2)
    resumed.close()
    assert store.told == [(0, 1.0), (1, 1.0), (2, 1.0), (1, 2.0), (2, 2.0)]


def test_a_cut_last_line_spoils_no_later_one(tmp_path: Path) -> None:
    store, journal = Store(), tmp_path / "journal.jsonl"
    journal.write_text('{"points": [["loss", 1.0, 0, 0]]}\n{"sent": 1}\n{"points": [["loss", 1.0, 0, 1]')
    after_power_cut = MetricSender(store, journal)
    tell(after_power_cut, 2.0, 1)
    assert after_power_cut.flush(5)
    after_power_cut._send = lambda points: (_ for _ in ()).throw(OSError("gone"))
    tell(after_power_cut, 2.0, 2)
    assert [point.step for point in after_power_cut.close()] == [2]

    assert MetricSender(store, journal).flush(5)
    assert store.told == [(1, 2.0), (2, 2.0)]


def test_points_outlive_a_file_with_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "unsent.json"
    write_points(path, [Point("loss", math.nan, 1, 10), Point("loss", math.inf, 2, 20)])
    skipped, broken = read_points(path)
    assert math.isnan(skipped.value)
    assert broken == Point("loss", math.inf, 2, 20)

    path.write_text(json.dumps([["loss", None, 1, 10], ["loss", 0.5, 2, 20]]))
    assert read_points(path) == [Point("loss", 0.5, 2, 20)]
    assert read_points(tmp_path / "nothing.json") == []
