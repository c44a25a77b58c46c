"""Pretrain on all tasks together, then fine-tune: the contrast drawn by MAML (Finn et al., 2017, arXiv:1703.03400)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, descend
from metaopt.task import Kind, TaskSpec


class FineTune(Learner):
    """Fit one network to the examples of all tasks, and adapt it to a task by gradient descent.

    For regression only: in few-shot classification labels change their meaning from task to task, so that one network
    for all tasks can only answer "each class alike".
    """

    name = "finetune"
    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    steps = "steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        lr: float = tune.real(1e-4, 1.0, log=True, default=0.01)
        steps: int = tune.integer(1, 50, log=True, default=1)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """Return the loss on all of the task's examples without any adaptation."""
        return self.loss(self.net(torch.cat([support_x, query_x])), torch.cat([support_y, query_y]))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network fine-tuned on the support set: (n_queries, n_outputs)."""
        weights = descend(
            lambda weights: self.loss(functional_call(self.net, weights, support_x), support_y),
            dict(self.net.named_parameters()),
            self.config.lr,
            self.config.steps,
            first_order=True,  # nobody differentiates through this
        )
        predictions: Tensor = functional_call(self.net, weights, query_x)
        return predictions
