"""SNAIL, a simple neural attentive meta-learner (Mishra, Rohaninejad, Chen & Abbeel, 2018, arXiv:1707.03141)."""

from dataclasses import dataclass
from math import ceil, log2
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import Kind, TaskSpec
from metaopt_memory.blocks import label_inputs


class SNAIL(Learner):
    """Read the support set as a sequence, by convolutions over time and by attention to it, with a query at its end.

    Each query stands at the end of the sequence by itself, without a label; the supports, in the order given, cannot
    see it, so that they are computed once for all queries. In a stream each example is such a query, too, at its own
    place. Widths are the paper's at `width` 128; the default, a quarter of that, is seven times as fast on a CPU and
    learns from fewer tasks. The dilations are 1, 2, 4, … until a block sees the whole sequence; the paper's begin at 2,
    of which the last sees nothing in a sequence of the length it was made for. The start, which the paper leaves open,
    is attention to what is alike.
    """

    name = "snail"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    order_matters = True
    inner_gradients = False
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 128, log=True, default=32)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        length, width = spec.n_way * spec.n_shot + 1, config.width
        self.blocks = nn.ModuleList()
        n = encoder.n_features + spec.n_outputs

        def attention(n_key: int, n_value: int) -> None:
            nonlocal n
            self.blocks.append(Attention(n, n_key, n_value))
            n += n_value

        def convolutions() -> None:
            nonlocal n
            for level in range(ceil(log2(length))):
                self.blocks.append(Dense(n, width, 2**level))
                n += width

        attention(width // 2, width // 4)
        convolutions()
        attention(2 * width, width)
        convolutions()
        attention(4 * width, 2 * width)
        self.out = nn.Linear(n, spec.n_outputs)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return what stands at each query's place, (n_queries, n_outputs)."""
        places = torch.full((len(query_x),), len(support_x), device=query_x.device)
        return self._read(self.encoder(support_x), support_y, self.encoder(query_x), places)

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what stands at each example's place before its label is known, (n, n_outputs)."""
        features = self.encoder(x)
        return self._read(features, y, features, torch.arange(len(x), device=x.device))

    def _read(self, support: Tensor, support_y: Tensor, query: Tensor, places: Tensor) -> Tensor:
        """Return predictions for the features of queries, each after as many supports as `places` (n_queries,) say."""
        labels = label_inputs(self.spec, support_y, support)  # (n_support, n_outputs)
        support = torch.cat([support, labels], 1)
        query = torch.cat([query, labels.new_zeros(len(query), self.spec.n_outputs)], 1)
        for block in self.blocks:
            support, query = block(support, query, places)
        predictions: Tensor = self.out(query)
        return predictions


class Dense(nn.Module):
    """A causal convolution of size 2 with gated activations, (n, n_in) to (n, n_in + width), the input kept."""

    def __init__(self, n_in: int, width: int, dilation: int) -> None:
        super().__init__()
        self.now, self.before = nn.Linear(n_in, 2 * width), nn.Linear(n_in, 2 * width, bias=False)
        self.dilation = dilation

    def forward(self, support: Tensor, query: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        n = len(support)
        before = pad(self.before(support), (0, 0, self.dilation, 0))  # row t is what t - dilation tells t
        return (
            torch.cat([support, gated(self.now(support) + before[:n])], 1),
            torch.cat([query, gated(self.now(query) + before[places])], 1),
        )


def gated(x: Tensor) -> Tensor:
    """(n, 2 width) to (n, width)."""
    filtered, gate = x.chunk(2, dim=1)
    return filtered.tanh() * gate.sigmoid()


class Attention(nn.Module):
    """Each place attends to itself and to the supports before it, (n, n_in) to (n, n_in + n_value), the input kept."""

    def __init__(self, n_in: int, n_key: int, n_value: int) -> None:
        super().__init__()
        self.ask, self.value = nn.Linear(n_in, n_key), nn.Linear(n_in, n_value)
        self.key = nn.Linear(n_in, n_key, bias=False)  # a bias would raise all scores of a place alike
        self.scale = n_key**-0.5

        # What a place asks for starts as what it offers, and sharply: otherwise it answers at random for much longer.
        bound = 10 * n_in**-0.5
        nn.init.uniform_(self.key.weight, -bound, bound)
        with torch.no_grad():
            self.ask.weight.copy_(self.key.weight)
            self.ask.bias.zero_()

    def forward(self, support: Tensor, query: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        n = len(support)
        keys, values = self.key(support), self.value(support)  # (n_support, n_key), (n_support, n_value)
        scores = self.ask(support) @ keys.T * self.scale  # (n_support, n_support)
        later = torch.ones(n, n, dtype=torch.bool, device=support.device).triu(1)
        read = scores.masked_fill(later, -torch.inf).softmax(1) @ values

        asked = self.ask(query)
        of_itself = (asked * self.key(query)).sum(1, keepdim=True)  # (n_queries, 1)
        ahead = torch.arange(n, device=places.device) >= places[:, None]  # (n_queries, n_support)
        seen = (asked @ keys.T).masked_fill(ahead, -torch.inf)
        weights = (torch.cat([seen, of_itself], 1) * self.scale).softmax(1)
        query_read = weights[:, :n] @ values + weights[:, n:] * self.value(query)
        return torch.cat([support, read], 1), torch.cat([query, query_read], 1)
