"""No encoder: features in, features out."""

from math import prod

from torch import Tensor

from metaopt.nn import Encoder


class Identity(Encoder):
    """An example is its own features: for data that were embedded before, and for learners that need no encoder.

    Features that lie on a grid, (channels, height, width), stay on it for learners that compare places.
    """

    name = "identity"

    def __init__(self, x_shape: tuple[int, ...], config: Encoder.Config) -> None:
        super().__init__(x_shape, config)
        self.n_features = prod(x_shape)
        if len(x_shape) == 3:
            channels, height, width = x_shape
            self.map_shape = (channels, height, width)

    def maps(self, x: Tensor) -> Tensor:
        """Return the examples themselves, (n, channels, height, width). Raises UserError where they are no maps."""
        return x if self.map_shape else super().maps(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers of each example: (n, *x_shape) to (n, n_features)."""
        return x.flatten(1)
