"""The wide encoder, for vectors of many features that are good as they are, such as those of texts."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from metaopt import tune
from metaopt.nn import Encoder


class Wide(Encoder):
    """Each number of an example times a weight, and beside these a linear map of them.

    What stands for a word that no train class uses still tells examples apart, as in the wide part of Cheng et al.
    (2016, arXiv:1606.07792, "Wide & deep learning"); here the other part is linear. Weights begin at 1 and stay above
    0; the map begins as a random one that keeps distances, on average (Johnson & Lindenstrauss, 1984).
    """

    name = "wide"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 1024, log=True, default=256)
        """Numbers that the linear map gives."""

    def __init__(self, x_shape: tuple[int, ...], config: Config) -> None:
        super().__init__(x_shape, config)
        n = prod(x_shape)
        self.log_weights = nn.Parameter(torch.zeros(n))
        self.map = nn.Linear(n, config.width, bias=False)
        nn.init.normal_(self.map.weight, std=config.width**-0.5)
        self.n_features = n + config.width

    def forward(self, x: Tensor) -> Tensor:
        """Return features: (n, *x_shape) to (n, n_features)."""
        weighted = x.flatten(1) * self.log_weights.exp()
        return torch.cat([weighted, self.map(weighted)], 1)
