import json
import os
import subprocess

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.registry import ledger, store
from posefoundry.registry.ledger import history
from posefoundry.registry.promotion import promote, rollback, who_am_i
from posefoundry.registry.versions import aliases_of

MODEL = "posefoundry"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.0)


def aliases():
    return aliases_of(store.client(), MODEL)


def records():
    client = store.client()
    experiment = client.get_experiment_by_name(f"{MODEL}-promotions")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return sorted(runs, key=lambda run: run.info.run_name)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def kill_at(monkeypatch):
    """Ends the next promotion at a call of the store's client, before that call does anything."""

    def arm(method, *, call=1):
        client_class, seen = type(store.client()), []
        original = getattr(client_class, method)

        def dying(self, *arguments, **named):
            seen.append(arguments)
            if len(seen) == call:
                raise Killed
            return original(self, *arguments, **named)

        monkeypatch.setattr(client_class, method, dying)
        return lambda: monkeypatch.setattr(client_class, method, original)

    return arm


def test_the_first_promotion(project, make_version):
    make_version()
    record = promote(MODEL, "candidate", why=" the first ").record
    assert aliases() == {"candidate": "1", "production": "1"}
    assert (record.number, record.action, record.from_version, record.to_version) == (1, "promote", None, "1")
    assert (record.who, record.why) == ("Ada <ada@example.org>", "the first")
    assert record.when.endswith("+00:00")
    assert record.gate_verdict == "Passed: all 2 rules hold."
    assert (record.compared_with, record.notes, record.previous_record) == (None, (), None)


def test_three_versions_tell_their_true_story(project, make_version, monkeypatch):
    for number, compared_with in enumerate((None, "1", "2"), start=1):
        make_version(compared_with=compared_with)
        promote(MODEL, str(number), why=f"reason {number}", who=f"person {number}")
    assert aliases() == {"candidate": "3", "production": "3", "previous": "2"}
    rollback(MODEL, why="3 misses cyclists", who="Bo")
    assert aliases() == {"candidate": "3", "production": "2", "previous": "3"}

    told = history(MODEL)
    assert told.problems == ()
    assert [(r.number, r.action, r.from_version, r.to_version, r.who, r.why) for r in told.records] == [
        (1, "promote", None, "1", "person 1", "reason 1"),
        (2, "promote", "1", "2", "person 2", "reason 2"),
        (3, "promote", "2", "3", "person 3", "reason 3"),
        (4, "rollback", "3", "2", "Bo", "3 misses cyclists"),
    ]
    assert [r.compared_with for r in told.records] == [None, "1", "2", None]
    assert [r.notes for r in told.records] == [(), (), (), ()]
    assert [r.previous_record for r in told.records] == [None, *[r.sha256 for r in told.records[:3]]]


def test_a_second_rollback_undoes_the_first(project, make_version):
    for _ in "12":
        promote(MODEL, make_version(), why="better")
    rollback(MODEL, why="worse")
    rollback(MODEL, why="no, it was the camera")
    assert aliases()["production"] == "2"
    assert aliases()["previous"] == "1"


def test_a_comparison_with_another_version_is_noted(project, make_version):
    promote(MODEL, make_version(), why="first")
    make_version(compared_with=None)
    record = promote(MODEL, "2", why="second").record
    assert record.notes == ("the gate compared version 2 with nothing, but in production is version 1",)
    assert history(MODEL).records[1].notes == record.notes


def test_what_did_not_pass_the_gate_is_refused(project, make_version):
    make_version(passed=False)
    with pytest.raises(
        PosefoundryError, match=r"did not pass the gate: Rejected: Pose accuracy \(OKS AP\) is 0.1\. Train"
    ):
        promote(MODEL, "1", why="please")
    assert aliases() == {"candidate": "1"}
    assert history(MODEL).records == ()


def test_a_tag_set_by_hand_does_not_open_the_gate(project, make_version):
    make_version(passed=False, tagged_passed=True)
    with pytest.raises(PosefoundryError, match="did not pass the gate"):
        promote(MODEL, "1", why="please")


