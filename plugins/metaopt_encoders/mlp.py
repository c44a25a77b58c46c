"""A multi-layer perceptron, the encoder for vectors."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from metaopt import tune
from metaopt.nn import Encoder


class MLP(Encoder):
    """Layers of ReLU units on the flattened example; the defaults are the 40-40 network of MAML's sinusoids."""

    name = "mlp"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 1024, log=True, default=40)
        depth: int = tune.integer(1, 6, default=2)

    def __init__(self, x_shape: tuple[int, ...], config: Config) -> None:
        super().__init__(x_shape, config)
        widths = [prod(x_shape)] + [config.width] * config.depth
        layers = ((nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths))
        self.layers = nn.Sequential(*(module for layer in layers for module in layer))
        self.n_features = config.width

    def forward(self, x: Tensor) -> Tensor:
        """Return features: (n, *x_shape) to (n, n_features)."""
        features: Tensor = self.layers(x.flatten(1))
        return features
