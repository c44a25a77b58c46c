"""R2-D2, ridge regression as a differentiable head (Bertinetto, Henriques, Torr & Vedaldi, 2019, arXiv:1805.08136)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import Kind, TaskSpec


class R2D2(Learner):
    """Fit the support's labels by ridge regression on its features, in closed form, and learn features for that.

    By the Woodbury identity the system to solve has a row for each support example, however many features there are.
    Learned with the features are the regulariser, through its logarithm, and the scale of the scores. The paper also
    learns a number added to all scores alike; it changes neither predictions nor loss and is left out. In regression,
    which the paper does not try, the scale starts at 1.
    """

    name = "r2d2"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        regulariser: float = tune.real(0.01, 1000.0, log=True, default=1.0)
        scale: float = tune.real(1.0, 100.0, log=True, default=10.0)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.log_regulariser = nn.Parameter(torch.tensor([math.log(config.regulariser)]))
        self.scale = nn.Parameter(torch.tensor([config.scale if spec.kind == "classification" else 1.0]))

    def from_features(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        """Return the scaled predictions of ridge regression: (n_queries, n_outputs)."""
        support, query = _with_one(support), _with_one(query)  # (n, n_features + 1)
        targets = support_y
        if self.spec.kind == "classification":
            targets = (support_y[:, None] == torch.arange(self.spec.n_way, device=support_y.device)).to(support)
        ridge = self.log_regulariser.exp() * torch.eye(len(support)).to(support)
        dual = torch.linalg.solve(support @ support.T + ridge, targets)  # (n_support, n_outputs)
        predictions: Tensor = self.scale * (query @ (support.T @ dual))
        return predictions


def _with_one(features: Tensor) -> Tensor:
    """Return the features with a last one that is always 1, whose weight is the intercept."""
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)
