"""What optimisers of single coordinates share: weights as one vector, gradients made readable, and an LSTM."""

import math

import torch
from torch import Tensor, nn

from metaopt.nn import Weights

P = 10
"""Sets the smallest size, e⁻ᵖ, that preprocessing tells from 0."""


def flatten(weights: Weights) -> Tensor:
    """Return all numbers of the weights in a row: (n,)."""
    return torch.cat([weight.flatten() for weight in weights.values()])


def unflatten(vector: Tensor, like: Weights) -> Weights:
    """Return a vector (n,) as weights of the names and shapes of `like`."""
    parts = torch.split(vector, [weight.numel() for weight in like.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(like.items(), parts, strict=True)}


def preprocess(x: Tensor) -> Tensor:
    """Return numbers of any size (n,) as two rows about 1 in size, (2, n) (Andrychowicz et al., 2016, appendix A).

    (log|x| / p, sign x) where |x| ≥ e⁻ᵖ, and (−1, eᵖx) below.
    """
    return torch.stack([x.abs().clamp(min=math.exp(-P)).log() / P, (x * math.exp(P)).clamp(-1, 1)])


class CoordinateLSTM(nn.Module):
    """An LSTM cell that every coordinate runs by itself, with shared weights and a state of its own.

    Coordinates come last in all shapes, which is twice as fast as `nn.LSTMCell` with its coordinates first.
    """

    def __init__(self, n_inputs: int, n_hidden: int) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.weight = nn.Parameter(torch.empty(4 * n_hidden, n_inputs + n_hidden))
        self.bias = nn.Parameter(torch.zeros(4 * n_hidden, 1))
        nn.init.uniform_(self.weight, -(n_hidden**-0.5), n_hidden**-0.5)

    def start(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state before the first step for a vector (n,): two of zeros, (n_hidden, n)."""
        zeros = torch.zeros_like(vector).expand(self.n_hidden, -1)
        return zeros, zeros

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the next output and cell, (n_hidden, n) each, from inputs (n_inputs, n) and the last two."""
        output, cell = state
        gates = torch.addmm(self.bias, self.weight, torch.cat([inputs, output])).chunk(4)  # (n_hidden, n) each
        learn, forget, new, show = gates
        cell = forget.sigmoid() * cell + learn.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell
