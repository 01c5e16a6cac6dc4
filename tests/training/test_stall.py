"""A process that stands still is named by the others, and a slow one is left alone."""

import json

import pytest

from posefoundry.training.stall import Progress, StallWatch

TIMEOUT_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Store:
    """What all processes share, in memory; `answers` off: its host is gone."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.answers = True

    def set(self, key: str, value: str) -> None:
        if not self.answers:
            raise RuntimeError("Connection reset by peer")
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])


class Job:
    """Processes of a training, played in one."""

    def __init__(self, n_processes: int = 3) -> None:
        self.clock, self.store = Clock(), Store()
        self.progress = [Progress() for _ in range(n_processes)]
        self.watches = [
            StallWatch(self.store, progress, rank, n_processes, TIMEOUT_S, self.clock)
            for rank, progress in enumerate(self.progress)
        ]
        self.frozen: set[int] = set()

    def pass_time(self, seconds: float) -> str | None:
        """Lets each watch look once a second; returns what the first says that says anything."""
        for _ in range(round(seconds)):
            self.clock.now_s += 1
            verdicts = [None if rank in self.frozen else watch.look() for rank, watch in enumerate(self.watches)]
            if any(verdicts):
                return next(filter(None, verdicts))
        return None

    def step(self, number: int, ranks: tuple[int, ...] = (0, 1, 2)) -> None:
        for rank in ranks:
            self.progress[rank].reach(f"step {number}: forward")
        self.pass_time(1)


def test_the_one_that_the_others_wait_for_is_named() -> None:
    job = Job()
    job.step(1)
    job.step(2, ranks=(0, 2))  # 1 still waits for its images; the others go on into the next collective and wait there
    verdict = job.pass_time(TIMEOUT_S + 5)
    assert verdict is not None
    assert verdict.startswith("rank 1 (")
    assert "step 1: forward" in verdict
    assert "rank 0" not in verdict
    assert job.clock.now_s <= TIMEOUT_S + 5


def test_a_frozen_process_is_named_though_all_stand_in_one_place() -> None:
    job = Job()
    job.step(1)
    job.frozen = {2}
    verdict = job.pass_time(TIMEOUT_S + 5)
    assert verdict is not None
    assert verdict.startswith("rank 2 (")
    assert "its whole process or host stands still or cannot be reached" in verdict


def test_where_all_stand_the_network_is_suspected() -> None:
    job = Job()
    job.step(1)
    verdict = job.pass_time(TIMEOUT_S + 5)
    assert verdict is not None
    assert "look at the network" in verdict


def test_signs_of_life_in_a_long_phase_are_enough() -> None:
    job = Job()
    job.step(1, ranks=(1, 2))  # they wait for 0, which judges the weights
    for _ in range(10):
        job.progress[0].beat()
        assert job.pass_time(TIMEOUT_S / 2) is None


def test_a_process_that_has_ended_well_is_not_missed() -> None:
    job = Job()
    job.step(1)
    for rank in (1, 2):
        job.watches[rank].leave()
        job.frozen.add(rank)
    for step in range(5):
        job.step(step, ranks=(0,))
        assert job.pass_time(TIMEOUT_S / 2) is None


def test_a_process_that_never_comes_is_named() -> None:
    job = Job()
    job.frozen = {1}
    verdict = job.pass_time(TIMEOUT_S + 5)
    assert verdict is not None
    assert verdict.startswith("rank 1: nothing heard")


def test_a_store_that_is_gone_ends_the_job_too() -> None:
    job = Job()
    job.step(1)
    job.store.answers = False
    verdict = job.pass_time(TIMEOUT_S + 5)
    assert verdict is not None
    assert "has not answered for 60 s: Connection reset" in verdict


def test_each_host_is_told_once() -> None:
    job = Job()
    assert [watch.is_first_to_tell() for watch in job.watches] == [True, False, False]


def test_waiting_for_peers_ends_with_an_error_too() -> None:
    progress = Progress()
    progress.reach("step 1: forward")
    with pytest.raises(RuntimeError), progress.waiting_for_peers("adding up"):
        raise RuntimeError("Connection closed by peer")
    assert progress.doing == "adding up"


def test_notes_are_plain_json() -> None:
    job = Job()
    job.step(1)
    note = json.loads(job.store.values["note/0"])
    assert note["phase"] == 1
    assert note["doing"] == "step 1: forward"
