"""The coefficient of determination, R²."""

from typing import ClassVar

import torch
from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class R2(MetaObjective):
    """The share of a task's variance that its predictions explain: 1 is perfect, 0 is as good as the task's mean.

    With several targets, the mean over them. Where a target does not vary, 1 if it is predicted exactly and else 0, as
    scikit-learn's `r2_score` has it. It has no worst value, so a trial with predictions that are not finite fails.
    """

    name = "r2"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)

    def score(self, outcome: Outcome) -> Tensor:
        """Return R² of each task, (n_tasks,)."""
        truth = outcome.query_y.double()  # (n_tasks, n_queries, y_size)
        left = (truth - outcome.predictions.double()).square().sum(1)  # (n_tasks, y_size)
        total = (truth - truth.mean(1, keepdim=True)).square().sum(1)
        constant = torch.where(left == 0, 1.0, 0.0).to(truth)
        return torch.where(total > 0, 1 - left / total.where(total > 0, 1.0), constant).mean(1)
