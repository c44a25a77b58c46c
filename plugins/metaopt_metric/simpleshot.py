"""SimpleShot (Wang, Chao, Weinberger & van der Maaten, 2019, arXiv:1911.04623)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy, normalize

from metaopt import tune
from metaopt.executor import Executor, trainable
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, class_means, squared_distances
from metaopt.task import Examples, TaskBatch, TaskSpec

RATE = 0.05
"""Share of a batch in the running mean of features, which so remembers some twenty batches."""


class SimpleShot(Learner):
    """Train a classifier of all train classes, transform its features, and score by closeness to each class mean.

    The transforms are the paper's: features as they are ("un"), of unit length ("l2n"), or less the mean of train
    features and then of unit length ("cl2n"). The paper takes that mean over all train examples after training; here
    it is a running mean over the batches, so that it costs nothing.
    """

    name = "simpleshot"
    trains_on = "examples"
    any_way = True
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"
    train_mean: Tensor
    n_batches: Tensor

    @dataclass(frozen=True)
    class Config:
        transform: str = tune.choice("cl2n", "l2n", "un")

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.classifier = nn.Linear(encoder.n_features, spec.n_train_classes)
        self.register_buffer("train_mean", torch.zeros(encoder.n_features))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Take one step of ordinary training on labelled examples and return the loss before it."""
        assert isinstance(batch, Examples)
        features, parameters = self.encoder(batch.x), trainable(self)
        loss = cross_entropy(self.classifier(features), batch.y)
        update(dict(zip(parameters, grad(loss, list(parameters.values())), strict=True)))
        self.n_batches += 1
        self.train_mean.lerp_(features.detach().mean(0), max(1 / int(self.n_batches), RATE))
        return loss.detach()

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return minus the squared distances to the class means of transformed features: (n_queries, n_way)."""
        support, query = self._transformed(support_x), self._transformed(query_x)  # (n, n_features)
        return -squared_distances(query, class_means(support, support_y, self.spec.n_way))

    def _transformed(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder(x)
        if self.config.transform == "cl2n":
            features = features - self.train_mean
        return features if self.config.transform == "un" else normalize(features, dim=-1)
