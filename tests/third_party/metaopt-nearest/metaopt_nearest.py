"""One nearest neighbour (Cover & Hart, 1967, doi:10.1109/TIT.1967.1053964), in the encoder's embedding space."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner


class Nearest(Learner):
    """Score a class by the cosine similarity of its support example that is closest to the query."""

    name = "nearest"
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        temperature: float = tune.real(0.01, 1.0, log=True, default=0.1)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support = normalize(self.encoder(support_x), dim=-1)  # (n_support, n_features)
        query = normalize(self.encoder(query_x), dim=-1)  # (n_queries, n_features)
        similarity = query @ support.T  # (n_queries, n_support)
        member = support_y[:, None] == torch.arange(self.spec.n_way, device=support_y.device)  # (n_support, n_way)
        closest = torch.where(member, similarity[:, :, None], -torch.inf).amax(1)  # (n_queries, n_way)
        return closest / self.config.temperature


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the learner of this plugin."""
    return [Nearest]
