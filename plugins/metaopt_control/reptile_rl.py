"""Reptile for policies (Nichol, Achiam & Schulman, 2018, arXiv:1803.02999, with policy gradients inside)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from metaopt import tune
from metaopt.environment import Environments
from metaopt.learner import Gradients
from metaopt_control.actor import Actor, ActorConfig, parts
from metaopt_control.policy import adapted, collect


class ReptilePolicy(Actor):
    """Take a few steps of policy gradient in a task, then move the first weights towards where that led."""

    name = "reptile_rl"
    steps = "test_steps"
    config: "Config"

    @dataclass(frozen=True)
    class Config(ActorConfig):
        inner_lr: float = tune.real(0.01, 2.0, log=True, default=0.3)
        inner_steps: int = tune.integer(1, 5, default=2)
        test_steps: int = tune.integer(1, 5, default=1)

    def practise(self, environments: Environments, update: Callable[[Gradients], None]) -> Tensor:
        """Move the weights by the mean over tasks of where learning leads; return the mean return, negated."""
        first, mind, returns = self.policy.weights(), self.mind(environments), []
        for n in parts(self.spec.n_shot + self.spec.n_query, self.config.inner_steps):
            lessons = collect(self.policy, mind, environments, n, None, self.config.discount)
            returns.append(lessons.returns.mean())
            mind = replace(mind, weights=adapted(self.policy, mind.weights, lessons, self.config.inner_lr))
        update({f"policy.{name}": (first[name] - mind.weights[name]).mean(0).detach() for name in first})
        return -returns[-1]
