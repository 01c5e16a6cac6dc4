"""Which code, data and machine: the git commit, the hashes that DVC wrote into dvc.lock, facts of the system."""

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from posefoundry.machine import cpu_name, usable_cores
from posefoundry.registry.store import project_root

DATA_FOLDERS = ("data/raw", "data/yolo")


@dataclass(frozen=True)
class GitState:
    """The commit checked out, and whether tracked files differ from it."""

    commit: str | None
    dirty: bool


def git_commit() -> GitState:
    """Returns the commit of the project; outside git, or without it, `GitState(None, False)`.

    dvc.lock does not count as a difference: the pipeline itself rewrites it while it runs.
    """
    root = project_root()
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return GitState(None, False)
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return GitState(commit, bool(changes))


def dvc_hashes() -> dict[str, str]:
    """Returns the hash of every output in dvc.lock by its path, such as `{"data/raw": "0f3c….dir"}`; {} without one."""
    lock = project_root() / "dvc.lock"
    try:
        content = yaml.safe_load(lock.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    stages = (content or {}).get("stages") or {}
    outputs = [output for stage in stages.values() for output in stage.get("outs") or []]
    return {output["path"]: output["md5"] for output in outputs if "path" in output and "md5" in output}


def lineage_tags() -> dict[str, str]:
    """Returns what a run or a version says of its origin, as MLflow tags: git.commit, git.dirty, dvc.data/raw..."""
    git, hashes = git_commit(), dvc_hashes()
    tags = {f"dvc.{folder}": hashes[folder] for folder in DATA_FOLDERS if folder in hashes}
    if git.commit:
        tags |= {"git.commit": git.commit, "git.dirty": str(git.dirty).lower()}
    return tags


def system_tags() -> dict[str, str]:
    """Returns facts of the machine and its software, as MLflow tags."""
    tags = {
        "system.platform": platform.platform(),
        "system.python": platform.python_version(),
        "system.cpu": cpu_name(),
        "system.cores": str(usable_cores()),
    }
    for package in ("posefoundry", "torch"):
        try:
            tags[f"system.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        tags["system.gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return tags


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
