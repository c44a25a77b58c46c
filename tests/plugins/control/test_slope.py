"""A cart with a pole on a slope moves as Lagrange's equations say, and as CartPole does on the level."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import POOLS
from metaopt_control import slope
from metaopt_control.slope import FAR, GRAVITY, HALF_POLE, LARGEST, POLE_MASS, RANGES, Carts, Slope


def carts(*values: tuple[float, float, float], horizon: int = 200) -> Carts:
    return Carts(torch.tensor(values, dtype=torch.float64), horizon)


def energy(tasks: Carts, state: Tensor) -> Tensor:
    """Of a cart and a rod, by their coordinates in the plane: kinetic, of the rod's turning, and of their heights."""
    place, speed, angle, turn = state.unbind(-1)
    rail = torch.stack([tasks.slope.cos(), tasks.slope.sin()], -1)
    middle = HALF_POLE * turn[..., None] * torch.stack([angle.cos(), -angle.sin()], -1)
    cart, pole = speed[..., None] * rail, speed[..., None] * rail + middle
    turning = POLE_MASS * HALF_POLE**2 / 3 * turn.square() / 2
    heights = (tasks.mass + POLE_MASS) * place * rail[..., 1] + POLE_MASS * HALF_POLE * angle.cos()
    kinetic = (tasks.mass * cart.square().sum(-1) + POLE_MASS * pole.square().sum(-1)) / 2
    return kinetic + turning + GRAVITY * heights


def test_without_a_force_and_friction_energy_stays_the_more_the_shorter_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks, lost = carts((0, 1, 0), (12, 1.3, 0), (30, 0.8, 0)), []
    for steps in (200, 400):  # of half a second in all
        monkeypatch.setattr(slope, "SECONDS", 0.5 / steps)
        state = torch.tensor([0.1, -0.2, 0.1, 0.3], dtype=torch.float64).expand(3, 1, 4)
        before = energy(tasks, state)
        for _ in range(steps):
            state, _, _ = tasks.step(state, torch.zeros(3, 1, 1), None)
        lost.append((energy(tasks, state) - before).abs())
    assert (lost[0] < 0.05).all()
    torch.testing.assert_close(lost[0] / lost[1], torch.full((3, 1), 2.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_on_the_level_it_moves_as_cartpole_of_gymnasium_does() -> None:
    theirs, draw = gymnasium.make("CartPole-v1").unwrapped, np.random.default_rng(0)
    seen, _ = theirs.reset(seed=0)
    tasks, state = carts((0, 1, 0)), torch.tensor(seen, dtype=torch.float64)[None, None]
    theirs.state = tuple(state[0, 0].tolist())  # type: ignore[attr-defined]  # of CartPole
    for _ in range(40):
        action = int(draw.integers(2))
        _, _, over, _, _ = theirs.step(action)
        state, _, ended = tasks.step(state, torch.tensor([[[2.0 * action - 1]]]), None)
        np.testing.assert_allclose(state[0, 0], theirs.state, rtol=1e-12)  # type: ignore[attr-defined]  # of CartPole
        assert bool(ended) == over
        if over:
            break
    assert over


def test_the_force_that_carries_the_weight_holds_an_upright_pole_on_any_slope() -> None:
    tasks = carts((0, 1, 0), (15, 1.2, 1), (30, 1.6, 1.5))
    state = torch.zeros(3, 1, 4, dtype=torch.float64)
    weight = (tasks.mass + POLE_MASS) * GRAVITY * tasks.slope.sin() / slope.FORCE  # (n_tasks, 1)
    after, reward, ended = tasks.step(state, weight[..., None], None)
    torch.testing.assert_close(after, state, rtol=0, atol=1e-12)
    assert (reward == 1).all()
    assert not ended.any()


def test_a_step_pays_by_how_near_the_middle_is_and_its_ends_are_ends() -> None:
    tasks = carts((0, 1, 0))
    state = torch.tensor([[[FAR / 4, 0, 0, 0], [2.3999, 50, 0, 0], [0, 0, 0.2, 1.0]]], dtype=torch.float64)
    _, reward, ended = tasks.step(state, torch.zeros(1, 3, 1), None)
    torch.testing.assert_close(reward[0, 0], torch.tensor(0.75, dtype=torch.float64))
    assert ended.tolist() == [[False, True, True]]


def test_a_force_beyond_ten_newtons_is_ten() -> None:
    tasks, state = carts((5, 1, 0.2)), torch.zeros(1, 1, 4, dtype=torch.float64)
    full, more = (tasks.step(state, torch.full((1, 1, 1), force), None)[0] for force in (1.0, 7.0))
    assert torch.equal(full, more)


def test_no_two_pools_have_a_value_in_common_and_test_lies_beyond() -> None:
    sampler = Slope(Slope.Config())
    spec = sampler.spec(1, 2, 2)
    drawn = {pool: sampler.environments(pool, spec, 500, Generator().manual_seed(0)).values for pool in POOLS}
    for pool, values in drawn.items():
        low, high = torch.tensor(RANGES[pool]).T
        assert (values >= low).all()
        assert (values <= high).all()
    for before, after in pairwise(POOLS):
        assert (drawn[before].amax(0) <= drawn[after].amin(0)).all()


def test_an_oracle_is_told_shares_of_the_largest() -> None:
    tasks = Carts(LARGEST[None], 10)
    assert tasks.told.tolist() == [[1.0, 1.0, 1.0]]
    assert tasks.to(torch.device("cpu")).told.tolist() == [[1.0, 1.0, 1.0]]


def test_no_time_is_refused() -> None:
    with pytest.raises(UserError, match=r"tasks\.horizon is 0; an episode has 1 to 10000 steps"):
        Slope(Slope.Config(horizon=0))
