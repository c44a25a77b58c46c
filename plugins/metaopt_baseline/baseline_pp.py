"""Baseline++ (Chen, Liu, Kira, Wang & Huang, 2019, "A closer look at few-shot classification", arXiv:1904.04232)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.executor import Executor
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, class_means
from metaopt.task import Examples, TaskBatch, TaskSpec
from metaopt_baseline.supervised import one_hot, supervised_step


class BaselinePP(Learner):
    """Score classes by cosines: train so on all train classes, and fit new class vectors to a task's frozen features.

    The scale of the cosines is 10 in training and 2 in fitting, as in the authors' program for over 200 and for fewer
    classes. A class vector begins at its class's mean and takes plain gradient steps on the whole support set, where
    the paper's begins at random and goes through it 100 times in batches of 4, with momentum; its length is not
    learned.
    """

    name = "baseline_pp"
    trains_on = "examples"
    any_way = True
    steps = "steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        train_scale: float = tune.real(1.0, 100.0, log=True, default=10.0)
        scale: float = tune.real(1.0, 100.0, log=True, default=2.0)
        lr: float = tune.real(0.001, 1.0, log=True, default=0.01)
        steps: int = tune.integer(1, 500, log=True, default=100)
        weight_decay: float = tune.real(1e-5, 0.1, log=True, default=0.001)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.classifier = Cosine(encoder.n_features, spec.n_train_classes, config.train_scale)

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Take one step of ordinary training on labelled examples and return the loss before it."""
        return supervised_step(self, self.classifier, batch, update)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the scaled cosines with the class vectors fitted to the support set: (n_queries, n_way)."""
        support, query = (normalize(self.encoder(x).detach(), dim=1) for x in (support_x, query_x))  # (n, n_features)
        labels = one_hot(support_y, self.spec.n_way, support)  # (n_support, n_way)
        weight = class_means(support, support_y, self.spec.n_way)  # (n_way, n_features)
        for _ in range(self.config.steps):
            # the gradient of cross entropy by its formula: a tenth of the time of automatic differentiation
            length = weight.norm(dim=1, keepdim=True).clamp(min=1e-6)  # a class may have no feature at all
            unit = weight / length
            error = ((self.config.scale * support @ unit.T).softmax(1) - labels) / len(labels)  # (n_support, n_way)
            slope = self.config.scale * error.T @ support  # in the unit vectors, which turn but keep their length
            slope = (slope - (slope * unit).sum(1, keepdim=True) * unit) / length
            weight = weight - self.config.lr * (slope + self.config.weight_decay * weight)
        return self.config.scale * query @ normalize(weight, dim=1).T


class Cosine(nn.Module):
    """The scaled cosines of features (n, n_features) with a vector for each class, (n, n_classes)."""

    def __init__(self, n_features: int, n_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, n_features).uniform_(-1, 1) / n_features**0.5)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        cosines: Tensor = normalize(features, dim=1) @ normalize(self.weight, dim=1).T
        return self.scale * cosines
