"""A temperature fitted on train tasks takes overconfidence back, and nothing else."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from metaopt.executor import Loop
from metaopt.learner import Learner
from metaopt.train import Scores, meta_test
from metaopt_objectives.accuracy import Accuracy
from metaopt_objectives.calibration import Calibration
from metaopt_tasks.gaussian import Gaussian

SAMPLER = Gaussian(Gaussian.Config(spread=0.3))
SPEC = SAMPLER.spec(3, 20, 10)


class Nearest(Learner):
    """Scores by the distance to class means, made too sure of itself by a factor."""

    name = "nearest"
    factor = 1.0

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        means = torch.stack([support_x[support_y == one].mean(0) for one in range(3)])
        return -self.factor * torch.cdist(query_x, means).square()


def scored(factor: float, temperature: str) -> Scores:
    learner: Any = Nearest(SPEC, nn.Identity(), None)
    learner.factor = factor
    objective = Calibration(Calibration.Config(temperature=temperature))
    draw, cpu = Generator().manual_seed(0), torch.device("cpu")
    others = [Accuracy(Accuracy.Config())]
    return meta_test(learner, SAMPLER, "test", objective, 100, Loop(), draw=draw, device=cpu, others=others)


def test_a_fitted_temperature_undoes_any_factor_of_the_scores() -> None:
    raw, fitted = scored(20.0, "none"), scored(20.0, "fitted")
    assert fitted.mean < raw.mean - 0.05
    assert fitted.mean == pytest.approx(scored(0.05, "fitted").mean, abs=1e-3)
    assert fitted.others["accuracy"].mean == raw.others["accuracy"].mean


def test_fitting_leaves_the_tasks_that_are_scored_as_they_are() -> None:
    assert torch.equal(
        scored(1.0, "none").others["accuracy"].per_task, scored(1.0, "fitted").others["accuracy"].per_task
    )