def test_what_is_in_production_is_not_promoted_again(project, make_version):
    promote(MODEL, make_version(), why="first")
    with pytest.raises(PosefoundryError, match="Version 1 of 'posefoundry' is in production already"):
        promote(MODEL, "candidate", why="again")
    assert len(history(MODEL).records) == 1


def test_an_unknown_version_is_refused_with_what_is_known(project, make_version):
    make_version()
    with pytest.raises(PosefoundryError, match=r"got '7'\. Known: 1 \(candidate\)\."):
        promote(MODEL, "7", why="lucky")


def test_without_any_version_the_way_to_one_is_named(project):
    with pytest.raises(PosefoundryError, match=r"found none\. Run the pipeline: dvc repro\..*--force register"):
        promote(MODEL, "candidate", why="first")


@pytest.mark.parametrize("why", ["", "  ", "x" * 1001])
def test_a_promotion_needs_a_reason(why, project):
    with pytest.raises(PosefoundryError, match="Expected a reason of 1 to 1000 characters"):
        promote(MODEL, "1", why=why)


def test_there_is_nothing_to_roll_back_to(project, make_version):
    with pytest.raises(PosefoundryError, match="Nothing of 'posefoundry' is in production"):
        rollback(MODEL, why="x")
    promote(MODEL, make_version(), why="first")
    with pytest.raises(PosefoundryError, match="Version 1 is the first of 'posefoundry' in production"):
        rollback(MODEL, why="x")


# What a promotion of version 2 calls, in order, and the call before which it dies.
KILLS = [
    ("set_registered_model_alias", 1),
    ("set_registered_model_alias", 2),
    ("set_registered_model_tag", 1),
    ("set_terminated", 1),
]


@pytest.mark.parametrize(("method", "call"), KILLS)
def test_a_promotion_killed_between_its_steps_is_finished_by_the_next_call(
    method, call, project, make_version, kill_at
):
    promote(MODEL, make_version(), why="first")
    make_version(compared_with="1")
    disarm = kill_at(method, call=call)
    with pytest.raises(Killed):
        promote(MODEL, "2", why="second")
    disarm()
    assert history(MODEL).problems == ("record 2 was begun and not finished; the next promote or rollback finishes it",)
    outcome = promote(MODEL, "2", why="second, again")
    assert outcome.completed == outcome.record == history(MODEL).records[1]
    assert outcome.record.why == "second"
    assert aliases() == {"candidate": "2", "production": "2", "previous": "1"}
    assert history(MODEL).problems == ()
    assert len(history(MODEL).records) == 2


def test_a_rollback_killed_between_its_steps_is_not_done_twice(project, make_version, kill_at):
    for _ in "12":
        promote(MODEL, make_version(), why="better")
    disarm = kill_at("set_terminated")
    with pytest.raises(Killed):
        rollback(MODEL, why="worse")
    disarm()
    rollback(MODEL, why="worse")
    assert aliases()["production"] == "1"
    assert len(history(MODEL).records) == 3


def test_another_act_first_finishes_what_was_killed(project, make_version, kill_at):
    for _ in "123":
        make_version()
    promote(MODEL, "1", why="first")
    disarm = kill_at("set_registered_model_alias", call=2)
    with pytest.raises(Killed):
        promote(MODEL, "2", why="second")
    disarm()
    outcome = promote(MODEL, "3", why="third")
    assert outcome.completed.to_version == "2"
    assert (outcome.record.from_version, outcome.record.to_version) == ("2", "3")
    assert aliases() == {"candidate": "3", "production": "3", "previous": "2"}
    assert [r.to_version for r in history(MODEL).records] == ["1", "2", "3"]


def test_a_killed_promotion_of_a_version_deleted_since_is_withdrawn(project, make_version, kill_at):
    promote(MODEL, make_version(), why="first")
    make_version()
    disarm = kill_at("set_registered_model_alias")
    with pytest.raises(Killed):
        promote(MODEL, "2", why="second")
    disarm()
    store.client().delete_model_version(MODEL, "2")
    make_version()
    promote(MODEL, "3", why="third")
    assert [r.to_version for r in history(MODEL).records] == ["1", "3"]
    assert history(MODEL).problems == ()


