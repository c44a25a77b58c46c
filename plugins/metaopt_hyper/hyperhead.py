"""A hypernetwork that writes a linear head, as in VERSA (Gordon, Bronskill, Bauer, Nowozin & Turner, 2019).

"Meta-learning probabilistic inference for prediction", arXiv:1805.09921; the name is that of Ha, Dai & Le (2016,
arXiv:1609.09106).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, class_means
from metaopt.task import Kind, TaskSpec


class HyperHead(Learner):
    """Write the weights and biases of the task's linear head in one go, without any gradient step.

    In classification each class has its weights and its bias from the mean of its support features, which makes the
    head blind to their order; in regression the head comes from the mean of what a network makes of the pairs (x, y).
    The paper's networks give a Gaussian of weights and average over draws of it; these give its mean only.
    """

    name = "hyperhead"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(16, 512, log=True, default=256)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        n, width = encoder.n_features, config.width
        if spec.kind == "classification":
            self.weight, self.bias = _three_layers(n, width, n), _three_layers(n, width, 1)
        else:
            self.pair = nn.Sequential(nn.Linear(n + spec.y_size, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
            self.weight = _three_layers(width, width, spec.y_size * n)
            self.bias = _three_layers(width, width, spec.y_size)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return what the head written for the task says of each query: (n_queries, n_outputs)."""
        support, query = self.encoder(support_x), self.encoder(query_x)  # (n, n_features)
        if self.spec.kind == "classification":
            means = class_means(support, support_y, self.spec.n_way)  # (n_way, n_features)
            weight, bias = self.weight(means), self.bias(means)[:, 0]
        else:
            mean = self.pair(torch.cat([support, support_y], 1)).mean(0)  # (width,)
            weight, bias = self.weight(mean).unflatten(0, (self.spec.y_size, -1)), self.bias(mean)
        predictions: Tensor = query @ weight.T + bias  # of (n_outputs, n_features) and (n_outputs,)
        return predictions


def _three_layers(n_in: int, width: int, n_out: int) -> nn.Sequential:
    """Return the paper's amortisation network."""
    return nn.Sequential(
        nn.Linear(n_in, width), nn.ELU(), nn.Linear(width, width), nn.ELU(), nn.Linear(width, n_out)
    )  # fmt: skip
