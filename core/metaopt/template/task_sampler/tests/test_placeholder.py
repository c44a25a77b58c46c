"""The task sampler keeps metaopt's contract, and gives what it says."""

from collections.abc import Callable

import torch
from metaopt_placeholder import Placeholder

from metaopt.testing import parametrize_with_checks


@parametrize_with_checks([Placeholder])
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


def test_examples_lie_closer_to_their_own_class_than_to_others() -> None:
    sampler = Placeholder(Placeholder.Config(features=20, spread=0.1))
    task = sampler.draw("test", sampler.spec(5, 1, 10), 1, torch.Generator().manual_seed(0))
    closest = torch.cdist(task.query_x[0], task.support_x[0]).argmin(1)
    assert torch.equal(task.support_y[0][closest], task.query_y[0])
