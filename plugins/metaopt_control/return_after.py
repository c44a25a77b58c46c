"""The return of a policy after it has learned."""

from typing import ClassVar

from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class ReturnAfter(MetaObjective):
    """What an episode brings on average after the `tasks.n_shot` episodes that a learner learns from."""

    name = "return_after"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("control",)
    order_matters = True

    def score(self, outcome: Outcome) -> Tensor:
        """Return the mean of each task's last `n_query` episodes, (n_tasks,)."""
        return outcome.predictions[:, outcome.spec.n_shot :].double().mean(1)
