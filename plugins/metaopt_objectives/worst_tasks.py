"""The worst tenth of tasks: what a user feels whose task is an unlucky one.

A mean over a tail is the conditional value at risk (Rockafellar & Uryasev, 2000, doi:10.21314/JOR.2000.038).
"""

from typing import ClassVar

import torch
from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind

TAIL = 0.1


class WorstTasks(MetaObjective):
    """The mean accuracy over the tenth of tasks with the lowest, in [0, 1]."""

    name = "worst_tasks"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0

    def score(self, outcome: Outcome) -> Tensor:
        """Return the accuracy of each task, (n_tasks,)."""
        return (outcome.predictions.argmax(-1) == outcome.query_y).double().mean(1)

    def contributions(self, scores: Tensor) -> Tensor:
        """Return (n_tasks,) values whose mean is that of the tail: q + min(score − q, 0) / TAIL, q its upper bound.

        They are the tail mean's influence function, so their spread gives its interval.
        """
        if not len(scores):
            return scores
        # q as the paper's maximiser: with the k-th lowest score the mean below is exactly that of the tail.
        k = max(1, int(torch.tensor(TAIL * len(scores)).ceil()))
        bound = scores.kthvalue(k).values
        return bound + (scores - bound).clamp(max=0) / TAIL
