"""Run by tests in processes of their own: trains, and writes each step's losses.

train_steps.py dataset.yaml settings.json out.json
"""

import json
import sys
from pathlib import Path

import torch

from posefoundry.config import Train
from posefoundry.datasets.yolo import read_dataset_yaml
from posefoundry.models import build_model
from posefoundry.training.data import TrainingImages
from posefoundry.training.distributed import join_process_group
from posefoundry.training.loader import training_loader
from posefoundry.training.loop import Trainer
from posefoundry.training.losses import build_criterion
from posefoundry.training.observer import Observer


class Steps(Observer):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def step_done(self, step: int, n_steps: int, values: dict[str, float]) -> None:
        self.rows.append(values)


def main() -> None:
    dataset, given, out = (Path(argument) for argument in sys.argv[1:])
    settings = Train.model_validate_json(given.read_text())
    with join_process_group("cpu") as group:
        spec = read_dataset_yaml(dataset)
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
        last_judged = group.gather([judged[-1]])
        if group.is_main:
            out.write_text(json.dumps({"steps": steps.rows, "judged": last_judged}))


if __name__ == "__main__":
    main()
