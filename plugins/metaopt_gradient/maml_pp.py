"""MAML++ (Antoniou, Edwards & Storkey, 2019, "How to train your MAML", arXiv:1810.09502)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, Weights, descend
from metaopt.task import Kind, TaskSpec

LEAST = 0.03
"""Where the weights of the earlier steps' losses stop falling, as a share of what they start at (the authors' code)."""


class MAMLPlusPlus(Learner):
    """MAML made stable: learned rates for each layer and step, the query loss after every step, first order at first.

    The outer rate follows a cosine, as in the paper. A layer is one tensor of weights, and normalisation's scale and
    shift adapt with the rest, where the authors leave them out. The paper's two remedies for batch normalisation
    (running statistics, and scales and shifts, of each step) do not apply to the encoders' default normalisation,
    which keeps no statistics, and are not here. Inner steps are as many at meta-test as in meta-training, since each
    has its own rates.
    """

    name = "maml_pp"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    traceable = False  # what it computes changes with `progress`
    steps = "inner_steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3, "outer.schedule": "cosine"}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        initial_lr: float = tune.real(0.001, 1.0, log=True, default=0.1)
        inner_steps: int = tune.integer(1, 10, default=5)
        multi_step: float = tune.real(0.0, 1.0, default=0.1)
        """The share of meta-training in which the losses after earlier steps count, less and less."""
        first_order: float = tune.real(0.0, 1.0, default=1 / 3)
        """The share of meta-training that leaves out second derivatives: the first 50 of the paper's 150 epochs."""

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name
        n_layers = len(list(self.net.parameters()))
        self.rates = nn.Parameter(torch.full((config.inner_steps, n_layers), config.initial_lr))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network adapted to the support set: (n_queries, n_outputs)."""
        weights: Weights = dict(self.net.named_parameters())
        for weights in self.adapted(support_x, support_y):  # noqa: B007 - the last ones count
            pass
        predictions: Tensor = functional_call(self.net, weights, query_x)
        return predictions

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """Return the weighted sum of the query losses after each inner step, or later the loss after the last."""
        if self.progress >= self.config.multi_step:
            return super().task_loss(support_x, support_y, query_x, query_y)
        importance = step_importance(self.progress / self.config.multi_step, self.config.inner_steps)
        losses = [
            self.loss(functional_call(self.net, weights, query_x), query_y)
            for weights in self.adapted(support_x, support_y)
        ]
        return torch.stack([share * loss for share, loss in zip(importance, losses, strict=True)]).sum()

    def adapted(self, support_x: Tensor, support_y: Tensor) -> Iterator[Weights]:
        """Yield the weights after each inner step."""
        weights: Weights = dict(self.net.named_parameters())
        for rates in self.rates[: self.config.inner_steps]:  # (n_layers,)
            weights = descend(
                lambda weights: self.loss(functional_call(self.net, weights, support_x), support_y),
                weights,
                dict(zip(weights, rates.unbind(), strict=True)),
                steps=1,
                first_order=not self.training or self.progress < self.config.first_order,
            )
            yield weights


def step_importance(annealed: float, n_steps: int) -> list[float]:
    """Return the weights of the losses after each step: all equal at `annealed` 0, nearly all on the last at 1."""
    earlier = max(1 - annealed, LEAST) / n_steps
    return [earlier] * (n_steps - 1) + [1 - (n_steps - 1) * earlier]
