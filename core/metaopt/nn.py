"""What learners share: the encoder's contract, class means, distances, and steps of gradient descent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad

Weights = dict[str, Tensor]


class Encoder(nn.Module):
    """Maps examples to features. Part of the pipeline, so that any learner may stand on any encoder.

    A plugin's encoder sets `name`, declares its hyperparameters in a frozen dataclass `Config`, sets `n_features` and
    gives `forward`: (n, *x_shape) to (n, n_features), each example by itself. An encoder keeps no memory.
    """

    name: ClassVar[str]
    n_features: int
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
    lr: float,
    steps: int,
    *,
    first_order: bool = False,
) -> Weights:
    """Return `weights` after so many steps of gradient descent on `loss`, a function of the weights.

    The result is differentiable in the weights it started from; with `first_order` as if each gradient were constant.
    """
    for _ in range(steps):
        at = {name: weight.detach() for name, weight in weights.items()} if first_order else weights
        gradient = grad(loss)(at)
        weights = {name: weight - lr * gradient[name] for name, weight in weights.items()}
    return weights
