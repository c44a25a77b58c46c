"""The meta-objective keeps metaopt's contract, and measures what it says."""

from collections.abc import Callable

import torch
from metaopt_placeholder import Placeholder

from metaopt.objective import Outcome
from metaopt.task import TaskSpec
from metaopt.testing import parametrize_with_checks


@parametrize_with_checks([Placeholder])
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


def test_it_is_the_mean_probability_of_the_truth() -> None:
    spec = TaskSpec("classification", (1,), n_way=2, n_shot=1, n_query=1)
    predictions = torch.tensor([[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.5, 0.5]]]).log()  # (2, 2, 2)
    score = Placeholder(Placeholder.Config()).score(Outcome(spec, predictions, torch.tensor([[0, 1], [0, 0]])))
    torch.testing.assert_close(score, torch.tensor([0.8, 0.5]))
