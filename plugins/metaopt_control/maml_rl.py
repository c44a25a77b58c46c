"""MAML for policies (Finn, Abbeel & Levine, 2017, arXiv:1703.03400, section 5.3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metaopt import tune
from metaopt.environment import Environments
from metaopt.learner import Gradients
from metaopt_control.actor import Actor, ActorConfig, parts
from metaopt_control.policy import adapted, collect, surrogate


class MAMLPolicy(Actor):
    """Find a policy from which a few steps of policy gradient, each on fresh episodes, do well in a task.

    The outer step is that of ProMP (Rothfuss et al., 2019, arXiv:1810.06784) where the paper's is TRPO: clipped, and
    taken `epochs` times on the same episodes. As there, the inner gradient is of the likelihood ratio, whose derivative
    holds what the weights change of the episodes to be seen, and not only of what is made of them.
    """

    name = "maml_rl"
    steps = "test_steps"
    config: "Config"

    @dataclass(frozen=True)
    class Config(ActorConfig):
        inner_lr: float = tune.real(0.01, 2.0, log=True, default=0.3)
        inner_steps: int = tune.integer(1, 3, default=1)
        test_steps: int = tune.integer(1, 5, default=1)
        epochs: int = tune.integer(1, 8, default=3)
        clip: float = tune.real(0.05, 0.5, log=True, default=0.2)
        first_order: bool = tune.choice(False, True)

    def practise(self, environments: Environments, update: Callable[[Gradients], None]) -> Tensor:
        """Take outer steps; return what the episodes after adaptation brought on average, negated."""
        config, before, mind = self.config, [], self.mind(environments)
        for n in parts(self.spec.n_shot, config.inner_steps):
            lessons = collect(self.policy, mind, environments, n, None, config.discount)
            before.append(lessons)
            mind = replace(mind, weights=adapted(self.policy, mind.weights, lessons, config.inner_lr))
        after = collect(self.policy, mind, environments, self.spec.n_query, None, config.discount)
        order: Literal[1, 2] = 1 if config.first_order else 2
        with torch.enable_grad():
            for _ in range(config.epochs):
                weights = self.mind(environments).weights
                for lessons in before:
                    weights = adapted(self.policy, weights, lessons, config.inner_lr, order)
                self.take(surrogate(self.policy, weights, after, config.clip).mean(), update)
        return -after.returns.mean()
