"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra, 2016, arXiv:1606.04080)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import TaskSpec


class MatchingNet(Learner):
    """Answer with the support's labels, each weighted by the attention that the query pays to its example.

    The attention is a softmax of cosines over a temperature. The paper's is 1, at which the right one of five ways gets
    a probability of 0.65 at most, as e is to 4/e; the default of 0.1 learns faster. With `full_context` each example is
    embedded in sight of the support set: the supports by a bidirectional LSTM that goes over them in the order given,
    and each query by an LSTM that reads them `reads` times, a number that the paper leaves open.
    """

    name = "matching"
    any_way = True
    order_matters = True  # in full context
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        full_context: bool = tune.choice(False, True)
        reads: int = tune.integer(1, 10, default=2, when={"full_context": True})
        temperature: float = tune.real(0.01, 10.0, log=True, default=0.1)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        if config.full_context:
            n = encoder.n_features
            self.forwards, self.backwards, self.reader = Cell(n, n), Cell(n, n), Cell(2 * n, n)

    def from_features(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        """Return the logarithms of the labels' probabilities: (n_queries, n_way)."""
        if self.config.full_context:
            support = self._in_context(support)
            query = self._reading(query, support)
        cosines = normalize(query, dim=-1) @ normalize(support, dim=-1).T  # (n_queries, n_support)
        log_attention = (cosines / self.config.temperature).log_softmax(1)
        member = support_y[:, None] == torch.arange(self.spec.n_way, device=support_y.device)  # (n_support, n_way)
        return log_attention[:, :, None].masked_fill(~member, -torch.inf).logsumexp(1)

    def _in_context(self, support: Tensor) -> Tensor:
        """Return g of appendix A.2, (n_support, n_features): what both LSTMs say at an example, and itself."""
        there, back = _outputs(self.forwards, support), _outputs(self.backwards, support.flip(0)).flip(0)
        return there + back + support

    def _reading(self, query: Tensor, support: Tensor) -> Tensor:
        """Return f of appendix A.1, (n_queries, n_features): what the LSTM says after its reads, and the query."""
        h = c = torch.zeros_like(query)
        for _ in range(self.config.reads):
            read = (h @ support.T).softmax(1) @ support  # (n_queries, n_features)
            # the paper writes the read beside h; to a cell it is the same where it stands beside the input
            h, c = self.reader(torch.cat([query, read], 1), (h, c))
            h = h + query
        return h


class Cell(nn.LSTMCell):
    """The cell of an LSTM by matrix products; torch's own cannot be run by vmap."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the next output and cell, (n, hidden_size) each, from inputs (n, input_size) and the last two."""
        output, cell = state
        gates = linear(x, self.weight_ih, self.bias_ih) + linear(output, self.weight_hh, self.bias_hh)
        learn, forget, new, show = gates.chunk(4, 1)
        cell = forget.sigmoid() * cell + learn.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell


def _outputs(cell: Cell, rows: Tensor) -> Tensor:
    """Return the cell's outputs along the rows, one after another: (n_rows, n_features) to the same."""
    outputs, state = [], (torch.zeros_like(rows[:1]), torch.zeros_like(rows[:1]))
    for i in range(len(rows)):
        state = cell(rows[i : i + 1], state)
        outputs.append(state[0])
    return torch.cat(outputs)
