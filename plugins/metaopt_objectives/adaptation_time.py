"""The time that adapting to a task and answering its queries takes."""

from typing import ClassVar

import torch
from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class AdaptationTime(MetaObjective):
    """Seconds a task, by the wall clock, on average over tasks computed side by side.

    It differs from run to run and from machine to machine, so that no study by it can be repeated exactly.
    """

    name = "adaptation_time"
    direction = "minimize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    judges_predictions = False

    def score(self, outcome: Outcome) -> Tensor:
        """Return the same seconds for each task, (n_tasks,)."""
        return torch.full((len(outcome.predictions),), outcome.seconds, dtype=torch.float64)
