"""Model-agnostic meta-learning (Finn, Abbeel & Levine, 2017, arXiv:1703.03400)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, descend
from metaopt.task import Kind, TaskSpec


class MAML(Learner):
    """Find weights from which a few steps of gradient descent on the support set do well on the query set.

    As in the paper there may be more steps at meta-test (`test_steps`) than in meta-training (`inner_steps`), and
    `first_order` leaves out the second derivatives. The paper's Omniglot figures normalise with the statistics of the
    query batch; see the encoder's `norm` for that.
    """

    name = "maml"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    steps = "test_steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        inner_lr: float = tune.real(0.001, 1.0, log=True, default=0.1)
        inner_steps: int = tune.integer(1, 10, default=1)
        test_steps: int = tune.integer(1, 20, default=3)
        first_order: bool = tune.choice(False, True)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.net = nn.Sequential(encoder, nn.Linear(encoder.n_features, spec.n_outputs))
        del self.encoder  # it stands in `net`: a parameter has one name

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the predictions of the network adapted to the support set: (n_queries, n_outputs)."""
        weights = descend(
            lambda weights: self.loss(functional_call(self.net, weights, support_x), support_y),
            dict(self.net.named_parameters()),
            self.config.inner_lr,
            self.config.inner_steps if self.training else self.config.test_steps,
            first_order=self.config.first_order or not self.training,
        )
        predictions: Tensor = functional_call(self.net, weights, query_x)
        return predictions
