"""Accuracy is a share of queries, task by task."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score  # type: ignore[import-untyped]
from torch import Generator, Tensor

from metaopt.objective import Outcome
from metaopt.task import TaskSpec
from metaopt_objectives.accuracy import Accuracy

SPEC = TaskSpec("classification", (2,), n_way=3, n_shot=1, n_query=4)


def accuracy(predictions: Tensor, query_y: Tensor) -> Tensor:
    return Accuracy(Accuracy.Config()).score(Outcome(SPEC, predictions, query_y))


def test_accuracy_is_counted_within_each_task() -> None:
    labels = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 0], [2, 2, 2, 2]])
    answers = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0], [0, 1, 0, 1]])
    predictions = torch.nn.functional.one_hot(answers, 3).float()
    assert accuracy(predictions, labels).tolist() == [1.0, 0.25, 0.0]


@given(n_tasks=st.integers(1, 4), n_queries=st.integers(1, 9), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_accuracy_is_scikit_learns_of_each_task(n_tasks: int, n_queries: int, seed: int) -> None:
    draw = Generator().manual_seed(seed)
    predictions = torch.randn(n_tasks, n_queries, 3, generator=draw)
    labels = torch.randint(3, (n_tasks, n_queries), generator=draw)
    expected = [accuracy_score(y, p.argmax(1)) for y, p in zip(labels, predictions, strict=True)]
    scores = accuracy(predictions, labels)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_only_the_order_of_a_querys_scores_matters() -> None:
    draw = Generator().manual_seed(0)
    predictions, labels = torch.randn(5, 8, 3, generator=draw), torch.randint(3, (5, 8), generator=draw)
    assert torch.equal(accuracy(predictions, labels), accuracy((2 * predictions - 7).exp(), labels))


def test_guessing_scores_one_over_the_number_of_classes() -> None:
    draw = Generator().manual_seed(0)
    n = 30_000
    scores = accuracy(torch.rand(1, n, 3, generator=draw), torch.randint(3, (1, n), generator=draw))
    assert abs(scores.item() - 1 / 3) < 4 * (1 / 3 * 2 / 3 / n) ** 0.5


def test_more_is_better_and_the_worst_is_all_wrong() -> None:
    assert Accuracy.direction == "maximize"
    wrong = accuracy(torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[2]]))
    assert wrong.item() == Accuracy.worst
