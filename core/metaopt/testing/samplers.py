"""The checks of a task sampler. Each takes a source, and where it fails says the law and the remedy."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.plugins import violations
from metaopt.task import POOLS, Examples, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.testing.setting import Skipped, random_states

N_WAY, N_SHOT, N_QUERY, N_TASKS, N_EXAMPLES = 3, 2, 3, 12, 200


class Source:
    """A task sampler with its settings, built once for all of its checks, and a batch of each of its pools.

    Reading data may take a while. Without settings it has the default ones, with which it may have no data.
    """

    def __init__(self, cls: type[TaskSampler], settings: Mapping[str, Any]) -> None:
        self.cls, self.settings = cls, settings
        self.drew_from: set[str] = set()
        """The global generators that building or drawing took from."""

    def fresh(self) -> TaskSampler:
        """Return another sampler like this one."""
        config: Any = self.cls.Config(**self.settings)
        with self._watching():
            return self.cls(config)

    @property
    def n_shot(self) -> int:
        """Support examples a class, or the one description of it."""
        return N_SHOT if self.cls.supports == "examples" else 1

    @cached_property
    def sampler(self) -> TaskSampler:
        """The sampler. Raises UserError where the settings give none, and Skipped where those are the defaults."""
        try:
            sampler = self.cls(self.cls.Config(**self.settings))  # unwatched, as it may import what draws
            spec = sampler.spec(N_WAY, self.n_shot, N_QUERY)
            for pool in POOLS:
                sampler.check(pool, spec)
        except UserError as error:
            if self.settings:
                raise
            raise Skipped(f"its default settings give no tasks ({error}); check it with settings") from None
        return sampler

    @cached_property
    def spec(self) -> TaskSpec:
        """The sizes of the tasks that are checked."""
        return self.sampler.spec(N_WAY, self.n_shot, N_QUERY)

    @cached_property
    def batches(self) -> dict[Pool, TaskBatch]:
        """The tasks that most checks look at."""
        return {pool: self.draw(pool) for pool in POOLS}

    def draw(self, pool: Pool, seed: int = 0, sampler: TaskSampler | None = None) -> TaskBatch:
        sampler, spec = sampler or self.sampler, self.spec
        with self._watching():
            return sampler.draw(pool, spec, N_TASKS, Generator().manual_seed(seed))

    def examples(self, seed: int = 0) -> Examples:
        """Return labelled examples. Raises Skipped where it has none to give."""
        try:
            return self.sampler.examples(N_EXAMPLES, Generator().manual_seed(seed))
        except UserError:
            raise Skipped("it has no labelled examples") from None

    def needs_classes(self) -> None:
        """Raise Skipped where tasks have no classes."""
        if self.cls.kind != "classification":
            raise Skipped("regression has no classes")

    @contextmanager
    def _watching(self) -> Iterator[None]:
        before = random_states()
        yield
        self.drew_from |= {name for name, state in random_states().items() if state != before[name]}


def obeys_the_contract(source: Source) -> None:
    """Name, kind, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(source.cls, TaskSampler))
    assert not problems, "; ".join(problems)


def its_spec_is_what_was_asked_for(source: Source) -> None:
    """`spec` returns the ways, shots and queries that it is given, and the sampler's own kind."""
    spec = source.spec
    ways = N_WAY if source.cls.kind == "classification" else 1
    got, want = (spec.kind, spec.n_way, spec.n_shot, spec.n_query), (source.cls.kind, ways, source.n_shot, N_QUERY)
    assert got == want, f"spec{want[1:]} says {got}; it must say (kind, n_way, n_shot, n_query) = {want}"


def tasks_have_their_shapes(source: Source) -> None:
    """Batches have the shapes that the spec says, in every pool."""
    spec = source.spec
    target = () if source.cls.kind == "classification" else (spec.y_size,)
    support, query = spec.n_way * spec.n_shot, spec.n_way * spec.n_query
    want = [
        (N_TASKS, support, *spec.support_shape),
        (N_TASKS, support, *target),
        (N_TASKS, query, *spec.x_shape),
        (N_TASKS, query, *target),
    ]
    for pool, batch in source.batches.items():
        shapes = [tuple(tensor.shape) for tensor in batch.tensors()]
        assert shapes == want, f"a batch of the {pool} pool has shapes {shapes}; its spec says {want}"
        assert batch.support_x.is_floating_point(), f"support_x is {batch.support_x.dtype}; give floating-point numbers"


def tasks_are_finite(source: Source) -> None:
    """No example or target is NaN or infinite."""
    for pool, batch in source.batches.items():
        for tensor in batch.tensors():
            assert tensor.isfinite().all(), f"tasks of the {pool} pool hold numbers that are not finite; clean the data"


def ways_and_shots_are_exact(source: Source) -> None:
    """Each label 0 … n_way − 1 has exactly n_shot support and n_query query examples in each task."""
    source.needs_classes()
    for pool, batch in source.batches.items():
        for y, each in ((batch.support_y, source.n_shot), (batch.query_y, N_QUERY)):
            assert y.dtype == torch.int64, f"labels are {y.dtype}; make them int64"
            counts = torch.stack([(y == label).sum(1) for label in range(N_WAY)], 1)
            assert (counts == each).all(), f"a task of the {pool} pool has not {each} examples of each of its labels"


