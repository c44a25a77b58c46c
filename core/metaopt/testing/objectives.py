"""The checks of a meta-objective. Each takes the class, and where it fails says the law and the remedy."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from metaopt.objective import MetaObjective, Outcome
from metaopt.plugins import violations
from metaopt.task import TaskSpec

N_TASKS, N_QUERIES = 6, 12


def obeys_the_contract(cls: type[MetaObjective]) -> None:
    """Name, direction, kinds, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, MetaObjective))
    assert not problems, "; ".join(problems)


def scores_each_task(cls: type[MetaObjective]) -> None:
    """`score` gives one finite number a task, (n_tasks,)."""
    for spec, guess, _, truth in _predictions(cls):
        scores = _score(cls, spec, guess, truth)
        assert scores.shape == (N_TASKS,), f"score gave shape {tuple(scores.shape)}; it must be one a task, (n_tasks,)"
        assert scores.isfinite().all(), "finite predictions scored not finite; guard logarithms and divisions"


def scores_a_task_by_itself(cls: type[MetaObjective]) -> None:
    """A task's score does not depend on the other tasks; the core aggregates."""
    for spec, guess, _, truth in _predictions(cls):
        together = _score(cls, spec, guess, truth)
        alone = torch.cat([_score(cls, spec, guess[i : i + 1], truth[i : i + 1]) for i in range(N_TASKS)])
        assert torch.allclose(alone, together), "a task's score depends on the other tasks; score each by itself"


def does_not_care_for_query_order(cls: type[MetaObjective]) -> None:
    """Permuting queries, predictions and truth together, changes no score."""
    order = torch.randperm(N_QUERIES, generator=Generator().manual_seed(2))
    for spec, guess, _, truth in _predictions(cls):
        same = torch.allclose(_score(cls, spec, guess[:, order], truth[:, order]), _score(cls, spec, guess, truth))
        assert same, "the order of queries changes a score; sum or average over them"


def better_predictions_never_score_worse(cls: type[MetaObjective]) -> None:
    """From a guess towards the truth, no step scores worse, and the truth scores better than the guess."""
    sign = 1 if cls.direction == "maximize" else -1
    for spec, guess, perfect, truth in _predictions(cls):
        path = [
            sign * _score(cls, spec, guess + share * (perfect - guess), truth) for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        for worse, better in pairwise(path):
            assert (better >= worse - 1e-6).all(), (
                f"predictions nearer the truth scored worse; is it to {cls.direction}?"
            )
        assert path[-1].mean() > path[0].mean(), f"the truth scored no better than a guess; is it to {cls.direction}?"


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    scores_each_task,
    scores_a_task_by_itself,
    does_not_care_for_query_order,
    better_predictions_never_score_worse,
]


def _predictions(cls: type[MetaObjective]) -> Iterator[tuple[TaskSpec, Tensor, Tensor, Tensor]]:
    """Yield, for each kind it scores, a spec, a guess, perfect predictions, and the truth."""
    draw = Generator().manual_seed(0)
    if "classification" in cls.kinds:
        labels = torch.arange(3).repeat(N_QUERIES // 3).expand(N_TASKS, -1)
        guess = torch.randn(N_TASKS, N_QUERIES, 3, generator=draw, dtype=torch.float64)
        spec = TaskSpec("classification", (4,), n_way=3, n_shot=1, n_query=N_QUERIES // 3)
        yield spec, guess, 8.0 * one_hot(labels, 3).double(), labels
    if "regression" in cls.kinds:
        targets = torch.randn(N_TASKS, N_QUERIES, 2, generator=draw, dtype=torch.float64)
        guess = torch.randn(N_TASKS, N_QUERIES, 2, generator=draw, dtype=torch.float64)
        spec = TaskSpec("regression", (4,), n_way=1, n_shot=1, n_query=N_QUERIES, y_size=2)
        yield spec, guess, targets, targets


def _score(cls: type[MetaObjective], spec: TaskSpec, predictions: Tensor, truth: Tensor) -> Tensor:
    return cls(cls.Config()).score(Outcome(spec, predictions, truth)).double()
