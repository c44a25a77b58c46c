"""Reptile (Nichol, Achiam & Schulman, 2018, arXiv:1803.02999), in its batched form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from metaopt import tune
from metaopt.executor import Executor, trainable
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, Weights
from metaopt.task import Examples, Kind, TaskBatch, TaskSpec

BETA2, EPSILON = 0.999, 1e-8


class Reptile(Learner):
    """Train on a task for a few steps, then move the initial weights towards where that led.

    Meta-training learns from a task's support and query examples alike, in mini-batches. The inner optimiser is the
    paper's Adam without momentum (β₁ = 0), or plain gradient descent; each task starts it afresh, where the paper
    carries Adam's second moments from task to task. The outer step is the paper's: gradient descent on the difference
    of the weights, at a rate going linearly from `outer.sgd_lr` to 0.
    """

    name = "reptile"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    order_matters = True  # mini-batches come in turn
    steps = "test_steps"
    defaults: ClassVar[dict[str, Any]] = {
        "outer.optimizer": "sgd",
        "outer.sgd_lr": 1.0,
        "outer.schedule": "linear",
        "outer.tasks_per_step": 5,
    }
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        inner_optimizer: str = tune.choice("adam", "sgd")
        inner_lr: float = tune.real(1e-4, 0.1, log=True, default=1e-3)
        inner_steps: int = tune.integer(1, 20, default=5)
        inner_batch: int = tune.integer(1, 50, log=True, default=10)
        test_steps: int = tune.integer(1, 100, log=True, default=50)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Move the weights by the mean over tasks of where training leads; return the mean of the losses before it."""
        assert isinstance(batch, TaskBatch)
        with torch.no_grad():
            result = executor.map(self, "displacement", *batch.tensors())
        assert isinstance(result, dict)
        loss = result.pop("loss").mean()
        update({name: result[name.removeprefix("net.")].mean(0) for name in trainable(self)})
        return loss

    def displacement(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> dict[str, Tensor]:
        """Return the initial weights minus those trained on the task, by name, and the first mini-batch's "loss"."""
        x, y = torch.cat([support_x, query_x]), torch.cat([support_y, query_y])
        initial: Weights = dict(self.net.named_parameters())
        trained, losses = self._train(initial, x, y, self.config.inner_steps)
        return {name: initial[name] - trained[name] for name in initial} | {"loss": losses[0]}

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network trained on the support set: (n_queries, n_outputs)."""
        initial: Weights = dict(self.net.named_parameters())
        weights, _ = self._train(initial, support_x, support_y, self.config.test_steps)
        predictions: Tensor = functional_call(self.net, weights, query_x)
        return predictions

    def _train(self, weights: Weights, x: Tensor, y: Tensor, steps: int) -> tuple[Weights, list[Tensor]]:
        """Return the weights after so many steps on mini-batches from (x, y) in turn, and the loss before each."""
        losses = []
        gradient_of = grad_and_value(lambda weights, x, y: self.loss(functional_call(self.net, weights, x), y))
        size = min(self.config.inner_batch, len(x))
        second_moments = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for step in range(steps):
            rows = [(step * size + i) % len(x) for i in range(size)]
            gradient, loss = gradient_of(weights, x[rows], y[rows])
            losses.append(loss)
            if self.config.inner_optimizer == "adam":
                second_moments = {
                    name: BETA2 * second_moments[name] + (1 - BETA2) * gradient[name].square() for name in weights
                }
                correction = 1 - BETA2 ** (step + 1)
                gradient = {
                    name: gradient[name] / ((second_moments[name] / correction).sqrt() + EPSILON) for name in weights
                }
            weights = {name: weight - self.config.inner_lr * gradient[name] for name, weight in weights.items()}
        return weights, losses
