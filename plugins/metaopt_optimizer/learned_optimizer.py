"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al., 2016, arXiv:1606.04474)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value

from metaopt import tune
from metaopt.executor import Executor, pure, trainable
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, Weights
from metaopt.task import Examples, Kind, TaskBatch, TaskSpec
from metaopt_optimizer.coordinates import CoordinateLSTM, flatten, preprocess, unflatten

State = tuple[Tensor, ...]
"""Output and cell of the first LSTM, then of the second, (n_hidden, n) each."""
CARRIED = ("point", "first output", "first cell", "second output", "second cell")


class Optimizer(nn.Module):
    """Two LSTM layers that turn a coordinate's gradients, one after another, into the changes of that coordinate."""

    def __init__(self, n_hidden: int = 20, scale: float = 0.1, *, preprocessed: bool = True) -> None:
        """`scale` multiplies what the layers put out, so that an untrained optimiser takes small steps.

        Gradients are preprocessed, or taken as they are: the paper's choice for quadratics, where they are about 1.
        """
        super().__init__()
        self.scale = scale
        self.preprocess = preprocess if preprocessed else torch.atleast_2d
        self.first = CoordinateLSTM(2 if preprocessed else 1, n_hidden)
        self.second = CoordinateLSTM(n_hidden, n_hidden)
        self.change = nn.Linear(n_hidden, 1)

    def start(self, vector: Tensor) -> State:
        """Return the state before the first step for a vector (n,)."""
        return (*self.first.start(vector), *self.second.start(vector))

    def forward(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """Return what to add to a vector (n,) whose gradient is given, and the next state."""
        first = self.first(self.preprocess(gradient), (state[0], state[1]))
        second = self.second(first[0], (state[2], state[3]))
        change = torch.addmm(self.change.bias[:, None], self.change.weight, second[0])[0]
        return self.scale * change, (*first, *second)


def optimize(
    optimizer: Optimizer,
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    state: State | None = None,
) -> tuple[list[Tensor], State]:
    """Return the points (n,) that the optimiser visits after `start` on its way down a function of a vector.

    The points are differentiable in the optimiser's weights and in the start; as in the paper the function's gradients
    count as constants. Going on from the last point, detached, with the state, detached, is truncated backpropagation.
    """
    gradient_of, point, points = grad(function), start, []
    state = optimizer.start(start) if state is None else state
    for _ in range(steps):
        change, state = optimizer(gradient_of(point.detach()), state)
        point = point + change
        points.append(point)
    return points, state


class LearnedOptimizer(Learner):
    """Train the network on the support set with an optimiser that is itself a network, the same for each weight.

    The optimiser is trained on the sum of the losses along its way, by truncated backpropagation: an outer step after
    every `unroll` inner steps, `unrolls` times a batch. Here these are the losses on the query set, where the paper,
    which is after optimisation and not generalisation, takes those that are optimised. The network starts from
    weights that are learned (from the first unroll, the only one in which they take part) or from given ones, those
    it was built with; the paper draws new ones for every run.
    """

    name = "learned_optimizer"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3, "conv4.width": 16}  # its cost is that of LSTMs a weight
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        start: str = tune.choice("learned", "given")
        unroll: int = tune.integer(1, 20, default=5)
        unrolls: int = tune.integer(1, 10, default=1)
        hidden: int = tune.integer(4, 40, log=True, default=20)
        scale: float = tune.real(0.001, 1.0, log=True, default=0.1)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name
        if config.start == "given":
            self.net.requires_grad_(False)
        self.optimizer = Optimizer(config.hidden, config.scale)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network trained on the support set: (n_queries, n_outputs)."""
        steps = self.config.unroll * self.config.unrolls
        start = flatten(self._weights())
        points, _ = optimize(self.optimizer, lambda point: self._loss(point, support_x, support_y), start, steps)
        return self._predict(points[-1], query_x)

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Take a step after each unroll, and return the mean loss along the whole way."""
        assert isinstance(batch, TaskBatch)
        names, losses = list(trainable(self)), []
        carried: list[Tensor] = []
        for _ in range(self.config.unrolls):
            with torch.no_grad():
                result = executor.map(self, "unroll", *batch.tensors(), *carried)
            assert isinstance(result, dict)
            carried = [result[name] for name in CARRIED]
            losses.append(result["loss"].mean())
            update({name: result[name].mean(0) for name in names})
            names = [name for name in names if name.startswith("optimizer.")]  # the start lies behind
        return torch.stack(losses).mean()

    def unroll(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *carried: Tensor
    ) -> dict[str, Tensor]:
        """Train some steps from the start, or from where the last unroll left off.

        Returns the gradient of the loss along the way by parameter name, the "loss", and what the next is to carry on.
        """
        run: Any = grad_and_value(pure(self, "loss_along_the_way"), has_aux=True)
        parameters = dict(self.named_parameters())  # all: which of them are trained cannot be seen from in here
        gradients, (loss, left_off) = run(parameters, support_x, support_y, query_x, query_y, *carried)
        return {**gradients, "loss": loss, **dict(zip(CARRIED, left_off, strict=True))}

    def loss_along_the_way(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *carried: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mean query loss over the steps of an unroll, and the point and the state that it leaves off at."""
        start, *state = carried or (flatten(self._weights()),)
        points, left_off = optimize(
            self.optimizer,
            lambda point: self._loss(point, support_x, support_y),
            start,
            self.config.unroll,
            tuple(state) if state else None,
        )
        losses = [self._loss(point, query_x, query_y) for point in points]
        return torch.stack(losses).mean(), (points[-1], *left_off)

    def _weights(self) -> Weights:
        return dict(self.net.named_parameters())

    def _predict(self, point: Tensor, x: Tensor) -> Tensor:
        predictions: Tensor = functional_call(self.net, unflatten(point, self._weights()), x)
        return predictions

    def _loss(self, point: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self._predict(point, x), y)
