"""The worst tenth of tasks: its mean, and the interval of that."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metaopt.train import Scores
from metaopt_objectives.worst_tasks import WorstTasks

OBJECTIVE = WorstTasks(WorstTasks.Config())


def scores(per_task: Tensor) -> Scores:
    return Scores(per_task, 0, OBJECTIVE.contributions(per_task))


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_the_score_is_the_mean_of_the_lowest_tenth(tens: int, seed: int) -> None:
    per_task = torch.rand(10 * tens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert abs(scores(per_task).mean - float(per_task.sort().values[:tens].mean())) < 1e-12


def test_of_fewer_than_ten_tasks_the_worst_counts() -> None:
    assert abs(scores(torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)).mean - 0.2) < 1e-12


def test_the_interval_covers_the_true_tail_mean_as_often_as_it_says() -> None:
    # Of scores uniform on [0, 1] the mean of the worst tenth is 0.05.
    draw, n = torch.Generator().manual_seed(0), 2000
    found = [scores(torch.rand(400, generator=draw, dtype=torch.float64)) for _ in range(n)]
    covered = sum(abs(one.mean - 0.05) <= one.ci95 for one in found) / n
    assert 0.92 < covered < 0.97
