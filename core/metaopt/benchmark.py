"""Fixed evaluations: tasks that every model is scored on alike, such as the runs of the Omniglot challenge.

A task sampler brings one by naming it in `benchmarks` and reading it in `benchmark`.
"""

import math
from typing import Any

import torch
from torch import Generator

from metaopt.errors import UserError, unknown
from metaopt.learner import Learner
from metaopt.objective import MetaObjective, Outcome
from metaopt.plugins import Registry
from metaopt.study.trial import Bench
from metaopt.task import Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.train import meta_test


def evaluate(learner: Learner, bench: Bench, registry: Registry, name: str) -> dict[str, Any]:
    """Return a model's error on the fixed tasks of that name, with its 95 % interval.

    Raises UserError where no task sampler brings them, or where they do not suit the model or what it was trained on.
    """
    offered = {benchmark: cls for cls in registry.task_samplers.values() for benchmark in cls.benchmarks}
    if name not in offered:
        raise UserError(f"--on: {unknown('fixed evaluation', name, offered)}")
    cls, tasks = offered[name], bench.study.tasks
    spec, batch = cls.benchmark(name, tasks.config if cls is type(bench.sampler) else cls.Config(), bench.spec.x_shape)
    if not learner.any_way and tasks.train_way != spec.n_way:
        raise UserError(
            f"{learner.name} learns a fixed number of ways, here {tasks.train_way}, and the tasks of {name} are "
            f"{spec.n_way}-way; train it with tasks.n_way {spec.n_way}"
        )
    sampler = _InOrder(batch)
    scores = meta_test(
        learner.with_spec(spec), sampler, "test", _Right(None), len(batch), bench.executor(learner), draw=Generator(),
        device=bench.device,
    )  # fmt: skip
    n = batch.query_y.numel()
    wrong = n - int(scores.per_task.sum())
    low, high = wilson(wrong, n)
    return {
        "on": name,
        "of": cls.name,
        "trained_on": tasks.sampler,
        "error": wrong / n,
        "low": low,
        "high": high,
        "wrong": wrong,
        "queries": n,
        "tasks": len(batch),
        "n_way": spec.n_way,
        "n_shot": spec.n_shot,
        "not_finite": scores.not_finite,
    }


def wilson(count: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a share of which `count` of `n` were seen (Wilson, 1927, JASA 22, 209–212)."""
    share = count / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


class _InOrder(TaskSampler):
    """Hands out the tasks of a batch, one after another."""

    def __init__(self, batch: TaskBatch) -> None:
        self.batch, self.given = batch, 0

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        these = slice(self.given, self.given + n_tasks)
        self.given += n_tasks
        return TaskBatch(*(tensor[these] for tensor in self.batch.tensors()))


class _Right(MetaObjective):
    """The number of queries whose highest score is that of their class."""

    worst = 0.0

    def score(self, outcome: Outcome) -> torch.Tensor:
        return (outcome.predictions.argmax(2) == outcome.query_y).sum(1).double()
