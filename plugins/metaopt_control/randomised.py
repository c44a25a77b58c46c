"""One policy for all tasks (domain randomisation: Tobin et al., 2017, arXiv:1703.06907), fine-tuned or as it is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt import tune
from metaopt.environment import Environments
from metaopt.learner import Gradients
from metaopt_control.actor import Actor, ActorConfig
from metaopt_control.policy import collect, surrogate


@dataclass(frozen=True)
class PracticeConfig(ActorConfig):
    """How a policy is trained without adaptation, by proximal policy optimisation."""

    epochs: int = tune.integer(1, 8, default=3)
    clip: float = tune.real(0.05, 0.5, log=True, default=0.2)


class Practised(Actor):
    """A policy that is trained on all tasks as if they were one."""

    def practise(self, environments: Environments, update: Callable[[Gradients], None]) -> Tensor:
        """Take outer steps; return what the episodes brought on average, negated."""
        config, n = self.config, self.spec.n_shot + self.spec.n_query
        lessons = collect(self.policy, self.mind(environments), environments, n, None, config.discount)
        with torch.enable_grad():
            for _ in range(config.epochs):
                weights = self.mind(environments).weights
                self.take(surrogate(self.policy, weights, lessons, config.clip).mean(), update)
        return -lessons.returns.mean()


class Randomised(Practised):
    """Do well in all tasks on average, and adapt to a new one by `test_steps` steps of policy gradient, or not at all.

    It is the baseline of the MAML paper's figures ("pretrained"), and without steps that of robots trained in many
    simulations. The tasks' own advantages are standardised task by task.
    """

    name = "randomised"
    steps = "test_steps"
    config: "Config"

    @dataclass(frozen=True)
    class Config(PracticeConfig):
        inner_lr: float = tune.real(0.01, 2.0, log=True, default=0.3)
        test_steps: int = tune.integer(0, 5, default=0)
