"""The size of what is meta-trained."""

from typing import ClassVar

import torch
from torch import Tensor

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class Parameters(MetaObjective):
    """The numbers of a learner that meta-training moves, its encoder's included."""

    name = "parameters"
    direction = "minimize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    judges_predictions = False

    def score(self, outcome: Outcome) -> Tensor:
        """Return that number for each task, (n_tasks,)."""
        return torch.full((len(outcome.predictions),), float(outcome.parameters), dtype=torch.float64)