def test_of_two_people_at_once_one_withdraws(project, make_version, monkeypatch):
    for _ in "123":
        make_version()
    promote(MODEL, "1", why="first")
    ready = ledger.last_record

    def overtaken(model_name):
        """Another person promotes between this one's reading and writing."""
        read = ready(model_name)
        monkeypatch.setattr(ledger, "last_record", ready)
        promote(MODEL, "2", why="quicker", who="Bo")
        return read

    monkeypatch.setattr(ledger, "last_record", overtaken)
    with pytest.raises(PosefoundryError, match="Somebody else is promoting 'posefoundry'"):
        promote(MODEL, "3", why="slower")
    assert aliases() == {"candidate": "3", "production": "2", "previous": "1"}
    assert [r.who for r in history(MODEL).records] == ["Ada <ada@example.org>", "Bo"]
    assert history(MODEL).problems == ()


@pytest.fixture
def three_promoted(project, make_version):
    compared_with = None
    for _ in "123":
        version = make_version(compared_with=compared_with)
        promote(MODEL, version, why="better")
        compared_with = version
    return records()


def test_an_altered_record_is_found(three_promoted):
    run = three_promoted[1]
    content = json.loads(run.data.tags["record"])
    content["who"] = "somebody else"
    store.client().set_tag(run.info.run_id, "record", json.dumps(content))
    problems = history(MODEL).problems
    assert problems[0] == "record 2 was altered: its hash is not the one it was written with"
    assert problems[1] == "record 3 does not follow record 2 as that reads today"


def test_an_altered_record_with_an_altered_hash_is_found_by_the_next(three_promoted):
    run = three_promoted[1]
    content = json.loads(run.data.tags["record"])
    forged = ledger.Record.from_json(json.dumps({**content, "why": "forged"}))
    store.client().set_tag(run.info.run_id, "record", forged.to_json())
    store.client().set_tag(run.info.run_id, "record.sha256", forged.sha256)
    assert history(MODEL).problems == ("record 3 does not follow record 2 as that reads today",)


@pytest.mark.parametrize(
    ("index", "problem"), [(1, "expected record 2, found 3"), (2, "the model names record 3 as the last")]
)
def test_a_removed_record_is_found(index, problem, three_promoted):
    store.client().delete_tag(three_promoted[index].info.run_id, "record")
    assert problem in history(MODEL).problems[0]


def test_deleting_a_record_in_the_ui_does_not_hide_it(three_promoted):
    for run in three_promoted:
        store.client().delete_run(run.info.run_id)
    told = history(MODEL)
    assert len(told.records) == 3
    assert told.problems == ()


def test_production_moved_by_hand_is_found(three_promoted):
    store.client().set_registered_model_alias(MODEL, "production", "1")
    assert history(MODEL).problems == (
        "version 1 is in production, but the last record put version 3 there: the alias was moved without a record",
    )
    promote(MODEL, "2", why="from the wrong one")
    assert "record 4 found version 1 in production, where record 3 had put version 3" in history(MODEL).problems[0]


def test_a_record_that_is_no_record_is_named(three_promoted):
    store.client().set_tag(three_promoted[0].info.run_id, "record", "{}")
    with pytest.raises(PosefoundryError, match="expected a promotion record in run"):
        history(MODEL)


def test_nothing_promoted_is_an_empty_history(project):
    assert history(MODEL) == ledger.History(())


def test_who(project, monkeypatch):
    monkeypatch.setenv("POSEFOUNDRY_USER", "Cy")
    assert who_am_i() == "Cy"
    monkeypatch.delenv("POSEFOUNDRY_USER")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("LOGNAME", "dee")
    assert who_am_i() == "dee"
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "config", "user.name", "Eve"], check=True)
    subprocess.run(["git", "config", "user.email", "eve@example.org"], check=True)
    assert who_am_i() == "Eve <eve@example.org>"
