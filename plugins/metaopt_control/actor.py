"""What learners share that adapt a policy by policy gradients: how they are built, and how they act in a new task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from metaopt import tune
from metaopt.environment import Environments, lived
from metaopt.errors import UserError
from metaopt.executor import trainable
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskSpec
from metaopt_control.policy import Mind, Policy, adapted, collect, of_each


@dataclass(frozen=True)
class ActorConfig:
    """The policy, and what is counted of the future."""

    width: int = tune.integer(16, 256, log=True, default=64)
    depth: int = tune.integer(1, 3, default=2)
    discount: float = tune.real(0.8, 1.0, default=0.99)


class Actor(Learner):
    """A policy that adapts to a task in `test_steps` steps of policy gradient, each on as many of the episodes."""

    kinds = ("control",)
    uses_encoder = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 3e-3, "outer.tasks_per_step": 20}
    config: Any

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        """Build the policy. Raises UserError where there are more steps than episodes to learn from."""
        super().__init__(spec, encoder, config)
        parts(spec.n_shot, max(self.test_steps(), getattr(config, "inner_steps", 0)))
        self.policy = Policy(spec, config.width, config.depth, spec.n_told if self.is_told else 0)

    def test_steps(self) -> int:
        """Return in how many steps it adapts at meta-test."""
        return 0 if self.steps is None else int(getattr(self.config, self.steps))

    def adapt(self, environments: Environments, draw: Generator) -> tuple[Mind, Tensor]:
        """Return the mind after the steps, and what the episodes that each learned from brought."""
        steps, mind = self.test_steps(), self.mind(environments)
        if not steps:
            episodes, _ = lived(self.policy, mind, environments, self.spec.n_shot, draw, in_turn=False)
            return mind, episodes.returns
        returns = []
        for n in parts(self.spec.n_shot, steps):
            lessons = collect(self.policy, mind, environments, n, draw, self.config.discount)
            returns.append(lessons.returns)
            mind = replace(mind, weights=adapted(self.policy, mind.weights, lessons, self.config.inner_lr))
        return mind, torch.cat(returns, 1)

    def act(self, memory: Mind, seen: Tensor, draw: Generator | None) -> tuple[Tensor, Mind]:
        """Draw actions from the policy."""
        return self.policy.act(memory, seen, draw)

    def mind(self, environments: Environments) -> Mind:
        """Return what it acts by before it has seen anything of these tasks."""
        weights = of_each(self.policy.weights(), len(environments))
        return Mind(weights, environments.told if self.is_told else None)

    def take(self, loss: Tensor, update: Callable[[Gradients], None]) -> None:
        """Let the outer optimiser take a step against a loss."""
        parameters = trainable(self)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        update(dict(zip(parameters, gradients, strict=True)))


def parts(n_episodes: int, steps: int) -> list[int]:
    """Return how many episodes each step learns from, of so many in all; the first steps get one more where need be.

    Raises UserError where there are fewer than steps.
    """
    if not steps:
        return []
    if n_episodes < steps:
        raise UserError(
            f"{steps} steps need {steps} episodes to learn from and tasks have {n_episodes}; set tasks.n_shot to "
            f"{steps} or more (of a saved model, the episodes of adapt), or the learner's steps to fewer"
        )
    return [n_episodes // steps + (step < n_episodes % steps) for step in range(steps)]
