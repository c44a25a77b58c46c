"""A point in the plane goes where its actions say, and is paid by how near the goal it is."""

import pytest
import torch
from torch import Generator

from metaopt.errors import UserError
from metaopt_control.navigation import Navigation, Plane


def test_who_goes_straight_to_the_goal_is_paid_for_each_step_and_no_more_after_it() -> None:
    tasks = Plane(torch.tensor([[0.3, 0.0]]), 100)
    state, earned = tasks.start(1, None), []
    for _ in range(3):
        state, reward, ended = tasks.step(state, tasks.told[:, None] - state, None)
        earned.append(float(reward))
    assert earned == pytest.approx([-0.2, -0.1, 0.0], abs=1e-6)
    assert ended.all()


def test_no_step_is_longer_than_a_tenth_along_an_axis() -> None:
    tasks = Plane(torch.zeros(1, 2), 100)
    state, _, _ = tasks.step(tasks.start(1, None), torch.tensor([[[5.0, -5.0]]]), None)
    torch.testing.assert_close(state, torch.tensor([[[0.1, -0.1]]]))


def test_goals_fill_the_square() -> None:
    sampler = Navigation(Navigation.Config(half=2.0))
    goals = sampler.environments("train", sampler.spec(1, 1, 1), 5000, Generator().manual_seed(0)).told
    assert goals.abs().max() <= 2
    torch.testing.assert_close(goals.std(0), torch.full((2,), 4 / 12**0.5), rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"), [({"half": 0}, "tasks.half is 0"), ({"horizon": 0}, "tasks.horizon is 0")]
)
def test_no_square_and_no_time_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Navigation(Navigation.Config(**settings))  # type: ignore[arg-type]
