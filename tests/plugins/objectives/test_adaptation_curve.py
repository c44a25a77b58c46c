"""Good and fast: the area under the curve of accuracy over steps of adaptation."""

from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from metaopt import tune
from metaopt.executor import Loop
from metaopt.learner import Learner
from metaopt.objective import Outcome
from metaopt.task import TaskSpec
from metaopt.train import Scores, meta_test
from metaopt_objectives.accuracy import Accuracy
from metaopt_objectives.adaptation_curve import AdaptationCurve
from metaopt_tasks.gaussian import Gaussian

SAMPLER = Gaussian(Gaussian.Config())
SPEC = SAMPLER.spec(4, 2, 4)
LABELS = torch.tensor([[0, 1, 2, 3]])
RIGHT, TIED = one_hot(LABELS, 4).float(), torch.zeros(1, 4, 4)


def area(steps: int, *curve: Tensor) -> float:
    outcome = Outcome(TaskSpec("classification", (2,), 4, 1, 1), curve[-1], LABELS, curve=curve)
    return float(AdaptationCurve(AdaptationCurve.Config(steps=steps)).score(outcome))


def test_the_area_is_the_mean_over_steps_and_a_tie_is_chance() -> None:
    assert area(1, TIED, RIGHT) == pytest.approx((0.25 + 1) / 2)
    assert area(3, TIED, RIGHT, RIGHT, RIGHT) == pytest.approx((0.25 + 3) / 4)
    assert area(2, RIGHT, RIGHT, RIGHT) == 1.0
    assert area(1, TIED, RIGHT, TIED, TIED) == pytest.approx(0.625), "later steps than asked for do not count"


class Slowly(Learner):
    """Knows the answer from its third step on, and guesses class 0 before."""

    name = "slowly"
    steps = "steps"

    @dataclass(frozen=True)
    class Config:
        steps: int = tune.integer(1, 9, default=5)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        means = torch.stack([support_x[support_y == one].mean(0) for one in range(4)])
        near = -torch.cdist(query_x, means)
        return near if self.config.steps >= 3 else torch.zeros_like(near)


class AtOnce(Slowly):
    name = "at_once"
    steps = None


def scored(cls: type[Learner], steps: int) -> Scores:
    learner = cls(SPEC, nn.Identity(), Slowly.Config())
    objective = AdaptationCurve(AdaptationCurve.Config(steps=steps))
    draw, cpu = Generator().manual_seed(0), torch.device("cpu")
    return meta_test(
        learner, SAMPLER, "test", objective, 20, Loop(), draw=draw, device=cpu, others=[Accuracy(Accuracy.Config())]
    )


def test_a_learner_is_asked_for_its_predictions_after_each_step() -> None:
    scores = scored(Slowly, 5)
    accuracy = scores.others["accuracy"].mean
    assert accuracy > 0.3
    assert scores.mean == pytest.approx((3 * 0.25 + 3 * accuracy) / 6)


def test_a_learner_without_steps_is_at_chance_before_it_learns_and_then_as_good_as_it_gets() -> None:
    scores = scored(AtOnce, 4)
    assert scores.mean == pytest.approx((0.25 + 4 * scores.others["accuracy"].mean) / 5)
