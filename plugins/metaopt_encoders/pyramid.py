"""A narrowing pile of strided convolutions, for pictures larger than Conv-4 was made for.

As in "Striving for Simplicity" (Springenberg, Dosovitskiy, Brox & Riedmiller, 2015, arXiv:1412.6806) strides take the
place of pooling, and the saved time pays for larger pictures and for channels that grow from layer to layer. Or only
the first layer, whose maps are the largest, has a stride, and the others are pooled, which learns more from each task.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from metaopt import tune
from metaopt.errors import UserError
from metaopt.nn import ChannelsLast, Encoder

GROWTH = (1, 2, 3, 4, 4, 4)
"""Channels of each layer, in widths."""


class Pyramid(Encoder):
    """Layers of 3×3 convolution, normalisation over channels and pixels, and ReLU, each halving the picture."""

    name = "pyramid"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 64, log=True, default=32)
        depth: int = tune.integer(3, 6, default=5)
        pool: str = tune.choice("stride", "max")
        """What halves the picture behind the first layer, which has a stride."""

    def __init__(self, x_shape: tuple[int, ...], config: Config) -> None:
        super().__init__(x_shape, config)
        if len(x_shape) != 3:
            raise UserError(
                f"the encoder pyramid needs pictures (channels, height, width), not examples of shape {x_shape}"
            )
        channels, *sides = x_shape
        least = 2 ** (config.depth - 1) + 1 if config.pool == "stride" else 2**config.depth - 1
        if min(sides) < least:
            raise UserError(
                f"the encoder pyramid halves a picture {config.depth} times: {x_shape[1:]} pixels are too few; use "
                f"{least} or more, or a smaller depth"
            )
        for layer in range(config.depth):
            rounds_up = config.pool == "stride" or layer == 0
            sides = [(side + 1) // 2 if rounds_up else side // 2 for side in sides]
        widths = [channels] + [factor * config.width for factor in GROWTH[: config.depth]]
        self.layers = nn.Sequential(*(self._layer(a, b, at) for at, (a, b) in enumerate(pairwise(widths))))
        self.map_shape = (widths[-1], sides[0], sides[1])
        self.n_features = prod(self.map_shape)

    def _layer(self, n_in: int, n_out: int, number: int) -> nn.Sequential:
        # One group: each example's own mean and variance over channels and pixels.
        norm, relu = nn.GroupNorm(1, n_out), nn.ReLU()
        if self.config.pool == "stride" or number == 0:
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, 2, padding=1), ChannelsLast(), norm, relu)
        # Pooled before it is normalised, which leaves a quarter of the work.
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.MaxPool2d(2), norm, relu)

    def maps(self, x: Tensor) -> Tensor:
        """Return features on their grid: (n, channels, height, width) to (n, *map_shape)."""
        maps: Tensor = self.layers(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return features: (n, channels, height, width) to (n, n_features)."""
        return self.maps(x).flatten(1)
