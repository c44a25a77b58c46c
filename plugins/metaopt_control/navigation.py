"""Navigation in the plane (Finn, Abbeel & Levine, 2017, arXiv:1703.03400, section 5.3)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.environment import Environments
from metaopt.errors import UserError
from metaopt.task import Pool, TaskSampler, TaskSpec


class Plane(Environments):
    """A point in the plane, and a goal that it does not see."""

    def __init__(self, goals: Tensor, horizon: int) -> None:
        self.told, self.horizon = goals, horizon  # (n_tasks, 2)

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        return self.told.new_zeros(len(self), n_episodes, 2)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        state = state + action.clamp(-0.1, 0.1)
        far = (state - self.told[:, None]).square().sum(-1).sqrt()
        return state, -far, far < 0.01

    def to(self, device: torch.device) -> "Plane":
        return Plane(self.told.to(device), self.horizon)


class Navigation(TaskSampler):
    """Go from the middle of a square to a goal that only the rewards tell, by velocities of 0.1 a step at most.

    Goals are uniform in a square; an episode ends within 0.01 of the goal, or at the horizon. The reward is the
    distance to the goal, negated, as in the authors' code and figure; the paper's text says squared. The three pools
    are separate draws of this one distribution.
    """

    name = "navigation"
    kind = "control"

    @dataclass(frozen=True)
    class Config:
        half: float = 0.5
        """Half a side of the square of goals."""
        horizon: int = 100

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where there is no square or no time."""
        if not 0 < config.half < 1e6:
            raise UserError(f"tasks.half is {config.half}; half a side of the square of goals is a number above 0")
        if not 1 <= config.horizon <= 10_000:
            raise UserError(f"tasks.horizon is {config.horizon}; an episode has 1 to 10000 steps")
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, x_shape=(2,), n_way=1, n_shot=n_shot, n_query=n_query, y_size=2, n_told=2)

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Plane:
        goals = self.config.half * (2 * torch.rand(n_tasks, 2, generator=generator) - 1)
        return Plane(goals, self.config.horizon)
