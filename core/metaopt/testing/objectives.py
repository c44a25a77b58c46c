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
from metaopt.testing.setting import Skipped

N_TASKS, N_QUERIES = 6, 12


def obeys_the_contract(cls: type[MetaObjective]) -> None:
    """Name, direction, kinds, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, MetaObjective))
    assert not problems, "; ".join(problems)


def scores_each_task(cls: type[MetaObjective]) -> None:
    """`score` gives one number a task, (n_tasks,)."""
    for spec, guess, _, truth in _predictions(cls):
        shape = tuple(_score(cls, spec, guess, truth).shape)
        assert shape == (N_TASKS,), f"score gave shape {shape}; it must be one a task, (n_tasks,)"


def scores_are_finite(cls: type[MetaObjective]) -> None:
    """Finite predictions score finite, however sure of themselves, right or wrong."""
    for spec, guess, perfect, truth in _predictions(cls):
        for predictions in (guess, perfect, -perfect, 1e4 * perfect, -1e4 * perfect):
            assert _score(cls, spec, predictions, truth).isfinite().all(), (
                "finite predictions scored not finite; guard logarithms and divisions"
            )


def scores_a_task_by_itself(cls: type[MetaObjective]) -> None:
    """A task's score does not depend on the other tasks; the core aggregates."""
    for spec, guess, _, truth in _predictions(cls):
        together = _score(cls, spec, guess, truth)
        for i in range(len(together)):
            alone = _score(cls, spec, guess[i : i + 1], truth[i : i + 1])
            assert torch.allclose(alone, together[i : i + 1]), (
                "a task's score depends on the other tasks; score each by itself"
            )


def does_not_care_for_query_order(cls: type[MetaObjective]) -> None:
    """The order of a task's queries changes nothing, unless `order_matters` says so."""
    if cls.order_matters:
        raise Skipped("it declares order_matters")
    order = torch.randperm(N_QUERIES, generator=Generator().manual_seed(0))
    for spec, guess, _, truth in _predictions(cls):
        reordered = truth[:, order] if truth.shape[1] else truth  # returns have no truth beside them
        same = torch.allclose(_score(cls, spec, guess, truth), _score(cls, spec, guess[:, order], reordered))
        assert same, (
            "a score depends on the order of the queries; sum or average over them, or set order_matters = True"
        )


def leaves_its_inputs_untouched(cls: type[MetaObjective]) -> None:
    """`score` does not write to the predictions or the truth; other objectives read them, too."""
    for spec, guess, _, truth in _predictions(cls):
        predictions, query_y = guess.clone(), truth.clone()
        _score(cls, spec, predictions, query_y)
        assert torch.equal(predictions, guess), "score wrote to the predictions; work on copies"
        assert torch.equal(query_y, truth), "score wrote to query_y; work on copies"


def better_predictions_never_score_worse(cls: type[MetaObjective]) -> None:
    """From a guess towards the truth, no step scores worse, and the truth scores better than the guess."""
    if not cls.judges_predictions:
        raise Skipped("it declares that it does not judge predictions")
    for spec, guess, perfect, truth in _predictions(cls):
        path = [
            _sign(cls) * _score(cls, spec, guess + share * (perfect - guess), truth)
            for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        for worse, better in pairwise(path):
            assert (better >= worse - 1e-6).all(), (
                f"predictions nearer the truth scored worse; is it to {cls.direction}?"
            )
        assert path[-1].mean() > path[0].mean(), f"the truth scored no better than a guess; is it to {cls.direction}?"


def nothing_scores_worse_than_the_worst(cls: type[MetaObjective]) -> None:
    """Finite predictions, however wrong, score no worse than `worst`, which those that are not finite count as."""
    if cls.worst is None:
        raise Skipped("it has no worst score")
    for spec, guess, perfect, truth in _predictions(cls):
        for predictions in (guess, perfect, -perfect, -1e4 * perfect):
            scores = _score(cls, spec, predictions, truth)
            assert (_sign(cls) * scores >= _sign(cls) * cls.worst).all(), (
                f"a score of {float((_sign(cls) * scores).min()) * _sign(cls):g} is worse than worst = {cls.worst:g}; "
                f"set worst to the {'lowest' if cls.direction == 'maximize' else 'highest'} score there is, or to None"
            )


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    scores_each_task,
    scores_are_finite,
    scores_a_task_by_itself,
    does_not_care_for_query_order,
    leaves_its_inputs_untouched,
    better_predictions_never_score_worse,
    nothing_scores_worse_than_the_worst,
]


def _predictions(cls: type[MetaObjective]) -> Iterator[tuple[TaskSpec, Tensor, Tensor, Tensor]]:
    """Yield, for each kind it scores, a spec, a guess, perfect predictions, and the truth."""
    draw = Generator().manual_seed(0)
    if "classification" in cls.kinds:
        labels = torch.arange(3).repeat(N_QUERIES // 3).repeat(N_TASKS, 1)
        guess = torch.randn(N_TASKS, N_QUERIES, 3, generator=draw, dtype=torch.float64)
        spec = TaskSpec("classification", (4,), n_way=3, n_shot=1, n_query=N_QUERIES // 3)
        yield spec, guess, 8.0 * one_hot(labels, 3).double(), labels
    if "regression" in cls.kinds:
        targets = torch.randn(N_TASKS, N_QUERIES, 2, generator=draw, dtype=torch.float64)
        guess = torch.randn(N_TASKS, N_QUERIES, 2, generator=draw, dtype=torch.float64)
        spec = TaskSpec("regression", (4,), n_way=1, n_shot=1, n_query=N_QUERIES, y_size=2)
        yield spec, guess, targets, targets
    if "control" in cls.kinds:
        returns = torch.randn(N_TASKS, N_QUERIES, generator=draw, dtype=torch.float64)
        spec = TaskSpec("control", (4,), n_way=1, n_shot=N_QUERIES // 2, n_query=N_QUERIES // 2, n_actions=2)
        yield spec, returns, returns + 1, returns[:, :0]


def _score(cls: type[MetaObjective], spec: TaskSpec, predictions: Tensor, truth: Tensor) -> Tensor:
    objective = cls(cls.Config())
    steps = objective.steps or 0
    curve = (torch.zeros_like(predictions), *[predictions] * steps) if steps else ()
    return objective.score(Outcome(spec, predictions, truth, curve=curve)).double()


def _sign(cls: type[MetaObjective]) -> int:
    return 1 if cls.direction == "maximize" else -1
