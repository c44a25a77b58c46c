"""The checks of a task sampler. Each takes the class, builds it with its default settings, and says law and remedy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.plugins import violations
from metaopt.task import POOLS, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.testing.setting import Skipped

N_WAY, N_SHOT, N_QUERY, N_TASKS = 3, 2, 3, 12


def obeys_the_contract(cls: type[TaskSampler]) -> None:
    """Name, kind, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, TaskSampler))
    assert not problems, "; ".join(problems)


def tasks_have_their_shapes(cls: type[TaskSampler]) -> None:
    """Batches have the shapes that the spec says, in every pool."""
    sampler, spec = _sampler(cls)
    target = () if spec.kind == "classification" else (spec.y_size,)
    for pool in POOLS:
        batch = _draw(sampler, pool, spec)
        shapes = [tuple(tensor.shape) for tensor in batch.tensors()]
        support, query = spec.n_way * spec.n_shot, spec.n_way * spec.n_query
        want = [
            (N_TASKS, support, *spec.x_shape),
            (N_TASKS, support, *target),
            (N_TASKS, query, *spec.x_shape),
            (N_TASKS, query, *target),
        ]
        assert shapes == want, f"a batch of the {pool} pool has shapes {shapes}; its spec says {want}"
        assert batch.support_x.is_floating_point(), f"support_x is {batch.support_x.dtype}; give floating-point numbers"


def tasks_are_finite(cls: type[TaskSampler]) -> None:
    """No example or target is NaN or infinite."""
    sampler, spec = _sampler(cls)
    for pool in POOLS:
        for tensor in _draw(sampler, pool, spec).tensors():
            assert tensor.isfinite().all(), f"tasks of the {pool} pool hold numbers that are not finite; clean the data"


def ways_and_shots_are_exact(cls: type[TaskSampler]) -> None:
    """Each label 0 … n_way − 1 has exactly n_shot support and n_query query examples in each task."""
    sampler, spec = _sampler(cls)
    if spec.kind != "classification":
        raise Skipped("regression has no labels")
    for pool in POOLS:
        batch = _draw(sampler, pool, spec)
        for y, each in ((batch.support_y, spec.n_shot), (batch.query_y, spec.n_query)):
            assert y.dtype == torch.int64, f"labels are {y.dtype}; make them int64"
            counts = torch.stack([(y == label).sum(1) for label in range(spec.n_way)], 1)
            assert (counts == each).all(), f"a task of the {pool} pool has not {each} examples of each of its labels"


def tasks_come_in_no_order(cls: type[TaskSampler]) -> None:
    """Labels cannot be read off positions: they are shuffled within each task."""
    sampler, spec = _sampler(cls)
    if spec.kind != "classification":
        raise Skipped("regression has no labels")
    for pool in POOLS:
        batch = _draw(sampler, pool, spec)
        for what, y in (("support", batch.support_y), ("query", batch.query_y)):
            assert (y != y[0]).any(), f"the {what} labels of every task stand in one order; shuffle each task"


def no_query_stands_in_its_support_set(cls: type[TaskSampler]) -> None:
    """A query example is never one of its own task's support examples."""
    sampler, spec = _sampler(cls)
    for pool in POOLS:
        batch = _draw(sampler, pool, spec)
        for support, query in zip(batch.support_x, batch.query_x, strict=True):
            shared = _bytes(support) & _bytes(query)
            assert not shared, f"a task of the {pool} pool asks what its support set shows; draw without replacement"


def pools_are_disjoint(cls: type[TaskSampler]) -> None:
    """No example stands in two pools."""
    sampler, spec = _sampler(cls)
    seen: dict[bytes, Pool] = {}
    for pool in POOLS:
        seed = 0 if spec.kind == "classification" else POOLS.index(pool)  # regression's pools are separate draws
        batch = _draw(sampler, pool, spec, seed)
        for example in set().union(*(_bytes(x) for tasks in (batch.support_x, batch.query_x) for x in tasks)):
            other = seen.setdefault(example, pool)
            assert other == pool, f"an example stands in the pools {other} and {pool}; split by class"


def same_seed_same_tasks(cls: type[TaskSampler]) -> None:
    """The same generator state gives the same tasks, from a fresh sampler too; another state gives others."""
    sampler, spec = _sampler(cls)
    other, _ = _sampler(cls)
    for pool in POOLS:
        first = _draw(sampler, pool, spec)
        for again in (_draw(sampler, pool, spec), _draw(other, pool, spec)):
            assert _equal(first, again), (
                f"one seed gave two batches of the {pool} pool; draw only from the generator that is passed in"
            )
        assert not _equal(first, _draw(sampler, pool, spec, seed=1)), f"two seeds gave one batch of the {pool} pool"


def leaves_the_global_generator_alone(cls: type[TaskSampler]) -> None:
    """Building and drawing take nothing from torch's global generator."""
    state = torch.random.get_rng_state()
    sampler, spec = _sampler(cls)
    for pool in POOLS:
        _draw(sampler, pool, spec)
    assert torch.equal(torch.random.get_rng_state(), state), (
        "it drew from torch's global generator; draw from the generator that is passed in"
    )


def refuses_what_it_cannot_give(cls: type[TaskSampler]) -> None:
    """Too many ways are refused with a UserError before anything is drawn."""
    sampler, spec = _sampler(cls)
    if spec.kind != "classification":
        raise Skipped("regression draws as many as are asked for")
    too_many = sampler.spec(10**6, N_SHOT, N_QUERY)
    try:
        sampler.check("test", too_many)
    except UserError:
        return
    raise AssertionError("check let million-way tasks pass; raise UserError with the numbers that would work")


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    tasks_have_their_shapes,
    tasks_are_finite,
    ways_and_shots_are_exact,
    tasks_come_in_no_order,
    no_query_stands_in_its_support_set,
    pools_are_disjoint,
    same_seed_same_tasks,
    leaves_the_global_generator_alone,
    refuses_what_it_cannot_give,
]


def _sampler(cls: type[TaskSampler]) -> tuple[TaskSampler, TaskSpec]:
    config: Any = cls.Config()
    try:
        sampler = cls(config)
        spec = sampler.spec(N_WAY, N_SHOT, N_QUERY)
        for pool in POOLS:
            sampler.check(pool, spec)
    except UserError as error:
        raise Skipped(f"its default settings give no tasks: {error}") from None
    return sampler, spec


def _draw(sampler: TaskSampler, pool: Pool, spec: TaskSpec, seed: int = 0) -> TaskBatch:
    return sampler.draw(pool, spec, N_TASKS, Generator().manual_seed(seed))


def _bytes(x: Tensor) -> set[bytes]:
    return {example.contiguous().numpy().tobytes() for example in x}


def _equal(a: TaskBatch, b: TaskBatch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
