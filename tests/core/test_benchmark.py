"""Fixed tasks are scored whole and in order, as an error with its interval."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest  # type: ignore[import-untyped]

from metaopt import plugins
from metaopt.benchmark import evaluate, wilson
from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.study.file import resolve
from metaopt.study.trial import Bench
from metaopt.task import TaskBatch, TaskSampler, TaskSpec

ASKED: list[tuple[Any, ...]] = []


class Fixed(TaskSampler):
    """Twenty tasks whose queries are their support points; in the last task the labels of the two are exchanged."""

    name, kind = "fixed", "classification"
    benchmarks = ("twenty-tasks", "broken-tasks")

    @dataclass(frozen=True)
    class Config:
        place: str = "here"

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec("classification", (2,), n_way, n_shot, n_query)

    @classmethod
    def benchmark(cls, name: str, config: Any, x_shape: tuple[int, ...]) -> tuple[TaskSpec, TaskBatch]:
        ASKED.append((name, config, x_shape))
        x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(20, 2, 2).clone()
        query_x, y = x.clone(), torch.tensor([0, 1]).expand(20, 2).clone()
        query_y = y.clone()
        query_y[-1] = torch.tensor([1, 0])
        if name == "broken-tasks":
            query_x[3, 1] = torch.nan
        return TaskSpec("classification", x_shape, 2, 1, 1), TaskBatch(x, y, query_x, query_y)


LOADED = plugins.load()
REGISTRY = replace(LOADED, task_samplers={**LOADED.task_samplers, "fixed": Fixed})


def model(learner: str = "pixels", **tasks: Any) -> tuple[Learner, Bench]:
    given = {"sampler": "gaussian", "n_way": 5, "n_shot": 1, **tasks}
    if given["sampler"] == "gaussian":
        given["features"] = 2
    study = resolve({"name": "s", "tasks": given, "learners": [learner]}, "s.yaml", REGISTRY)
    bench = Bench(study, REGISTRY, torch.device("cpu"))
    return bench.build(study.space.default(learner, "mlp"), seed=0), bench


def test_the_error_counts_every_query_of_every_task() -> None:
    found = evaluate(*model(), REGISTRY, "twenty-tasks")
    assert (found["wrong"], found["queries"], found["tasks"], found["error"]) == (2, 40, 20, 0.05)
    assert (found["low"], found["high"]) == wilson(2, 40)
    assert (found["of"], found["trained_on"]) == ("fixed", "gaussian")
    assert (found["n_way"], found["n_shot"], found["not_finite"]) == (2, 1, 0)


def test_a_task_whose_predictions_are_not_finite_is_all_wrong() -> None:
    found = evaluate(*model(), REGISTRY, "broken-tasks")
    assert (found["wrong"], found["not_finite"]) == (4, 1)


def test_a_sampler_is_asked_with_the_models_own_settings_or_else_its_defaults() -> None:
    ASKED.clear()
    evaluate(*model(), REGISTRY, "twenty-tasks")
    evaluate(*model(sampler="fixed", place="there"), REGISTRY, "twenty-tasks")
    assert [config.place for _, config, _ in ASKED] == ["here", "there"]
    assert {(name, x_shape) for name, _, x_shape in ASKED} == {("twenty-tasks", (2,))}


def test_an_unknown_name_is_refused_with_the_near_one() -> None:
    with pytest.raises(UserError, match=r"^--on: no fixed evaluation named 'twenty-task'; did you mean 'twenty-tasks'"):
        evaluate(*model(), REGISTRY, "twenty-task")
    with pytest.raises(UserError, match="omniglot-challenge"):
        evaluate(*model(), REGISTRY, "nothing like it")


def test_a_learner_of_a_fixed_number_of_ways_is_refused_where_these_are_others() -> None:
    with pytest.raises(UserError, match=r"maml learns a fixed number of ways, here 5, .* 2-way; train it with tasks\."):
        evaluate(*model("maml"), REGISTRY, "twenty-tasks")
    assert evaluate(*model("maml", n_way=2), REGISTRY, "twenty-tasks")["queries"] == 40


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (1, 3), (155, 400), (54, 400), (1, 100_000)])
def test_the_interval_is_wilsons(count: int, n: int) -> None:
    want = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count, n) == pytest.approx((want.low, want.high), abs=1e-6)
