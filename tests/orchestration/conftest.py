"""A pipeline of small Python commands under DVC, quick enough to run in every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from posefoundry.orchestration.dvc_graph import Outcome, run_stage


class ToyPipeline:
    """A DVC project whose stages are Python one-liners; each writes `<stage>.out` and needs what it names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stages: dict[str, dict] = {}
        (root / "params.yaml").write_text("gate: {rules: [{rule: floor, at_least: 0.5}]}\n")

    def stage(self, name: str, script: str, *needs: str, **meta: float) -> None:
        """Adds or replaces a stage; `script` runs before the output is written."""
        (self.root / f"{name}.py").write_text(
            f"import os, signal, sys, time\nfrom pathlib import Path\n{script}\n"
            f"Path('{name}.out').write_text('{name}')\n"
        )
        self._stages[name] = {
            "cmd": f"exec python {name}.py",
            "deps": [f"{name}.py", *(f"{need}.out" for need in needs)],
            "outs": [f"{name}.out"],
            **({"meta": meta} if meta else {}),
        }
        (self.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": self._stages}, sort_keys=False))

    def run(self, name: str, **options: object) -> tuple[Outcome, list[str]]:
        """Runs one stage; returns its outcome and all lines."""
        lines: list[str] = []
        return run_stage(name, project=self.root, on_line=lines.append, **options), lines


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyPipeline:
    from dvc.repo import Repo

    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("SHELL", "/bin/sh")  # unlike bash, it may stay between DVC and the command
    project = tmp_path / "project"
    project.mkdir()
    Repo.init(str(project), no_scm=True).close()
    return ToyPipeline(project)


@pytest.fixture
def three_stages(toy: ToyPipeline) -> ToyPipeline:
    """first -> second -> third, stated in the wrong order."""
    toy.stage("third", "print('third speaks')", "second", "first")
    toy.stage("first", "print('first speaks')")
    toy.stage("second", "print('second speaks')", "first", retries=2, retry_delay_s=0.1, time_limit_s=30)
    return toy


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of the test run's own; it takes seconds to start, so there is one."""
    from posefoundry.orchestration.environment import SERVER_STARTUP_LIMIT_S, prepare_prefect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect_home")))
        prepare_prefect(tmp_path_factory.getbasetemp())
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=SERVER_STARTUP_LIMIT_S):
            yield
