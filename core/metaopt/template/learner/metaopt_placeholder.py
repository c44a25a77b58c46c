"""What it is, and whose: authors, year, where it is published."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from metaopt import hookimpl, tune
from metaopt.learner import Learner
from metaopt.nn import class_means


class Placeholder(Learner):
    """Score a class by the mean cosine similarity of its support examples to the query, in embedding space."""

    name = "placeholder"
    any_way = True
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        """What a study searches: each field has its range and its default."""

        temperature: float = tune.real(0.01, 1.0, log=True, default=0.1)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Learn one task from its support set and return scores for its queries: (n_queries, n_way)."""
        support = normalize(self.encoder(support_x), dim=-1)  # (n_support, n_features)
        query = normalize(self.encoder(query_x), dim=-1)  # (n_queries, n_features)
        similarity = support @ query.T  # (n_support, n_queries)
        return class_means(similarity, support_y, self.spec.n_way).T / self.config.temperature


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the learners of this plugin."""
    return [Placeholder]
