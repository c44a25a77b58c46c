"""Arms pay as often as their chances say."""

import pytest
import torch
from torch import Generator

from metaopt.errors import UserError
from metaopt_control.bandits import Arms, Bandits


def test_an_arm_pays_as_often_as_its_chance() -> None:
    tasks = Arms(torch.tensor([[0.1, 0.9], [0.5, 0.0]]))
    draw = Generator().manual_seed(0)
    state = tasks.start(20_000, draw)
    for arm in (0, 1):
        _, paid, ended = tasks.step(state, torch.full((2, 20_000), arm), draw)
        torch.testing.assert_close(paid.mean(1), tasks.told[:, arm], rtol=0, atol=0.01)
        assert ended.all()


def test_one_arm_is_no_choice() -> None:
    with pytest.raises(UserError, match=r"tasks\.arms is 1; a bandit has 2 to 1000 arms"):
        Bandits(Bandits.Config(arms=1))
