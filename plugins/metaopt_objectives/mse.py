"""Mean squared error of predicted targets."""

from typing import ClassVar

from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class MSE(MetaObjective):
    """The mean over a task's queries of the squared error, in the square of the target's unit.

    It has no worst value, so a trial with predictions that are not finite fails.
    """

    name = "mse"
    direction = "minimize"
    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)

    def score(self, outcome: Outcome) -> Tensor:
        """Return the mean squared error of each task, (n_tasks,)."""
        return (outcome.predictions - outcome.query_y).double().square().flatten(1).mean(1)
