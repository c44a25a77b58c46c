"""Prototypical networks for zero-shot learning (Snell, Swersky & Zemel, 2017, arXiv:1703.05175, sections 2.7, 3.3)."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, class_means, squared_distances
from metaopt.task import Supports, TaskSpec


class ProtoNetZero(Learner):
    """Score a query by its closeness to the prototypes that a linear map makes of the classes' descriptions.

    As in the paper's experiment a second linear map, on top of the encoder, takes queries to the same space, and
    prototypes are of unit length, which examples are not.
    """

    name = "protonet_zero"
    supports: ClassVar[Supports] = "descriptions"
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 1024, log=True, default=128)
        temperature: float = tune.real(0.01, 100.0, log=True, default=1.0)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.of_description = nn.Linear(prod(spec.description_shape), config.width)
        self.of_query = nn.Linear(encoder.n_features, config.width)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return minus the squared distances to the prototypes, over the temperature: (n_queries, n_way)."""
        embedded = normalize(self.of_description(support_x.flatten(1)), dim=1)  # (n_support, width)
        prototypes = class_means(embedded, support_y, self.spec.n_way)  # one description a class: itself, by label
        return -squared_distances(self.of_query(self.encoder(query_x)), prototypes) / self.config.temperature
