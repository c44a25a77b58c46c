"""Almost no inner loop (ANIL; Raghu, Raghu, Bengio & Vinyals, 2020, arXiv:1909.09157)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, descend
from metaopt.task import Kind, TaskSpec


class ANIL(Learner):
    """MAML whose inner loop moves the linear head alone: what adapts is which features count, not the features.

    No step moves the encoder, so the support set is encoded once, whatever the number of steps. The meta-gradient is
    exact, second derivatives and the way through the support features included.
    """

    name = "anil"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    steps = "test_steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        inner_lr: float = tune.real(0.001, 1.0, log=True, default=0.1)
        inner_steps: int = tune.integer(1, 10, default=5)
        test_steps: int = tune.integer(1, 20, default=10)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.head = nn.Linear(encoder.n_features, spec.n_outputs)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the head adapted to the support features: (n_queries, n_outputs)."""
        features = self.encoder(support_x)  # (n_support, n_features)
        head = descend(
            lambda head: self.loss(functional_call(self.head, head, features), support_y),
            dict(self.head.named_parameters()),
            self.config.inner_lr,
            self.config.inner_steps if self.training else self.config.test_steps,
            first_order=not self.training,
        )
        predictions: Tensor = functional_call(self.head, head, self.encoder(query_x))
        return predictions
