"""What a learner costs: numbers that are trained, and time to adapt."""

import math
import time
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from metaopt.executor import Loop
from metaopt.learner import Learner
from metaopt.task import TaskSpec
from metaopt.train import meta_test
from metaopt_objectives.adaptation_time import AdaptationTime
from metaopt_objectives.parameters import Parameters
from metaopt_tasks.sinusoid import Sinusoid

SAMPLER = Sinusoid(Sinusoid.Config())
SPEC = SAMPLER.spec(1, 1, 2)


class Slow(Learner):
    """Takes some time for each task; has six numbers to train, and two that are fixed."""

    name = "slow"

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.trained = nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        time.sleep(0.01)
        return torch.zeros(len(query_x), 1)


def mean(objective: Any) -> float:
    learner, draw = Slow(SPEC, nn.Identity(), None), Generator().manual_seed(0)
    return meta_test(learner, SAMPLER, "test", objective, 5, Loop(), draw=draw, device=torch.device("cpu")).mean


def test_parameters_are_the_numbers_that_meta_training_moves() -> None:
    assert mean(Parameters(None)) == 6.0


def test_adaptation_time_is_that_of_one_task() -> None:
    assert 0.01 <= mean(AdaptationTime(None)) < math.inf


@pytest.mark.parametrize("cls", [Parameters, AdaptationTime])
def test_less_is_better(cls: type[Parameters | AdaptationTime]) -> None:
    assert cls.direction == "minimize"
    assert not cls.judges_predictions
