"""Good and fast: the area under the learning curve of adaptation, accuracy after 0, 1, … steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt import tune
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class AdaptationCurve(MetaObjective):
    """The mean accuracy after 0, 1, …, `steps` steps of adaptation to a task, in [0, 1].

    A learner that adapts at once, without steps, knows nothing at step 0, where it has chance's accuracy, and is as
    good as it gets from step 1 on.
    """

    name = "adaptation_curve"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        steps: int = tune.integer(1, 100, log=True, default=5)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.steps = config.steps

    def score(self, outcome: Outcome) -> Tensor:
        """Return the mean over steps of each task's accuracy, (n_tasks,)."""
        points = outcome.curve[: self.config.steps + 1]
        return torch.stack([_accuracy(predictions, outcome.query_y) for predictions in points]).mean(0)


def _accuracy(predictions: Tensor, query_y: Tensor) -> Tensor:
    """Return the share of right answers, (n_tasks,); of a tie between k classes one k-th."""
    best = predictions == predictions.amax(-1, keepdim=True)  # (n_tasks, n_queries, n_way)
    right = best.gather(-1, query_y[..., None])[..., 0]
    return (right / best.sum(-1)).double().mean(1)
