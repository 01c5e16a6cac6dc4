"""The benchmark of evaluation fails where the figures it times are not pycocotools'."""

import importlib.util
import sys
from pathlib import Path

import pytest

from posefoundry.evaluation.oks import OKS_METRICS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "evaluation.py"


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_of_evaluation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "1"])
    monkeypatch.setattr(module, "N_IMAGES", 20)
    monkeypatch.setattr(module, "N_PERSONS", 40)
    return module


def test_equal_figures_are_a_success(benchmark, capsys):
    benchmark.main()
    assert "largest difference in the ten OKS figures" in capsys.readouterr().out


@pytest.mark.parametrize("error", [2e-9, -1e-3, float("nan")])
def test_other_figures_are_exit_status_1_and_a_sentence(benchmark, monkeypatch, error):
    honest = benchmark.by_posefoundry

    def wrong(content, detections):
        *times, metrics, figures = honest(content, detections)
        return *times, metrics | {OKS_METRICS[3]: metrics[OKS_METRICS[3]] + error}, figures

    monkeypatch.setattr(benchmark, "by_posefoundry", wrong)
    with pytest.raises(SystemExit, match="The ten OKS figures are not pycocotools'") as ended:
        benchmark.main()
    assert isinstance(ended.value.code, str), "a sentence, which Python ends with status 1"
