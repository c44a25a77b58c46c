"""Accuracy: the share of query examples whose highest score is their label's."""

from typing import ClassVar

from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class Accuracy(MetaObjective):
    """The share of a task's queries classified correctly, in [0, 1]."""

    name = "accuracy"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0

    def score(self, outcome: Outcome) -> Tensor:
        """Return the accuracy of each task, (n_tasks,)."""
        return (outcome.predictions.argmax(-1) == outcome.query_y).double().mean(1)
