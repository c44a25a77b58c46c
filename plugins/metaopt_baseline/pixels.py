"""Nearest class mean on the raw input: what learning must beat."""

from torch import Tensor

from metaopt.learner import Learner
from metaopt.nn import class_means, squared_distances


class Pixels(Learner):
    """Score a query by its closeness to each class mean of raw numbers. It has nothing to train."""

    name = "pixels"
    trains_on = "nothing"
    uses_encoder = False
    any_way = True

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return minus the squared distances to the class means: (n_queries, n_way)."""
        means = class_means(support_x.flatten(1), support_y, self.spec.n_way)  # (n_way, n_numbers)
        return -squared_distances(query_x.flatten(1), means)
