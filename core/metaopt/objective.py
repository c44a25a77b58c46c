"""Meta-objectives: how good a learner's predictions on tasks are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from metaopt.task import Kind, TaskSpec


@dataclass(frozen=True)
class Outcome:
    """What a learner predicted for the query sets of some tasks, and the truth. Later versions may add fields."""

    spec: TaskSpec
    predictions: Tensor
    """(n_tasks, n_queries, n_outputs); in control what each episode brought, (n_tasks, n_shot + n_query)."""
    query_y: Tensor
    """(n_tasks, n_queries) int64, or (n_tasks, n_queries, y_size); in control there is no truth, (n_tasks, 0)."""
    seconds: float = 0.0
    """A task took on average to adapt and predict, by the wall clock, tasks computed side by side."""
    parameters: int = 0
    """Numbers of the learner that meta-training moves."""
    curve: Sequence[Tensor] = ()
    """The predictions after 0, 1, … steps of adaptation, each as `predictions`, where the objective asked for them."""
    temperature: float = 1.0
    """What class scores are to be divided by, fitted on train tasks, where the objective asked for that."""


class MetaObjective:
    """A score of a learner, task by task; the core aggregates it over tasks.

    A plugin's objective sets `name`, `direction`, the `kinds` of tasks it can score, and gives `score`.
    """

    name: ClassVar[str]
    direction: ClassVar[Literal["maximize", "minimize"]]
    kinds: ClassVar[tuple[Kind, ...]]
    worst: ClassVar[float | None] = None
    """The score of a task whose predictions are not finite; None where there is no worst: then the trial fails."""
    judges_predictions: ClassVar[bool] = True
    """Whether it scores what was predicted; a cost, such as time, does not."""
    steps: int | None = None
    """How many steps of adaptation it wants to see the curve of; None for none."""
    fits_temperature: bool = False
    """Whether it wants a temperature fitted on train tasks."""
    order_matters: ClassVar[bool] = False
    """Whether the order of the queries changes the score, as it may in a stream."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, spec: TaskSpec) -> None:
        """Raise UserError, with what would work, where it cannot score tasks of this size."""

    def score(self, outcome: Outcome) -> Tensor:
        """Return one score a task, (n_tasks,)."""
        raise NotImplementedError(f"the meta-objective {type(self).__name__} does not define `score`")

    def contributions(self, scores: Tensor) -> Tensor:
        """Return values, (n_tasks,), whose mean is the score over tasks and whose spread gives its interval.

        They are the scores themselves unless the objective is no mean over tasks.
        """
        return scores
