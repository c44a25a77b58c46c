"""Pretraining: a classifier of all train classes, then nearest class mean on its features.

The baseline that meta-learning is measured against (Chen et al., 2019, arXiv:1904.04232; Wang et al., 2019, SimpleShot,
arXiv:1911.04623, without its feature transforms).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.executor import Executor
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, class_means, squared_distances
from metaopt.task import Examples, TaskBatch, TaskSpec
from metaopt_baseline.supervised import supervised_step


class Pretrain(Learner):
    """Train an encoder to tell all train classes apart; score a query by its closeness to each class mean."""

    name = "pretrain"
    trains_on = "examples"
    any_way = True
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        distance: str = tune.choice("cosine", "euclidean")

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.classifier = nn.Linear(encoder.n_features, spec.n_train_classes)

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Take one step of ordinary training on labelled examples and return the loss before it."""
        return supervised_step(self, self.classifier, batch, update)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return minus the squared distances to the class means of features: (n_queries, n_way)."""
        support, query = self.encoder(support_x), self.encoder(query_x)  # (n, n_features)
        if self.config.distance == "cosine":
            support, query = normalize(support, dim=-1), normalize(query, dim=-1)
        return -squared_distances(query, class_means(support, support_y, self.spec.n_way))
