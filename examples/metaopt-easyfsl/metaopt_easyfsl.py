"""Five of easyfsl's classifiers as learners of metaopt, their code unchanged.

easyfsl (Bennequin, 2021, https://github.com/sicara/easy-few-shot-learning) brings the algorithms; metaopt brings the
encoder, which they share, the tasks, meta-training, and the search of their hyperparameters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from easyfsl.methods import BDCSPN, TIM, FewShotClassifier, Finetune, PrototypicalNetworks, SimpleShot
from torch import Tensor

from metaopt import hookimpl, tune
from metaopt.learner import Learner


class EasyProtoNet(Learner):
    """Score a query by its distance to each class mean; a fresh classifier for each task, so none is remembered."""

    name = "easyfsl_protonet"
    any_way = True
    batchable = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return scores for the queries: (n_queries, n_way)."""
        return _scores(PrototypicalNetworks(), self.encoder(support_x), support_y, self.encoder(query_x))


class EasySimpleShot(EasyProtoNet):
    """Score a query by its cosine similarity to each class mean."""

    name = "easyfsl_simpleshot"

    @dataclass(frozen=True)
    class Config:
        temperature: float = tune.real(0.01, 1.0, log=True, default=0.1)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = _scores(SimpleShot(), self.encoder(support_x), support_y, self.encoder(query_x))
        return scores / self.config.temperature


class EasyBDCSPN(EasySimpleShot):
    """Move the class means towards the queries that they win, then score queries by their cosine similarity."""

    name = "easyfsl_bdcspn"
    transductive = True

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = _scores(BDCSPN(), self.encoder(support_x), support_y, self.encoder(query_x))
        return scores / self.config.temperature


class EasyFinetune(EasyProtoNet):
    """Fit the class means to the support set by gradient descent; the encoder is trained as a ProtoNet's."""

    name = "easyfsl_finetune"
    method: ClassVar[type[Finetune | TIM]] = Finetune

    @dataclass(frozen=True)
    class Config:
        fine_tuning_steps: int = tune.integer(1, 200, log=True, default=25)
        fine_tuning_lr: float = tune.real(1e-5, 0.1, log=True, default=1e-3)
        temperature: float = tune.real(1.0, 100.0, log=True, default=10.0)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support, query = self.encoder(support_x).detach(), self.encoder(query_x).detach()
        return self.config.temperature * _scores(self.method(**vars(self.config)), support, support_y, query)

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return self.loss(EasyProtoNet.forward(self, support_x, support_y, query_x), query_y)


class EasyTIM(EasyFinetune):
    """Fit the class means to the support set, and to a high mutual information between queries and predictions."""

    name = "easyfsl_tim"
    transductive = True
    method = TIM


def _scores(classifier: FewShotClassifier, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
    """Return what a classifier says of features: (n, n_features) each to (n_queries, n_way)."""
    classifier.process_support_set(support, support_y)
    scores: Tensor = classifier(query)
    return scores


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the learners of this plugin."""
    return [EasyProtoNet, EasySimpleShot, EasyBDCSPN, EasyFinetune, EasyTIM]
