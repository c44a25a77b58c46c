"""What learners share: the encoder's contract, class means, distances, and steps of gradient descent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.functional import conv2d, max_pool2d, pad

from metaopt.errors import UserError

Weights = dict[str, Tensor]


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

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        """Build the parameters for examples of shape `x_shape`. Raises UserError where the shape does not suit."""
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"the encoder {type(self).__name__} does not define `forward`")

    def maps(self, x: Tensor) -> Tensor:
        """Return the features on their grid: (n, *x_shape) to (n, *map_shape)."""
        raise UserError(f"the encoder {self.name} has no features on a grid; take one for pictures, such as conv4")


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


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, ReLU and perhaps max-pooling: torch's layers, computed in an order that is faster.

    It holds torch's own layers in the textbook's order, and equals them in all derivatives. What differs: pictures lie
    in memory with the channels last, in which max-pooling is some ten times faster; a first layer, of a few channels,
    is one matrix product of patches; its statistics come from the moments of the patches, which are far fewer numbers
    than what it gives; and max-pooling, which commutes with what does not fall, comes before the normalisation's scale
    and shift, the bias and ReLU, for which that leaves a quarter of the work. A channel whose scale is negative is
    convolved with the opposite weights. Only operators that torch differentiates and `vmap` batches take part.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, height, width) to (n, n_out, height', width')."""
        conv = next(layer for layer in self if isinstance(layer, nn.Conv2d))
        norm = next((layer for layer in self if isinstance(layer, (nn.GroupNorm, nn.BatchNorm2d))), None)
        pool = next((layer for layer in self if isinstance(layer, nn.MaxPool2d)), None)
        weight, bias = conv.weight, conv.bias
        assert bias is not None
        gamma = None if norm is None else norm.weight
        if pool is not None and gamma is not None:
            sign = torch.where(gamma.detach() < 0, -1.0, 1.0).to(gamma)
            weight, bias, gamma = weight * sign[:, None, None, None], bias * sign, gamma * sign
        if conv.in_channels * 9 < conv.out_channels:
            maps, mean, variance = _first(x, weight, bias, conv, norm)
        else:
            maps = conv2d(x, weight, None, conv.stride, conv.padding)
            mean, variance = _moments(maps, bias, norm)
        if pool is not None:
            maps = max_pool2d(maps, pool.kernel_size, pool.stride)
        if norm is None or mean is None or variance is None or gamma is None:
            return (maps + bias[:, None, None]).relu()
        scale = gamma * (variance + norm.eps).rsqrt()  # (n_out,) or (n, n_out)
        shift = norm.bias + (bias - mean) * scale
        return torch.addcmul(shift[..., None, None], maps, scale[..., None, None]).relu()


def _first(
    x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, norm: nn.Module | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return a convolution without its bias, and the moments with it, of pictures of few channels; see `_moments`."""
    n_out = len(weight)
    (stride, _), (padding, _), (size, _) = conv.stride, conv.padding, conv.kernel_size
    windows = pad(x, (int(padding),) * 4).unfold(2, size, stride).unfold(3, size, stride)
    n, _, height, width = windows.shape[:4]
    patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(n, height * width, -1)  # (n, n_pixels, n_in * size²)
    # Contiguous, or torch takes its gradient by a product in the order that is seven times slower.
    columns = weight.flatten(1).T.contiguous()  # (n_in * size², n_out)
    maps = (patches.flatten(0, 1) @ columns).view(n, height, width, n_out).permute(0, 3, 1, 2)
    if norm is None:
        return maps, None, None
    if isinstance(norm, nn.BatchNorm2d):
        centre = patches.mean((0, 1))  # (n_in * size²,)
        off = patches - centre
        covariance = (off.mT @ off).sum(0) / (n * height * width)
        return maps, centre @ columns + bias, ((covariance @ columns) * columns).sum(0)
    centres = patches.mean(1)  # (n, n_in * size²)
    off = patches - centres[:, None]
    covariances = off.mT @ off / (height * width)  # (n, n_in * size², n_in * size²)
    of_channel = centres @ columns + bias  # (n, n_out)
    mean = of_channel.mean(1, keepdim=True)
    within = covariances.flatten(1) @ (columns @ columns.T).flatten() / n_out  # (n,)
    return maps, mean, within[:, None] + (of_channel - mean).square().mean(1, keepdim=True)


def _moments(maps: Tensor, bias: Tensor, norm: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """Return mean and variance of `maps + bias`: (n_out,) over a batch, (n, 1) over each example, none without a norm.

    In one pass each, by the mean of squares: where maps are nearly constant this loses digits, which no sum of squares
    below the variance, as of activations that were normalised before, brings near the norm's epsilon.
    """
    if norm is None:
        return None, None
    if isinstance(norm, nn.BatchNorm2d):
        mean, squares = maps.mean((0, 2, 3)), maps.square().mean((0, 2, 3))  # (n_out,)
        return mean + bias, (squares - mean.square()).clamp(min=0)
    of_channel, squares = maps.mean((2, 3)), maps.square().mean((1, 2, 3))  # (n, n_out), (n,)
    mean = (of_channel + bias).mean(1, keepdim=True)
    with_bias = squares[:, None] + (bias * (2 * of_channel + bias)).mean(1, keepdim=True)
    return mean, (with_bias - mean.square()).clamp(min=0)


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
