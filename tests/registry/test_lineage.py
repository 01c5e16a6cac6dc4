import subprocess

import pytest

from posefoundry.registry.lineage import GitState, dvc_hashes, git_commit, lineage_tags

LOCK = """
schema: '2.0'
stages:
  ingest:
    cmd: python -m posefoundry.stages.ingest
    outs:
    - {path: data/raw, hash: md5, md5: 0123456789abcdef0123456789abcdef.dir, size: 1, nfiles: 1}
  convert:
    cmd: python -m posefoundry.stages.convert
    deps:
    - {path: data/raw, md5: stale.dir}
    outs:
    - {path: data/yolo, md5: fedcba9876543210fedcba9876543210.dir}
    - {path: reports/convert/receipt.jsonl, md5: 00112233445566778899aabbccddeeff}
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "dvc.lock").write_text(LOCK)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], check=True, cwd=tmp_path)
    return tmp_path


def test_a_clean_commit(repository):
    state = git_commit()
    assert len(state.commit) == 40
    assert not state.dirty


def test_the_lock_file_is_no_change_but_a_tracked_file_is(repository):
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    (repository / "untracked.txt").write_text("x")
    assert not git_commit().dirty
    (repository / "dvc.yaml").write_text("stages: {a: {cmd: x}}\n")
    assert git_commit().dirty


def test_outside_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_commit() == GitState(None, False)


def test_hashes_are_those_of_the_outputs(repository):
    assert dvc_hashes() == {
        "data/raw": "0123456789abcdef0123456789abcdef.dir",
        "data/yolo": "fedcba9876543210fedcba9876543210.dir",
        "reports/convert/receipt.jsonl": "00112233445566778899aabbccddeeff",
    }


@pytest.mark.parametrize("content", [None, "", "a: [1", "stages: {ingest: {cmd: x}}"])
def test_without_a_lock_there_are_no_hashes(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "dvc.lock").write_text(content)
    assert dvc_hashes() == {}


def test_tags_name_commit_and_data(repository):
    tags = lineage_tags()
    assert tags["git.commit"] == git_commit().commit
    assert tags["git.dirty"] == "false"
    assert tags["dvc.data/yolo"] == "fedcba9876543210fedcba9876543210.dir"
