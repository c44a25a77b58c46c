"""ResNet-12, as MetaOptNet uses it (Lee et al., 2019, arXiv:1904.03758), after TADAM (Oreshkin et al., 2018)."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from metaopt import tune
from metaopt.errors import UserError
from metaopt.nn import Encoder

BLOCKS = 4
SLOPE = 0.1  # of the leaky ReLU


class ResNet12(Encoder):
    """Four residual blocks of three 3×3 convolutions, each halving the picture; features are the last block's maps.

    The widths are 64, 160, 320 and 640, scaled together by `width`, the first of them. The paper's batch statistics
    are "batch"; the default, "layer", uses each example's own mean and variance over channels and pixels, so that a
    query's features do not depend on the other queries. DropBlock, the paper's regulariser, is left out.
    """

    name = "resnet12"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(4, 64, log=True, default=64)
        norm: str = tune.choice("layer", "batch", transductive=("batch",))

    def __init__(self, x_shape: tuple[int, ...], config: Config) -> None:
        super().__init__(x_shape, config)
        if len(x_shape) != 3:
            raise UserError(
                f"the encoder resnet12 needs pictures (channels, height, width), not examples of shape {x_shape}"
            )
        channels, *sides = x_shape
        sides = [side // 2**BLOCKS for side in sides]
        if min(sides) < 1:
            raise UserError(
                f"the encoder resnet12 halves a picture {BLOCKS} times: {x_shape[1:]} pixels are too few; "
                f"use {2**BLOCKS} or more"
            )
        widths = [channels, *(round(config.width * factor) for factor in (1, 2.5, 5, 10))]
        self.blocks = nn.Sequential(*(Residual(a, b, config.norm) for a, b in pairwise(widths)))
        self.map_shape = (widths[-1], sides[0], sides[1])
        self.n_features = prod(self.map_shape)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def maps(self, x: Tensor) -> Tensor:
        """Return features on their grid: (n, channels, height, width) to (n, *map_shape)."""
        maps: Tensor = self.blocks(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return features: (n, channels, height, width) to (n, n_features)."""
        return self.maps(x).flatten(1)


class Residual(nn.Module):
    """Three convolutions beside a shortcut of 1×1 convolution, added, rectified and halved by max-pooling."""

    def __init__(self, n_in: int, n_out: int, norm: str) -> None:
        super().__init__()

        def convolution(n_in: int, size: int) -> nn.Sequential:
            layers: list[nn.Module] = [nn.Conv2d(n_in, n_out, size, padding=size // 2, bias=False)]
            if norm == "layer":
                layers.append(nn.GroupNorm(1, n_out))  # one group: over channels and pixels
            else:
                layers.append(nn.BatchNorm2d(n_out, track_running_stats=False))
            return nn.Sequential(*layers)

        self.path = nn.Sequential(
            convolution(n_in, 3), nn.LeakyReLU(SLOPE),
            convolution(n_out, 3), nn.LeakyReLU(SLOPE),
            convolution(n_out, 3),
        )  # fmt: skip
        self.shortcut = convolution(n_in, 1)
        self.end = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, height, width) to (n, n_out, height // 2, width // 2)."""
        halved: Tensor = self.end(self.path(x) + self.shortcut(x))
        return halved
