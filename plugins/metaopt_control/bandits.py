"""Bandits (as in Duan et al., 2016, arXiv:1611.02779, section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.environment import Environments
from metaopt.errors import UserError
from metaopt.task import Pool, TaskSampler, TaskSpec


class Arms(Environments):
    """Arms that pay 1 or 0, each with a chance of its own. A pull is an episode."""

    horizon = 1

    def __init__(self, chances: Tensor) -> None:
        self.told = chances  # (n_tasks, n_arms)

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        return self.told.new_zeros(len(self), n_episodes, 1)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        luck = torch.rand(action.shape, generator=draw, dtype=self.told.dtype).to(self.told.device)
        paid = (luck < self.told.gather(1, action)).to(self.told.dtype)
        return state, paid, torch.ones_like(action, dtype=torch.bool)

    def to(self, device: torch.device) -> "Arms":
        return Arms(self.told.to(device))


class Bandits(TaskSampler):
    """Find out by pulling which of k arms pays most often, and earn meanwhile: each pays 1 or 0, by a fixed chance.

    Chances are uniform in [0, 1]. A pull is an episode of one step, so a task has n_shot + n_query pulls; score all of
    them by the objective `return_curve`. The three pools are separate draws of this one distribution.
    """

    name = "bandits"
    kind = "control"

    @dataclass(frozen=True)
    class Config:
        arms: int = 5

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where there is nothing to choose."""
        if not 2 <= config.arms <= 1000:
            raise UserError(f"tasks.arms is {config.arms}; a bandit has 2 to 1000 arms")
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        arms = self.config.arms
        return TaskSpec(self.kind, x_shape=(1,), n_way=1, n_shot=n_shot, n_query=n_query, n_actions=arms, n_told=arms)

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Arms:
        return Arms(torch.rand(n_tasks, self.config.arms, generator=generator))
