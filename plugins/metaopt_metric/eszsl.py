"""ESZSL, "An embarrassingly simple approach to zero-shot learning" (Romera-Paredes & Torr, ICML 2015)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from metaopt import tune
from metaopt.executor import Executor, trainable
from metaopt.learner import Gradients, Learner
from metaopt.nn import class_means
from metaopt.task import Examples, Supports, TaskBatch, TaskSpec


class ESZSL(Learner):
    """Score how well an example's features fit a class's attributes by a bilinear form, found in closed form.

    For features X (d, m) and labels Y (m, z) of the train classes, whose attributes are S (a, z), the form is
    V = (X Xᵀ + γ I)⁻¹ X Y Sᵀ (S Sᵀ + λ I)⁻¹, the paper's equation 4. γ is `feature_penalty`, λ `attribute_penalty`.
    Means over the examples stand in the place of sums, so that γ means the same for any number of them. The label of
    another class than the example's own is `other`: the paper's is −1, which with many classes makes V fit little else.
    An outer step adds its examples to the means and hands the outer optimiser the way to the new V, which plain descent
    at rate 1, the default, goes to its end. The paper's kernels are left out.
    """

    name = "eszsl"
    supports: ClassVar[Supports] = "descriptions"
    trains_on = "examples"
    uses_encoder = False
    any_way = True
    defaults: ClassVar[dict[str, Any]] = {"outer.optimizer": "sgd", "outer.sgd_lr": 1.0, "outer.tasks_per_step": 64}
    config: "Config"
    squares: Tensor
    sums: Tensor
    counts: Tensor

    @dataclass(frozen=True)
    class Config:
        feature_penalty: float = tune.real(1e-5, 1e3, log=True, default=0.001)
        attribute_penalty: float = tune.real(1e-3, 1e3, log=True, default=1.0)
        other: float = tune.choice(0.0, -1.0)

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Config) -> None:
        super().__init__(spec, nn.Identity(), config)
        d, a = torch.Size(spec.x_shape).numel(), torch.Size(spec.description_shape).numel()
        self.v = nn.Parameter(0.01 * torch.randn(d, a))
        self.register_buffer("squares", torch.zeros(d, d))  # X Xᵀ so far
        self.register_buffer("sums", torch.zeros(d, spec.n_train_classes))  # of each class's features
        self.register_buffer("counts", torch.zeros(()))

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        """Go to the closed form over all examples so far; return the mean squared error before it."""
        assert isinstance(batch, Examples)
        assert batch.descriptions is not None
        with torch.no_grad():
            x, s = batch.x.flatten(1), batch.descriptions.flatten(1).T  # (n, d), (a, z)
            of_class = batch.y[:, None] == torch.arange(s.shape[1], device=batch.y.device)  # (n, z)
            other = self.config.other
            loss = mse_loss(x @ self.v @ s, of_class.to(x) * (1 - other) + other)
            self.squares += x.T @ x
            self.sums += x.T @ of_class.to(x)
            self.counts += len(x)
            xy = (1 - other) * self.sums + other * self.sums.sum(1, keepdim=True)  # X Y, (d, z)
            left = self.squares / self.counts + self.config.feature_penalty * torch.eye(len(self.squares)).to(x)
            right = s @ s.T + self.config.attribute_penalty * torch.eye(len(s)).to(x)
            solved = torch.linalg.solve(right, torch.linalg.solve(left, xy @ s.T / self.counts).T).T
            update({name: parameter - solved for name, parameter in trainable(self).items()})
        return loss

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return how well each query fits each class's description: (n_queries, n_way)."""
        attributes = class_means(support_x.flatten(1), support_y, self.spec.n_way)  # (n_way, a), by label
        return query_x.flatten(1) @ self.v @ attributes.T
