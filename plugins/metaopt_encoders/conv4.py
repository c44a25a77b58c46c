"""Conv-4, the encoder of Matching Networks (Vinyals et al., 2016, arXiv:1606.04080) and most papers since."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from metaopt import tune
from metaopt.convolution import ConvBlock
from metaopt.errors import UserError
from metaopt.nn import ChannelsLast, Encoder

BLOCKS = 4


class Conv4(Encoder):
    """Four blocks of 3×3 convolution, normalisation, ReLU, each halving the picture by max-pooling or by a stride.

    The papers normalise with batch statistics ("batch"), which at meta-test makes a query's features depend on the
    other queries. The default, "layer", uses each example's own mean and variance over channels and pixels.
    """

    name = "conv4"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 128, log=True, default=64)
        pool: str = tune.choice("max", "stride")
        norm: str = tune.choice("layer", "none", "batch", transductive=("batch",))

    def __init__(self, x_shape: tuple[int, ...], config: Config) -> None:
        super().__init__(x_shape, config)
        if len(x_shape) != 3:
            raise UserError(
                f"the encoder conv4 needs pictures (channels, height, width), not examples of shape {x_shape}"
            )
        channels, *sides = x_shape
        for _ in range(BLOCKS):
            sides = [side // 2 if config.pool == "max" else (side + 1) // 2 for side in sides]
        if min(sides) < 1:
            raise UserError(
                f"the encoder conv4 halves a picture {BLOCKS} times: {x_shape[1:]} pixels are too few; use 16 or more"
            )
        widths = [channels] + [config.width] * BLOCKS
        self.blocks = nn.Sequential(*(self._block(a, b) for a, b in pairwise(widths)))
        self.map_shape = (config.width, sides[0], sides[1])
        self.n_features = prod(self.map_shape)

    def _block(self, n_in: int, n_out: int) -> ConvBlock:
        stride = 2 if self.config.pool == "stride" else 1
        layers: list[nn.Module] = [nn.Conv2d(n_in, n_out, 3, stride, padding=1)]
        if self.config.pool == "max":
            layers.append(ChannelsLast())  # ConvBlock does so by itself; the names of saved weights count it
        if self.config.norm == "layer":
            layers.append(nn.GroupNorm(1, n_out))  # one group: over channels and pixels
        elif self.config.norm == "batch":
            layers.append(nn.BatchNorm2d(n_out, track_running_stats=False))
        layers.append(nn.ReLU())
        if self.config.pool == "max":
            layers.append(nn.MaxPool2d(2))
        return ConvBlock(*layers)

    def maps(self, x: Tensor) -> Tensor:
        """Return features on their grid: (n, channels, height, width) to (n, *map_shape)."""
        maps: Tensor = self.blocks(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return features: (n, channels, height, width) to (n, n_features)."""
        return self.maps(x).flatten(1)
