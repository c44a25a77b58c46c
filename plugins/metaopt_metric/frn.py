"""Feature map reconstruction networks (Wertheimer, Tang & Hariharan, 2021, arXiv:2012.01506)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt import tune
from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import TaskSpec


class FRN(Learner):
    """Rebuild a query's feature map, place by place, out of the places of a class's supports; the best rebuild wins.

    A place is rebuilt by ridge regression in closed form, by the paper's equation 8, whose system has a row for each
    place of the class's supports. Its regulariser, by how much the rebuild swells (to undo its shrinking) and the scale
    of the scores are learned. The paper's pretraining and its auxiliary loss, which keeps the supports of different
    classes apart, are left out, and so is that the authors' code divides the features of ResNet-12 by a constant.
    """

    name = "frn"
    equal_shots = True
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        scale: float = tune.real(0.01, 10.0, log=True, default=1.0)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        if encoder.map_shape is None:
            raise UserError(
                f"the learner frn rebuilds feature maps, of which the encoder {encoder.name} has none; take one for "
                "pictures, such as conv4"
            )
        self.log_regulariser = nn.Parameter(torch.zeros(1))
        self.log_swelling = nn.Parameter(torch.zeros(1))
        self.scale = nn.Parameter(torch.tensor([config.scale]))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return minus the scaled mean squared errors of the rebuilds over the places: (n_queries, n_way)."""
        support, query = self._places(support_x), self._places(query_x)  # (n, n_places, channels)
        classes = support[support_y.argsort()].reshape(
            self.spec.n_way, -1, support.shape[2]
        )  # a class's places in a row
        n_rows, channels = classes.shape[1:]  # n_rows is n_shot * n_places
        regulariser = self.log_regulariser.exp() * n_rows / channels
        gram = classes @ classes.mT + regulariser * torch.eye(n_rows).to(classes)  # (n_way, n_rows, n_rows)
        wanted = query.flatten(0, 1)  # (n_queries * n_places, channels)
        rebuilt = self.log_swelling.exp() * (wanted @ classes.mT @ torch.linalg.solve(gram, classes))
        errors = (rebuilt - wanted).square().sum(2)  # (n_way, n_queries * n_places)
        scores: Tensor = -self.scale * errors.view(-1, *query.shape[:2]).mean(2).T
        return scores

    def _places(self, x: Tensor) -> Tensor:
        """Return the feature vectors of every place, (n, n_places, channels)."""
        assert isinstance(self.encoder, Encoder)
        return self.encoder.grid(x).flatten(2).mT
