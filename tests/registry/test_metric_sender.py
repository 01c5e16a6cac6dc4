"""What is told of steps that come twice, with a journal between the processes."""

from pathlib import Path

from posefoundry.registry.metric_sender import MetricSender, Point


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
