"""What it measures, and who proposed it: authors, year, where it is published."""

from typing import ClassVar

from torch import Tensor

from metaopt import hookimpl
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class Placeholder(MetaObjective):
    """The mean probability given to the true class, in [0, 1]: high for answers that are right and sure of it."""

    name = "placeholder"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0

    def score(self, outcome: Outcome) -> Tensor:
        """Return the mean over each task's queries, (n_tasks,)."""
        probabilities = outcome.predictions.softmax(-1)  # (n_tasks, n_queries, n_way)
        return probabilities.gather(-1, outcome.query_y[:, :, None]).mean((1, 2))


@hookimpl
def register_meta_objectives() -> list[type[MetaObjective]]:
    """Return the meta-objectives of this plugin."""
    return [Placeholder]
