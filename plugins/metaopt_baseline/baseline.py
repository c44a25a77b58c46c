"""Baseline (Chen, Liu, Kira, Wang & Huang, 2019, "A closer look at few-shot classification", arXiv:1904.04232)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt import tune
from metaopt.executor import Executor
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder
from metaopt.task import Examples, TaskBatch, TaskSpec
from metaopt_baseline.supervised import one_hot, supervised_step


class Baseline(Learner):
    """Train a classifier of all train classes; give a task a linear head of its own, fitted to the frozen features.

    The head begins at zero and takes plain gradient steps on the whole support set, where the paper's begins at
    random and goes through it 100 times in batches of 4, with momentum.
    """

    name = "baseline"
    trains_on = "examples"
    any_way = True
    steps = "steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        lr: float = tune.real(0.001, 1.0, log=True, default=0.01)
        steps: int = tune.integer(1, 500, log=True, default=100)
        weight_decay: float = tune.real(1e-5, 0.1, log=True, default=0.001)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.classifier = nn.Linear(encoder.n_features, spec.n_train_classes)

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Take one step of ordinary training on labelled examples and return the loss before it."""
        return supervised_step(self, self.classifier, batch, update)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the scores of the head fitted to the support set's features: (n_queries, n_way)."""
        support, query = self.encoder(support_x).detach(), self.encoder(query_x)  # (n, n_features)
        labels = one_hot(support_y, self.spec.n_way, support)  # (n_support, n_way)
        weight, bias = torch.zeros_like(labels.T @ support), torch.zeros_like(labels[0])
        lr, decay = self.config.lr, self.config.weight_decay
        for _ in range(self.config.steps):
            # the gradient of cross entropy by its formula: a tenth of the time of automatic differentiation
            error = ((support @ weight.T + bias).softmax(1) - labels) / len(labels)  # (n_support, n_way)
            weight = weight - lr * (error.T @ support + decay * weight)  # (n_way, n_features)
            bias = bias - lr * (error.sum(0) + decay * bias)  # (n_way,)
        scores: Tensor = query @ weight.T + bias
        return scores
