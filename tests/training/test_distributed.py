"""Two processes learn what one learns: torchrun and gloo against a single process, step by step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from posefoundry.config import Train
from posefoundry.errors import PosefoundryError, StoppedError
from posefoundry.models import build_model
from posefoundry.training import distributed
from posefoundry.training.distributed import ProcessGroup, join_process_group, synchronise_batchnorm

Learnt = dict[int, dict[str, dict[str, list]]]
Learn = Callable[[int, dict[str, dict[str, Any]]], dict[str, dict[str, list]]]

# 24 images, batch 6: 4 steps an epoch, 52 in 13 epochs. Batch statistics differ between halves of a batch by nature, so
# BatchNorm's are frozen; everything else must be the same mathematics.
LONG = {
    "epochs": 13, "warmup_epochs": 1, "freeze_batchnorm": True, "validate_every_epochs": 13, "optimizer": "sgd",
    "learning_rate": 0.002,
}  # fmt: skip


@pytest.fixture(scope="module")
def learnt(learn: Learn, small_job: dict[str, Any]) -> Learnt:
    """What was learnt by one process and by two, by the jobs' names."""
    jobs = {model: small_job | LONG | {"model": model} for model in ("yolov8n-pose", "yolo26n-pose")}
    return {1: learn(1, jobs), 2: learn(2, jobs | {"short": small_job})}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["yolov8n-pose", "yolo26n-pose"])
def test_two_processes_follow_the_losses_of_one(learnt: Learnt, model: str) -> None:
    losses = {processes: learnt[processes][model]["steps"][:50] for processes in (1, 2)}
    assert len(losses[1]) == len(losses[2]) == 50
    for name in (name for name in losses[1][0] if name.startswith("loss_")):
        one, two = ([step[name] for step in losses[processes]] for processes in (1, 2))
        np.testing.assert_allclose(two, one, rtol=1e-4, err_msg=name)
    assert losses[1][-1]["loss_total"] != losses[1][0]["loss_total"]


@pytest.mark.slow
def test_all_processes_judge_the_same_batchnorm_statistics(learnt: Learnt) -> None:
    one, two = learnt[2]["short"]["judged"]
    assert one == two


@pytest.mark.parametrize("attempt", [None, "first"], ids=["torchrun", "launcher"])
@pytest.mark.parametrize(
    ("device", "n_gpus", "own_device", "backend"),
    [
        ("cuda", 2, "cuda:1", "nccl"),
        ("auto", 2, "cuda:1", "nccl"),
        ("auto", 0, "cpu", "gloo"),
        ("cpu", 2, "cpu", "gloo"),
    ],
)
def test_gpus_meet_by_nccl_and_cpus_by_gloo(
    device: str, n_gpus: int, own_device: str, backend: str, attempt: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", distributed.FIRST_RANK: "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(distributed.ATTEMPT, raising=False)
    if attempt:
        monkeypatch.setenv(distributed.ATTEMPT, attempt)
        monkeypatch.setattr(distributed, "open_store", lambda timeout: dist.HashStore())
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    joined: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: joined.append(backend))
    group = join_process_group(device, 60)
    assert joined == [backend]
    assert (group.rank, group.n_processes, group.device) == (1, 2, torch.device(own_device))
    assert current == ([group.device] if backend == "nccl" else [])


def test_the_loss_of_a_peer_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "HEAR_PEERS_S", 0)
    group = ProcessGroup(rank=1, n_processes=2, device=torch.device("cpu"))
    gone = "[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:40849. This is typically caused by"
    with pytest.raises(SystemExit) as ended, group:
        raise RuntimeError(gone)
    assert ended.value.code == distributed.LOST_PEER_STATUS
    lost = "train: rank 1 has lost the connection to another process: Connection closed by peer [10.0.0.1]:40849.\n"
    assert capsys.readouterr().err == lost
    with pytest.raises(RuntimeError, match="a fault of its own"), group:
        raise RuntimeError("a fault of its own")


def test_of_processes_that_were_stopped_all_leave_and_the_main_one_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("one"))
    cpu = torch.device("cpu")
    with pytest.raises(StoppedError, match="after step 3"), ProcessGroup(rank=0, n_processes=2, device=cpu):
        raise StoppedError("stopped by a signal after step 3")
    with pytest.raises(SystemExit) as ended, ProcessGroup(rank=1, n_processes=2, device=cpu):
        raise StoppedError("stopped by a signal after step 3")
    assert ended.value.code == StoppedError.exit_status
    assert left == ["one", "one"]


def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(PosefoundryError, match="device: expected a GPU, and PyTorch sees none"):
        join_process_group("cuda", 60)


def test_batchnorm_is_synchronised_on_gpus_alone() -> None:
    model = build_model("yolov8n-pose")
    names = set(model.state_dict())
    with pytest.raises(PosefoundryError, match=r"train\.sync_batchnorm: expected GPUs, got device cpu"):
        synchronise_batchnorm(model, ProcessGroup(0, 2, torch.device("cpu")))
    same = synchronise_batchnorm(model, ProcessGroup(0, 2, torch.device("cuda", 0)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in same.modules())
    assert set(same.state_dict()) == names
    image = torch.rand(1, 3, 64, 64)
    unfused = same.eval()(image)
    torch.testing.assert_close(same.fuse()(image), unfused, rtol=1e-3, atol=1e-3)


def test_batch_divides_among_the_processes_of_all_nodes() -> None:
    assert Train(nodes=2, processes=4, batch_size=16).total_processes == 8
    with pytest.raises(ValueError, match="multiple of nodes times processes, got 12 and 2 x 4"):
        Train(nodes=2, processes=4, batch_size=12)
