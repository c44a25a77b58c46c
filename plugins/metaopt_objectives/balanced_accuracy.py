"""Balanced accuracy: the mean over classes of the share of their queries that is classified correctly."""

from typing import ClassVar

import torch
from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class BalancedAccuracy(MetaObjective):
    """The mean recall of a task's classes, in [0, 1]: accuracy where a class counts alike however many queries it has.

    A class without queries does not count.
    """

    name = "balanced_accuracy"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0

    def score(self, outcome: Outcome) -> Tensor:
        """Return the balanced accuracy of each task, (n_tasks,)."""
        right = (outcome.predictions.argmax(-1) == outcome.query_y).double()  # (n_tasks, n_queries)
        classes = torch.arange(outcome.spec.n_way, device=outcome.query_y.device)
        member = (outcome.query_y[:, :, None] == classes).double()  # (n_tasks, n_queries, n_way)
        sizes = member.sum(1)  # (n_tasks, n_way)
        recalls = (member * right[:, :, None]).sum(1) / sizes.clamp(min=1)
        return recalls.sum(1) / (sizes > 0).sum(1)
