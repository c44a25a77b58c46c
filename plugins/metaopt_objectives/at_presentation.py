"""Accuracy at the k-th presentation of a class, the score of streams (Santoro et al., 2016, arXiv:1605.06065)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metaopt import tune
from metaopt.errors import UserError
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind, TaskSpec, presentations


class AtPresentation(MetaObjective):
    """The share of a stream's classes that are told right when an example of them is shown for the k-th time.

    At the first it is a guess, among those not seen yet at best; the paper reports the 1st, 2nd, 5th and 10th.
    """

    name = "at_presentation"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0
    order_matters = True
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        k: int = tune.integer(1, 1000, default=2)

    def check(self, spec: TaskSpec) -> None:
        """Raise UserError where tasks are no streams, or some classes are shown less than k times."""
        if not spec.stream:
            raise UserError(f"the objective {self.name} scores streams; set tasks.stream to true, or take accuracy")
        if self.config.k > (least := spec.least_shot or spec.n_shot):
            raise UserError(
                f"the objective {self.name} scores presentation {self.config.k} and classes of a task may be shown "
                f"{least} times; set its k to {least} or less, or tasks.n_shot to {self.config.k} or more"
            )

    def score(self, outcome: Outcome) -> Tensor:
        """Return the accuracy of each task over the queries that are the k-th of their class, (n_tasks,)."""
        kth = (presentations(outcome.query_y) == self.config.k).double()  # (n_tasks, n_queries)
        right = (outcome.predictions.argmax(-1) == outcome.query_y).double()
        return (right * kth).sum(1) / kth.sum(1)
