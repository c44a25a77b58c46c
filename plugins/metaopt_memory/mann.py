"""Memory-augmented neural networks (Santoro, Bartunov, Botvinick, Wierstra & Lillicrap, 2016, PMLR 48).

"One-shot learning with memory-augmented neural networks", arXiv:1605.06065.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import Kind, TaskSpec
from metaopt_memory.blocks import label_inputs, lstm_step


class State(NamedTuple):
    """What a sequence has come to."""

    hidden: Tensor  # (controller,)
    cell: Tensor  # (controller,)
    memory: Tensor  # (slots, slot_size)
    read: Tensor  # (heads * slot_size,)
    read_weights: Tensor  # (heads, slots)
    usage: Tensor  # (slots,)


class Step(NamedTuple):
    """What each of b examples makes of a state, when it is presented to it by itself, before anything is written."""

    prediction: Tensor  # (b, n_outputs)
    hidden: Tensor  # (b, controller)
    cell: Tensor  # (b, controller)
    keys: Tensor  # (b, heads, slot_size)
    read: Tensor  # (b, heads * slot_size)
    read_weights: Tensor  # (b, heads, slots)
    write_weights: Tensor  # (b, heads, slots)
    erased: Tensor  # (slots,), 1 where the least used are, 0 elsewhere


def strings(n_way: int) -> Tensor:
    """Return a label of each class, (n_way, n_letters): one-hot, or its number in base 5 with one-hot digits."""
    numbers, digits = torch.arange(n_way), list[Tensor]()
    while 5 ** len(digits) < max(n_way, 2):
        digits.append(numbers // 5 ** len(digits) % 5)
    return torch.cat([one_hot(digit) for digit in digits], 1).float()


class MANN(Learner):
    """Present examples one by one, each label a step late, to an LSTM that keeps what it needs in an external memory.

    The support set is the sequence (x₁, null), (x₂, y₁), …, in the order given. Each query is then presented by
    itself, with the last support's label, to the memory as the support set left it. In a stream (`tasks.stream`) it is
    scored as in the paper. The LSTM reads the encoder's features instead of pixels. Labels of more than five classes
    are strings of letters, as in the paper, though no longer than they must be to differ, and the same in all tasks. A
    read head writes, too, each to its own of the least used slots, a detail that the paper leaves open, as it does the
    start and how sharply cosines address. Where a step reads is told by the memory before it writes, though equation 2
    has the index of the one after: there a key finds itself, and no start was found from which five classes are
    learned.
    """

    name = "mann"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    order_matters = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.tasks_per_step": 16}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        controller: int = tune.integer(16, 400, log=True, default=200)
        slots: int = tune.integer(8, 256, log=True, default=128)
        slot_size: int = tune.integer(8, 128, log=True, default=40)
        heads: int = tune.integer(1, 8, default=4)
        sharpness: float = tune.real(1.0, 50.0, log=True, default=20.0)
        decay: float = tune.real(0.5, 0.999, default=0.99)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        n_read = config.heads * config.slot_size
        n_recalled = n_read + config.controller
        classes = spec.kind == "classification"
        self.letters: Tensor  # (n_outputs, n_letters); targets are heard as they are
        self.register_buffer("letters", strings(spec.n_way) if classes else torch.eye(spec.n_outputs), persistent=False)
        n_letters = self.letters.shape[1]
        self.hear = nn.Linear(encoder.n_features + n_letters, 4 * config.controller)
        self.recall = nn.Linear(n_recalled, 4 * config.controller, bias=False)
        self.key = nn.Linear(config.controller, n_read, bias=False)
        self.alpha = nn.Linear(config.controller, config.heads)
        self.out = nn.Linear(n_recalled, n_letters)

        # The start decides how long it answers at random: keys that are large and have no bias in common, writing to
        # unused slots, and labels that are not drowned by features, shorten that. But for labels, `hear` and `recall`
        # begin as one layer of all inputs would.
        bound = (self.hear.in_features + n_recalled) ** -0.5
        for parameter in (*self.hear.parameters(), *self.recall.parameters()):
            nn.init.uniform_(parameter, -bound, bound)
        if classes:
            nn.init.uniform_(self.hear.weight[:, -n_letters:], -10 * bound, 10 * bound)
        nn.init.xavier_uniform_(self.key.weight, nn.init.calculate_gain("tanh"))
        nn.init.constant_(self.alpha.bias, -2.0)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return what the network says of each query from the state the support set left: (n_queries, n_outputs)."""
        support, query = self.encoder(support_x), self.encoder(query_x)  # (n, n_features)
        labels = self._labels(support_y, support)  # (n_support, n_letters)
        _, state = self._present(support, labels)
        late = labels[-1:].expand(len(query), -1)
        return self._step(self.hear(torch.cat([query, late], 1)), state).prediction

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the network says of each example of a sequence when it is presented, (n, n_outputs).

        Its label comes with the next example.
        """
        features = self.encoder(x)
        return self._present(features, self._labels(y, features))[0]

    def _labels(self, y: Tensor, like: Tensor) -> Tensor:
        """Return labels or targets (n, …) as they are heard, (n, n_letters)."""
        return label_inputs(self.spec, y, like) @ self.letters

    def _present(self, features: Tensor, labels: Tensor) -> tuple[Tensor, State]:
        """Return the predictions along a sequence (n, n_features) with labels (n, n_letters), and its last state."""
        late = torch.cat([torch.zeros_like(labels[:1]), labels[:-1]])
        state, predictions = self._start(features), []
        for heard in self.hear(torch.cat([features, late], 1)):
            step = self._step(heard[None], state)
            predictions.append(step.prediction)
            state = self._write(state, step)
        return torch.cat(predictions), state

    def _start(self, like: Tensor) -> State:
        """Return the state before the first example: all zeros, as the memory is empty and nothing is used."""
        c = self.config
        n_read = c.heads * c.slot_size
        sizes = (c.controller,), (c.controller,), (c.slots, c.slot_size), (n_read,), (c.heads, c.slots), (c.slots,)
        return State(*(like.new_zeros(*size) for size in sizes))

    def _step(self, heard: Tensor, state: State) -> Step:
        """Present b examples, of which the gates hear `heard` (b, 4 controller), each by itself to the same state."""
        heads, slots, slot_size = self.config.heads, self.config.slots, self.config.slot_size
        hidden, cell = lstm_step(heard + self.recall(torch.cat([state.read, state.hidden])), state.cell)
        keys = self.key(hidden).tanh().view(-1, slot_size)  # (b * heads, slot_size)
        alpha = self.alpha(hidden).sigmoid()[:, :, None]  # (b, heads, 1)

        # equations 2 and 3: where to read, by content; before this key is written, as it would find itself
        lengths = state.memory.norm(dim=-1).clamp(min=1e-12)  # of slots, (slots,); of empty ones 0
        cosines = normalize(keys, dim=-1) @ state.memory.mT / lengths  # (b * heads, slots)
        read_weights = (self.config.sharpness * cosines).softmax(-1)

        # equations 5 to 8: each head writes its key where it last read, or over one of the least used slots
        order = state.usage.argsort(stable=True)[:heads]
        least_used = (order[:, None] == torch.arange(slots, device=order.device)).to(hidden)  # (heads, slots)
        write_weights = alpha * state.read_weights + (1 - alpha) * least_used  # (b, heads, slots)
        erased = least_used.sum(0)

        # equation 4, of the memory after this is written, without making b such memories
        kept = (read_weights * (1 - erased)) @ state.memory  # (b * heads, slot_size)
        keys, read_weights = keys.view(-1, heads, slot_size), read_weights.view(-1, heads, slots)
        read = (kept.view_as(keys) + read_weights @ write_weights.mT @ keys).flatten(1)  # (b, heads * slot_size)
        prediction = self.out(torch.cat([hidden, read], 1)) @ self.letters.T  # a string's score is that of its letters
        return Step(prediction, hidden, cell, keys, read, read_weights, write_weights, erased)

    def _write(self, state: State, step: Step) -> State:
        """Return the state after a step of one example, b = 1."""
        read_weights, write_weights = step.read_weights[0], step.write_weights[0]  # (heads, slots)
        memory = state.memory * (1 - step.erased)[:, None] + write_weights.mT @ step.keys[0]
        usage = self.config.decay * state.usage + read_weights.sum(0) + write_weights.sum(0)
        return State(step.hidden[0], step.cell[0], memory, step.read[0], read_weights, usage)
