"""Memory-augmented neural networks (Santoro, Bartunov, Botvinick, Wierstra & Lillicrap, 2016, PMLR 48).

"One-shot learning with memory-augmented neural networks", arXiv:1605.06065.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import Kind, TaskSpec
from metaopt_memory.blocks import label_inputs, lstm_step


class State(NamedTuple):
    """What b sequences side by side have come to."""

    hidden: Tensor  # (b, controller)
    cell: Tensor  # (b, controller)
    memory: Tensor  # (b, slots, slot_size)
    read: Tensor  # (b, heads * slot_size)
    read_weights: Tensor  # (b, heads, slots)
    usage: Tensor  # (b, slots)


class MANN(Learner):
    """Present examples one by one, each label a step late, to an LSTM that keeps what it needs in an external memory.

    The support set is the sequence (x₁, null), (x₂, y₁), …, in the order given. Each query is then presented by
    itself, with the last support's label, to the memory as the support set left it. In a stream (`tasks.stream`) it is
    scored as in the paper. The LSTM reads the encoder's features instead of pixels, and labels are one-hot at any
    number of ways (the paper's strings of letters are for more than five). A read head writes, too, each to its own of
    the least used slots, a detail that the paper leaves open. Where a step reads is told by the memory before it
    writes, though equation 2 has the index of the one after: there a key finds itself, and learning takes many times as
    long.
    """

    name = "mann"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    order_matters = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 3e-3, "outer.tasks_per_step": 16}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        controller: int = tune.integer(16, 400, log=True, default=200)
        slots: int = tune.integer(8, 256, log=True, default=128)
        slot_size: int = tune.integer(8, 128, log=True, default=40)
        heads: int = tune.integer(1, 8, default=4)
        sharpness: float = tune.real(1.0, 50.0, log=True, default=10.0)
        decay: float = tune.real(0.5, 0.999, default=0.99)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        n_read = config.heads * config.slot_size
        self.gates = nn.Linear(encoder.n_features + spec.n_outputs + n_read + config.controller, 4 * config.controller)
        self.key = nn.Linear(config.controller, n_read)
        self.alpha = nn.Linear(config.controller, config.heads)
        self.out = nn.Linear(config.controller + n_read, spec.n_outputs)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return what the network says of each query from the state the support set left: (n_queries, n_outputs)."""
        support, query = self.encoder(support_x), self.encoder(query_x)  # (n, n_features)
        labels = label_inputs(self.spec, support_y, support)  # (n_support, n_outputs)
        _, state = self._present(support, labels)
        state = State(*(tensor.expand(len(query), *tensor.shape[1:]) for tensor in state))
        late = labels[-1:].expand(len(query), -1)
        heard, recall = self._heard(torch.cat([query, late], 1))
        return self._step(heard, recall, state)[0]

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the network says of each example of a sequence when it is presented, (n, n_outputs).

        Its label comes with the next example.
        """
        features = self.encoder(x)
        return self._present(features, label_inputs(self.spec, y, features))[0]

    def _present(self, features: Tensor, labels: Tensor) -> tuple[Tensor, State]:
        """Return the predictions along a sequence (n, n_features) with labels (n, n_outputs), and its last state."""
        late = torch.cat([torch.zeros_like(labels[:1]), labels[:-1]])
        state, predictions = self._start(features), []
        heard, recall = self._heard(torch.cat([features, late], 1))
        for row in heard:
            prediction, state = self._step(row[None], recall, state)
            predictions.append(prediction)
        return torch.cat(predictions), state

    def _start(self, like: Tensor) -> State:
        """Return the state before the first example: all zeros, as the memory is empty and nothing is used."""
        c = self.config
        n_read = c.heads * c.slot_size
        sizes = (c.controller,), (c.controller,), (c.slots, c.slot_size), (n_read,), (c.heads, c.slots), (c.slots,)
        return State(*(like.new_zeros(1, *size) for size in sizes))

    def _heard(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the gates hear of inputs (n, n_in), (n, 4 controller), and their weights for what is recalled.

        For a whole sequence at once, as the gradient of one product is far cheaper than that of one at each step.
        """
        n_in = inputs.shape[1]
        weight, recall = torch.split(self.gates.weight, [n_in, self.gates.in_features - n_in], 1)
        return linear(inputs, weight, self.gates.bias), recall

    def _step(self, heard: Tensor, recall: Tensor, state: State) -> tuple[Tensor, State]:
        """Present one example, whose gates hear `heard` (b, 4 controller); return its prediction, (b, n_outputs)."""
        heads = self.config.heads
        gates = heard + linear(torch.cat([state.read, state.hidden], 1), recall)
        hidden, cell = lstm_step(gates, state.cell)
        keys = self.key(hidden).tanh().unflatten(1, (heads, -1))  # (b, heads, slot_size)
        alpha = self.alpha(hidden).sigmoid()[:, :, None]  # (b, heads, 1)

        # equations 2 and 3: where to read, by content; before this key is written, as it would find itself
        lengths = state.memory.norm(dim=-1)[:, None].clamp(min=1e-12)  # of slots, (b, 1, slots); of empty ones 0
        cosines = normalize(keys, dim=-1) @ state.memory.mT / lengths  # (b, heads, slots)
        read_weights = (self.config.sharpness * cosines).softmax(-1)

        # equations 5 to 8: each head writes its key where it last read, or over one of the least used slots
        order = state.usage.argsort(dim=1, stable=True)[:, :heads]  # (b, heads)
        least_used = (order[:, :, None] == torch.arange(self.config.slots, device=order.device)).to(hidden)
        write_weights = alpha * state.read_weights + (1 - alpha) * least_used  # (b, heads, slots)
        memory = state.memory * (1 - least_used.sum(1))[:, :, None] + write_weights.mT @ keys

        read = (read_weights @ memory).flatten(1)  # equation 4, (b, heads * slot_size)
        usage = self.config.decay * state.usage + read_weights.sum(1) + write_weights.sum(1)
        return self.out(torch.cat([hidden, read], 1)), State(hidden, cell, memory, read, read_weights, usage)
