"""Ensembles: learners of one task whose predictions are averaged, chosen greedily.

Caruana, Niculescu-Mizil, Crew & Ksikes (2004), "Ensemble selection from libraries of models", ICML.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from metaopt.augment import Augment
from metaopt.learner import Learner
from metaopt.task import TaskSpec


class Ensemble(Learner):
    """Average what several learners predict: probabilities of classes, or targets.

    It is meta-trained with none of its members, and learns a task as each of them does.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[Learner], shares: Sequence[float], temperatures: Sequence[float]) -> None:
        """Take learners, the share of each in the mean, and what its class scores are divided by for probabilities."""
        sized = next((one.spec for one in members if not one.any_way), members[0].spec)
        super().__init__(sized, nn.Identity(), None)
        self.members, self.shares, self.temperatures = nn.ModuleList(members), shares, temperatures
        # Of views of a task, which members average over by themselves: for who must know that they do.
        self.augment = Augment(test_copies=max(_views(one.augment) for one in members))
        for needed in ("any_way", "batchable", "traceable"):
            setattr(self, needed, all(getattr(one, needed) for one in members))
        for needs in ("transductive", "equal_shots", "order_matters"):
            setattr(self, needs, any(getattr(one, needs) for one in members))

    def learners(self) -> list[Learner]:
        """Return the members."""
        return [one for one in self.members if isinstance(one, Learner)]

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the mean of the members' predictions: (n_queries, n_outputs)."""
        return self.mean([one(support_x, support_y, query_x) for one in self.learners()])

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of the members' predictions along a sequence: (n, n_outputs)."""
        return self.mean([one.stream(x, y) for one in self.learners()])

    def mean(self, predictions: Sequence[Tensor]) -> Tensor:
        """Return the mean of predictions (…, n_outputs), one a member; of classes the logarithm of probabilities."""
        return mean(predictions, self.shares, self.temperatures, classes=self.spec.kind == "classification")

    def with_spec(self, spec: TaskSpec) -> "Ensemble":
        """Return this ensemble, its parameters shared, for tasks of another size."""
        other = Ensemble([one.with_spec(spec) for one in self.learners()], self.shares, self.temperatures)
        other.spec, other.training = spec, self.training
        return other


def _views(augment: Augment) -> int:
    """Return over how many views of a task a learner averages at meta-test."""
    return math.prod(getattr(augment, field.name) for field in fields(augment) if field.name.startswith("test_"))


def mean(
    predictions: Sequence[Tensor], shares: Sequence[float], temperatures: Sequence[float], *, classes: bool
) -> Tensor:
    """Return the mean of predictions (…, n_outputs), each by its share, and of classes as `Ensemble` takes it."""
    if not classes:
        return torch.stack([share * one for share, one in zip(shares, predictions, strict=True)]).sum(0)
    logs = [
        (one / temperature).log_softmax(-1) + torch.tensor(share, device=one.device).log()
        for one, share, temperature in zip(predictions, shares, temperatures, strict=True)
    ]
    return torch.stack(logs).logsumexp(0)  # the logarithm of a mean that is never 0


def choose(n: int, worth: Callable[[Sequence[int]], float], most: int) -> list[int]:
    """Return which of `n` members to average, the same one perhaps several times, so that `worth` of them is greatest.

    The best one comes first, then again and again the one that helps most; what follows the best number is left off.
    """
    chosen: list[int] = []
    came: list[float] = []
    for _ in range(most):
        values = [worth([*chosen, one]) for one in range(n)]
        chosen.append(values.index(max(values)))
        came.append(max(values))
    return chosen[: came.index(max(came)) + 1]