def tasks_come_in_no_order(source: Source) -> None:
    """Labels cannot be read off positions: they are shuffled within each task."""
    source.needs_classes()
    for batch in source.batches.values():
        for what, y in (("support", batch.support_y), ("query", batch.query_y)):
            assert (y != y[0]).any(), f"the {what} labels of every task stand in one order; shuffle each task"


def no_query_stands_in_its_support_set(source: Source) -> None:
    """A query example is never one of its own task's support examples."""
    for pool, batch in source.batches.items():
        for support, query in zip(batch.support_x, batch.query_x, strict=True):
            shared = _bytes(support) & _bytes(query)
            assert not shared, f"a task of the {pool} pool asks what its support set shows; draw without replacement"


def pools_are_disjoint(source: Source) -> None:
    """No example stands in two pools."""
    seen: dict[bytes, Pool] = {}
    for pool in POOLS:
        # The pools of regression may be separate draws of one distribution.
        batch = source.draw(pool, seed=POOLS.index(pool) if source.cls.kind == "regression" else 0)
        for example in set().union(*(_bytes(x) for tasks in (batch.support_x, batch.query_x) for x in tasks)):
            other = seen.setdefault(example, pool)
            assert other == pool, f"an example stands in the pools {other} and {pool}; split by class"


def same_seed_same_tasks(source: Source) -> None:
    """The same generator state gives the same tasks, from another sampler and in another order of pools too."""
    source.sampler  # noqa: B018 - skips where there is none
    other = source.fresh()
    for pool in reversed(POOLS):
        for same in (source.draw(pool, sampler=other), source.draw(pool)):
            assert _equal(same, source.batches[pool]), (
                f"one seed gave two batches of the {pool} pool; draw only from the generator that is passed in"
            )


def other_seeds_other_tasks(source: Source) -> None:
    """Another generator state gives other tasks, and the tasks of a batch differ."""
    for pool, batch in source.batches.items():
        assert not _equal(batch, source.draw(pool, seed=1)), (
            f"two seeds gave one batch of the {pool} pool; draw from the generator that is passed in"
        )
        first, *others = (_bytes(x) for x in batch.query_x)
        assert any(other != first for other in others), (
            f"a batch of the {pool} pool repeats one task; draw each by itself"
        )


def leaves_the_global_generators_alone(source: Source) -> None:
    """Building and drawing take nothing from the global generators of torch, numpy and Python."""
    assert source.batches
    source.fresh()
    assert not source.drew_from, (
        f"it drew from the global generator of {' and '.join(sorted(source.drew_from))}; draw from the one that is "
        "passed in"
    )


def labelled_examples_are_of_train_classes(source: Source) -> None:
    """`examples` gives as many as asked for, of the classes 0 … n_train_classes − 1, and none of another pool."""
    source.needs_classes()
    examples, spec = source.examples(), source.spec
    shapes, want = (tuple(examples.x.shape), tuple(examples.y.shape)), ((N_EXAMPLES, *spec.x_shape), (N_EXAMPLES,))
    assert shapes == want, f"examples({N_EXAMPLES}) gave shapes {shapes}; it must give {want}"
    assert examples.y.dtype == torch.int64, f"the labels of examples are {examples.y.dtype}; make them int64"
    least, most = int(examples.y.min()), int(examples.y.max())
    assert 0 <= least <= most < spec.n_train_classes, (
        f"examples have labels {least} to {most}; with n_train_classes = {spec.n_train_classes} they must be 0 to "
        f"{spec.n_train_classes - 1}"
    )
    train = _bytes(examples.x)
    for pool in POOLS[1:]:
        other = set().union(*(_bytes(x) for x in source.batches[pool].query_x))
        assert not train & other, f"an example of the {pool} pool is given to train on; take those of train classes"


def refuses_what_it_cannot_give(source: Source) -> None:
    """Too many ways are refused with a UserError before anything is drawn."""
    source.needs_classes()
    too_many = source.sampler.spec(10**6, source.n_shot, N_QUERY)
    try:
        source.sampler.check("test", too_many)
    except UserError:
        return
    raise AssertionError("check let million-way tasks pass; raise UserError with the numbers that would work")


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    its_spec_is_what_was_asked_for,
    tasks_have_their_shapes,
    tasks_are_finite,
    ways_and_shots_are_exact,
    tasks_come_in_no_order,
    no_query_stands_in_its_support_set,
    pools_are_disjoint,
    same_seed_same_tasks,
    other_seeds_other_tasks,
    leaves_the_global_generators_alone,
    labelled_examples_are_of_train_classes,
    refuses_what_it_cannot_give,
]


def _bytes(x: Tensor) -> set[bytes]:
    return {example.contiguous().numpy().tobytes() for example in x}


def _equal(a: TaskBatch, b: TaskBatch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
