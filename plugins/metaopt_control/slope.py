"""A cart that balances a pole on a slope: the cart-pole of Barto, Sutton & Anderson (1983), its rail tilted."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.environment import Environments
from metaopt.errors import UserError
from metaopt.task import Pool, TaskSampler, TaskSpec

GRAVITY, POLE_MASS, HALF_POLE, FORCE, SECONDS = 9.8, 0.1, 0.5, 10.0, 0.02
FAR, FALLEN = 2.4, 12 * 2 * torch.pi / 360
RANGES: dict[Pool, tuple[tuple[float, float], ...]] = {
    "train": ((0.0, 5.0), (0.8, 1.2), (0.0, 0.5)),
    "validation": ((15.0, 22.5), (1.2, 1.4), (0.5, 1.0)),
    "test": ((22.5, 30.0), (1.4, 1.6), (1.0, 1.5)),
}
"""Of the slope in degrees, the cart's mass in kg, and the rail's friction in N s/m: no two pools have one in common."""
LARGEST = torch.tensor([30.0, 1.6, 1.5])


class Carts(Environments):
    """Carts, each on a rail of its own. What is seen is its place, its speed, the pole's angle, and how fast it turns.

    The angle is that from the vertical, positive towards uphill. Without slope and friction this is the motion of
    Gymnasium's CartPole, by the same steps of 0.02 s.
    """

    def __init__(self, values: Tensor, horizon: int) -> None:
        """`values` (n_tasks, 3) are those of `RANGES`, of which an oracle is told the shares of the largest."""
        self.values, self.horizon = values, horizon
        self.told = values / LARGEST.to(values)
        slope, self.mass, self.friction = values.unsqueeze(1).unbind(-1)  # each (n_tasks, 1)
        self.slope = slope.deg2rad()

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        like = self.told
        return (0.1 * torch.rand(len(self), n_episodes, 4, generator=draw) - 0.05).to(like)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        _, speed, angle, turn = state.unbind(-1)
        force = FORCE * action[..., 0].clamp(-1, 1) - self.friction * speed
        faster, turning = self.accelerations(angle, turn, force)
        change = torch.stack([speed, faster, turn, turning], -1)
        state = state + SECONDS * change
        over = (state[..., 0].abs() > FAR) | (state[..., 2].abs() > FALLEN)
        return state, 1 - state[..., 0].abs() / FAR, over

    def accelerations(self, angle: Tensor, turn: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the cart, in m/s², and of the pole, in 1/s², under a force along the rail.

        They solve Lagrange's equations of a rod of mass m and half-length l on a cart of mass M, α being the slope:
        (M + m) ẍ + m l (cos(θ + α) θ̈ − sin(θ + α) θ̇²) = F − (M + m) g sin α, and
        (4/3) l θ̈ + cos(θ + α) ẍ = g sin θ.
        """
        both = self.mass + POLE_MASS
        sine, cosine = (angle + self.slope).sin(), (angle + self.slope).cos()
        push = (force + POLE_MASS * HALF_POLE * sine * turn.square()) / both - GRAVITY * self.slope.sin()
        lever = HALF_POLE * (4 / 3 - POLE_MASS * cosine.square() / both)
        turning = (GRAVITY * angle.sin() - cosine * push) / lever
        return push - POLE_MASS * HALF_POLE * cosine * turning / both, turning

    def to(self, device: torch.device) -> "Carts":
        return Carts(self.values.to(device), self.horizon)


class Slope(TaskSampler):
    """Keep a pole upright on a cart: learned on flat and gentle ground, done on steep, by heavier carts, uphill.

    An action is the force along the rail, from −1 to 1, of 10 N at most. A step pays 1 in the middle of the rail and
    nothing at its ends, 2.4 m away; an episode is over there, where the pole has fallen by 12 degrees, and at the
    horizon. The pools are separate ranges of the slope, the cart's mass and
    the rail's friction (`RANGES`): validation and test lie beyond what was trained on, so scores are of extrapolation.
    """

    name = "slope"
    kind = "control"
    pools_are = "validation and test lie beyond what is trained on, so scores are of extrapolation"

    @dataclass(frozen=True)
    class Config:
        horizon: int = 200

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where there is no time."""
        if not 1 <= config.horizon <= 10_000:
            raise UserError(f"tasks.horizon is {config.horizon}; an episode has 1 to 10000 steps")
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, x_shape=(4,), n_way=1, n_shot=n_shot, n_query=n_query, y_size=1, n_told=3)

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Carts:
        low, high = torch.tensor(RANGES[pool]).T
        return Carts(low + (high - low) * torch.rand(n_tasks, 3, generator=generator), self.config.horizon)
