"""RFS (Tian, Wang, Krishnan, Tenenbaum & Isola, 2020, "Rethinking few-shot image classification", arXiv:2003.11539)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.executor import Executor
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder
from metaopt.task import Examples, TaskBatch, TaskSpec
from metaopt_baseline.supervised import supervised_step


class RFS(Learner):
    """Train a classifier of all train classes; fit logistic regression to a task's frozen, normalised features.

    This is the paper's "simple" method; its self-distillation, a second training on the first one's answers, is left
    out. Logistic regression is scikit-learn's.
    """

    name = "rfs"
    trains_on = "examples"
    any_way = True
    batchable = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        c: float = tune.real(0.01, 1000.0, log=True, default=1.0)
        """The inverse strength of the penalty."""

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.classifier = nn.Linear(encoder.n_features, spec.n_train_classes)

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Take one step of ordinary training on labelled examples and return the loss before it."""
        return supervised_step(self, self.classifier, batch, update)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the logarithms of the classes' probabilities: (n_queries, n_way)."""
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # slow to import

        features = [normalize(self.encoder(x), dim=1) for x in (support_x, query_x)]  # (n, n_features)
        support, query = (x.detach().cpu().numpy() for x in features)
        model = LogisticRegression(C=self.config.c, max_iter=1000).fit(support, support_y.cpu().numpy())
        return torch.as_tensor(model.predict_log_proba(query)).to(features[1])
