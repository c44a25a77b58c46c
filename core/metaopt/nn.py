"""What learners share: the encoder's contract, class means, distances, and steps of gradient descent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.functional import adaptive_avg_pool2d

from metaopt.errors import UserError

Weights = dict[str, Tensor]
Precision = Literal["float32", "bfloat16"]


class Encoder(nn.Module):
    """Maps examples to features. Part of the pipeline, so that any learner may stand on any encoder.

    A plugin's encoder sets `name`, declares its hyperparameters in a frozen dataclass `Config`, sets `n_features` and
    gives `forward`: (n, *x_shape) to (n, n_features), each example by itself. An encoder keeps no memory. One whose
    features lie on a grid also sets `map_shape` and gives `maps`, for learners that compare places.
    """

    name: ClassVar[str]
    n_features: int
    map_shape: tuple[int, int, int] | None = None
    """Channels, height and width of the features on a grid; None where they lie on none."""
    config: Any
    precision: Precision = "float32"
    """In which its convolutions and products are computed when it is called, set by the core; features are float32."""

    @dataclass(frozen=True)
    class Config:
        pass

    resolution: int | None = None
    """Pixels a side that larger pictures are averaged down to before they come to `forward`, set by the core."""

    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        """Build the parameters for examples of shape `x_shape`. Raises UserError where the shape does not suit."""
        super().__init__()
        self.config = config

    def __call__(self, x: Tensor) -> Tensor:
        """Return `forward(x)`, computed in its resolution and precision."""
        return self._computed(super().__call__, x)

    def grid(self, x: Tensor) -> Tensor:
        """Return `maps(x)`, computed in its resolution and precision: what learners call that compare places."""
        return self._computed(self.maps, x)

    def _computed(self, features_of: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if (shape := reduced(tuple(x.shape[1:]), self.resolution)) != x.shape[1:]:
            x = adaptive_avg_pool2d(x, (shape[1], shape[2]))
        if self.precision == "float32":
            return features_of(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            features = features_of(x)
        return features.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"the encoder {type(self).__name__} does not define `forward`")

    def maps(self, x: Tensor) -> Tensor:
        """Return the features on their grid: (n, *x_shape) to (n, *map_shape)."""
        raise UserError(f"the encoder {self.name} has no features on a grid; take one for pictures, such as conv4")


def reduced(x_shape: tuple[int, ...], resolution: int | None) -> tuple[int, ...]:
    """Return the shape of pictures (channels, height, width) whose longer side has so many pixels at most."""
    if resolution is None or len(x_shape) != 3 or max(x_shape[1:]) <= resolution:
        return x_shape
    height, width = (max(1, round(side * resolution / max(x_shape[1:]))) for side in x_shape[1:])
    return (x_shape[0], height, width)


class ChannelsLast(nn.Module):
    """Lays pictures out in memory with the channels last (NHWC), which what comes after keeps.

    On a CPU max-pooling is some twenty times faster so. It has to stand behind the first convolution: the two layouts
    of a one-channel picture are the same bytes, so torch cannot tell which is meant. Under `vmap`, where torch 2.13
    has no normalisation for this layout, it does nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the same pictures, (n, channels, height, width)."""
        laid_out: Tensor = _ToChannelsLast.apply(x)  # type: ignore[no-untyped-call]  # torch leaves it so
        return laid_out


class _ToChannelsLast(torch.autograd.Function):
    """The identity, as far as mathematics is concerned."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return x, in_dims[0]


def class_means(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Return the mean of each class's features: (n, n_features) and (n,) labels to (n_way, n_features)."""
    classes = torch.arange(n_way, device=labels.device)
    member = (labels[:, None] == classes).to(features)  # (n, n_way); one_hot cannot be run by vmap
    return member.T @ features / member.sum(0)[:, None]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared Euclidean distances of (n, n_features) to (m, n_features), (n, m).

    By the binomial formula: twice as fast as `torch.cdist`, and differentiable at distance 0.
    """
    return a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)


def descend(
    loss: Callable[[Weights], Tensor],
    weights: Weights,
    lr: float | Weights,
    steps: int,
    *,
    first_order: bool = False,
) -> Weights:
    """Return `weights` after so many steps of gradient descent on `loss`, a function of the weights.

    `lr` is one rate for all, or by name a rate for each, one number or one for every number of a weight. The result
    is differentiable in the rates and in the weights it started from; with `first_order` as if each gradient were
    constant.
    """
    rates: dict[str, Any] = lr if isinstance(lr, dict) else dict.fromkeys(weights, lr)
    for _ in range(steps):
        at = {name: weight.detach() for name, weight in weights.items()} if first_order else weights
        gradient = grad(loss)(at)
        weights = {name: weight - rates[name] * gradient[name] for name, weight in weights.items()}
    return weights
