"""The mean squared error is a mean over queries and target numbers, task by task."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error  # type: ignore[import-untyped]
from torch import Generator, Tensor

from metaopt.objective import Outcome
from metaopt.task import TaskSpec
from metaopt_objectives.mse import MSE

SPEC = TaskSpec("regression", (1,), n_way=1, n_shot=1, n_query=4)


def mse(predictions: Tensor, query_y: Tensor) -> Tensor:
    return MSE(MSE.Config()).score(Outcome(SPEC, predictions, query_y))


def test_errors_are_squared_and_averaged_within_each_task() -> None:
    targets = torch.zeros(2, 2, 1)
    predictions = torch.tensor([[[1.0], [-3.0]], [[0.0], [0.5]]])
    assert mse(predictions, targets).tolist() == [5.0, 0.125]


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_error_is_scikit_learns_of_each_task(n_tasks: int, n_queries: int, y_size: int, seed: int) -> None:
    draw = Generator().manual_seed(seed)
    predictions, targets = torch.randn(2, n_tasks, n_queries, y_size, generator=draw)
    expected = [mean_squared_error(y.double(), p.double()) for y, p in zip(targets, predictions, strict=True)]
    scores = mse(predictions, targets)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12)


def test_predicting_the_mean_target_scores_the_variance() -> None:
    targets = torch.randn(3, 50, 1, dtype=torch.float64, generator=Generator().manual_seed(0))
    predictions = targets.mean(1, keepdim=True).expand_as(targets)
    torch.testing.assert_close(mse(predictions, targets), targets[:, :, 0].var(1, correction=0))


def test_an_error_beyond_the_range_of_float32_squares_is_still_finite() -> None:
    assert mse(torch.full((1, 1, 1), 1e30), torch.zeros(1, 1, 1)).isfinite().all()


def test_less_is_better_and_there_is_no_worst() -> None:
    assert MSE.direction == "minimize"
    assert MSE.worst is None
