"""Run by tests in processes of their own: trains one job after the other, and writes each step's losses.

train_steps.py dataset.yaml jobs.json out.json; both files hold an object by the jobs' names.
"""

import json
import sys
from pathlib import Path

import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import DatasetSpec, read_dataset_yaml
from posefoundry.models import build_model
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import ProcessGroup, join_process_group
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import Observer


class Steps(Observer):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        self.rows.append(values)


def learn(spec: DatasetSpec, settings: Train, group: ProcessGroup) -> dict[str, list]:
    torch.manual_seed(settings.seed)
    model = build_model(settings.model)
    criterion = build_criterion(model, spec.skeleton, settings, group.sum)
    loader = training_loader(TrainingImages(spec, settings), settings, group.rank, group.device)
    steps = Steps()
    judged: list[float] = []

    def validate(model: torch.nn.Module) -> dict[str, float | None]:
        judged.append(sum(float(statistic.double().sum()) for statistic in model.buffers()))
        return {}

    Trainer(model, settings, criterion, loader, group, [steps]).train(validate, lambda *_: None)
    return {"steps": steps.rows, "judged": group.gather([judged[-1]])}


def main() -> None:
    dataset, given, out = (Path(argument) for argument in sys.argv[1:])
    jobs = {name: Train.model_validate(settings) for name, settings in json.loads(given.read_text()).items()}
    with join_process_group("cpu", 60) as group:
        spec = read_dataset_yaml(dataset)
        learnt = {name: learn(spec, settings, group) for name, settings in jobs.items()}
        if group.is_main:
            out.write_text(json.dumps(learnt))


if __name__ == "__main__":
    main()
