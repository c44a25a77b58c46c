"""Prototypical networks (Snell, Swersky & Zemel, 2017, arXiv:1703.05175)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import class_means, squared_distances


class ProtoNet(Learner):
    """Score a query by its closeness to each class mean in embedding space.

    The paper's temperature is 1 and its embeddings are used as they come.
    """

    name = "protonet"
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        distance: str = tune.choice("euclidean", "cosine")
        temperature: float = tune.real(0.01, 100.0, log=True, default=1.0)

    def from_features(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        """Return minus the squared distances to the prototypes, over the temperature: (n_queries, n_way)."""
        prototypes = class_means(support, support_y, self.spec.n_way)  # (n_way, n_features)
        if self.config.distance == "cosine":
            query, prototypes = normalize(query, dim=-1), normalize(prototypes, dim=-1)
        return -squared_distances(query, prototypes) / self.config.temperature
