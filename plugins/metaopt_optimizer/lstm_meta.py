"""Optimization as a model for few-shot learning (Ravi & Larochelle, ICLR 2017, openreview.net/forum?id=rJY0-Kcll)."""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, Weights
from metaopt.task import Kind, TaskSpec
from metaopt_optimizer.coordinates import CoordinateLSTM, flatten, preprocess, unflatten


class LSTMMetaLearner(Learner):
    """Gradient descent read as an LSTM whose cell state is the network's weights, and whose gates are learned.

    Each coordinate's forget and input gates see its preprocessed gradient and loss through a first LSTM, its weight,
    and their own last values; the weights before the first step are learned, too. As in the paper, the meta-gradient
    treats gradients and losses on the support set as constants. Every step is on the whole support set, and begins
    with an input gate near `initial_lr`. The paper also clips the meta-gradient, which its Adam all but undoes.
    """

    name = "lstm_meta"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    steps = "steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3, "conv4.width": 32}  # the paper's
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        steps: int = tune.integer(1, 20, default=5)
        hidden: int = tune.integer(4, 40, log=True, default=20)
        initial_lr: float = tune.real(0.001, 0.5, log=True, default=0.1)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name
        self.lstm = CoordinateLSTM(4, config.hidden)
        self.forget_gate = nn.Linear(config.hidden + 2, 1)
        self.input_gate = nn.Linear(config.hidden + 2, 1)
        for module in (self.lstm, self.forget_gate, self.input_gate):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -0.01, 0.01)
        # Gradient descent to begin with: weights are kept, and steps are small.
        nn.init.uniform_(self.forget_gate.bias, 4, 5)
        nn.init.constant_(self.input_gate.bias, log(config.initial_lr / (1 - config.initial_lr)))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network adapted to the support set: (n_queries, n_outputs)."""
        initial: Weights = dict(self.net.named_parameters())
        gradient_and_loss = grad_and_value(
            lambda cell: self.loss(functional_call(self.net, unflatten(cell, initial), support_x), support_y)
        )
        cell = flatten(initial)  # (n,)
        forget = learn = torch.zeros_like(cell)
        state = self.lstm.start(cell)
        for _ in range(self.config.steps):
            gradient, loss = gradient_and_loss(cell.detach())
            state = self.lstm(torch.cat([preprocess(gradient), preprocess(loss.expand_as(gradient))]), state)
            forget = _gate(self.forget_gate, state[0], cell, forget)
            learn = _gate(self.input_gate, state[0], cell, learn)
            cell = forget * cell - learn * gradient
        predictions: Tensor = functional_call(self.net, unflatten(cell, initial), query_x)
        return predictions


def _gate(linear: nn.Linear, hidden: Tensor, cell: Tensor, last: Tensor) -> Tensor:
    """Return a gate's values (n,) from the first LSTM's output (n_hidden, n), the weights and its last values."""
    return torch.addmm(linear.bias[:, None], linear.weight, torch.cat([hidden, cell[None], last[None]]))[0].sigmoid()
