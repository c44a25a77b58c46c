"""Learning and earning: the returns of all the episodes of a task."""

from typing import ClassVar

from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class ReturnCurve(MetaObjective):
    """What an episode brings on average, from a task's first to its last: the area under the curve of adaptation."""

    name = "return_curve"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("control",)

    def score(self, outcome: Outcome) -> Tensor:
        """Return the mean of each task's episodes, (n_tasks,)."""
        return outcome.predictions.double().mean(1)
