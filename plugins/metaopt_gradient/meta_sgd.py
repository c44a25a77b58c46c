"""Meta-SGD (Li, Zhou, Chen & Li, 2017, arXiv:1707.09835)."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, descend
from metaopt.task import Kind, TaskSpec


class MetaSGD(Learner):
    """MAML that learns, beside the initial weights, a learning rate for every single weight: direction and step.

    All rates start at `initial_lr`, which the paper draws at random. They may become negative, as in the paper. The
    paper takes one step, at meta-test too; more use the same rates again.
    """

    name = "meta_sgd"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    steps = "inner_steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        initial_lr: float = tune.real(0.001, 1.0, log=True, default=0.1)
        inner_steps: int = tune.integer(1, 5, default=1)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name
        self.rates = copy.deepcopy(self.net)  # in the place of each weight its rate, under the same name
        for rate in self.rates.parameters():
            nn.init.constant_(rate, config.initial_lr)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network adapted to the support set: (n_queries, n_outputs)."""
        weights = descend(
            lambda weights: self.loss(functional_call(self.net, weights, support_x), support_y),
            dict(self.net.named_parameters()),
            dict(self.rates.named_parameters()),
            self.config.inner_steps,
            first_order=not self.training,
        )
        predictions: Tensor = functional_call(self.net, weights, query_x)
        return predictions
