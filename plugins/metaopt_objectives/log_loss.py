"""Log loss: what a learner pays, in nats, for the probability it gave to the truth."""

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class LogLoss(MetaObjective):
    """The mean over a task's queries of −log p(label), p being the softmax of the scores, in nats.

    Unlike accuracy it tells a sure mistake from an unsure one. It has no worst value, so a trial with predictions that
    are not finite fails.
    """

    name = "log_loss"
    direction = "minimize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)

    def score(self, outcome: Outcome) -> Tensor:
        """Return the log loss of each task, (n_tasks,)."""
        scores = outcome.predictions.double().transpose(1, 2)  # (n_tasks, n_way, n_queries)
        return cross_entropy(scores, outcome.query_y, reduction="none").mean(1)
