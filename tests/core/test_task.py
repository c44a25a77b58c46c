"""Tasks are drawn uniformly, without replacement, in a random order, and never leak a query into a support set."""

import re
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare  # type: ignore[import-untyped]
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import ClassPool, Examples, Pool, TaskBatch, TaskSampler, TaskSpec, draw_tasks, presentations, sized

SIZES = (7, 4, 5, 9, 6)  # examples a class


def pool_of(sizes: tuple[int, ...]) -> ClassPool:
    """A pool whose example in row r is the vector (r, class of r), so that a draw shows what it drew.

    The rows of a class are scattered: row numbers say nothing about classes.
    """
    order = torch.randperm(sum(sizes), generator=Generator().manual_seed(99))
    members = list(torch.split(order, list(sizes)))
    examples = torch.zeros(sum(sizes), 2)
    for label, rows in enumerate(members):
        examples[rows] = torch.stack([rows.float(), torch.full((len(rows),), float(label))], 1)
    return ClassPool(examples, members)


def spec_of(n_way: int, n_shot: int, n_query: int) -> TaskSpec:
    return TaskSpec("classification", (2,), n_way, n_shot, n_query)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def row_of(x: Tensor) -> Tensor:
    return x[..., 0].long()


def class_of(x: Tensor) -> Tensor:
    return x[..., 1].long()


def offered(setting: str, refusal: pytest.ExceptionInfo[UserError]) -> int:
    """Return the number that a refusal offers for a setting."""
    match = re.search(rf"set tasks\.{setting} to (\d+) or less", str(refusal.value))
    assert match, refusal.value
    return int(match[1])


def by_label(x: Tensor, y: Tensor, n_way: int) -> Tensor:
    """Return x (n_tasks, n, …) as (n_tasks, n_way, n / n_way, …), each label's examples together, else in order."""
    order = y.argsort(dim=1, stable=True)
    sorted_x = torch.stack([task[rows] for task, rows in zip(x, order, strict=True)])
    return sorted_x.reshape(len(x), n_way, -1, *x.shape[2:])


def assert_uniform(cells: Tensor, n_cells: int) -> None:
    """Pearson's chi-square test that the cell numbers are drawn uniformly from 0 … n_cells − 1."""
    counts = torch.bincount(cells.flatten(), minlength=n_cells)
    assert len(counts) == n_cells
    assert counts.sum() >= 50 * n_cells, "too few draws for the test to have power"
    assert chisquare(counts.numpy()).pvalue > 1e-3


def ordered_pair(first: Tensor, second: Tensor, n: int) -> Tensor:
    """Number the ordered pairs of different numbers below n: 0 … n (n − 1) − 1."""
    assert (first != second).all()
    return first * (n - 1) + second - (second > first).long()


def test_the_uniformity_test_notices_a_small_bias() -> None:
    biased = torch.rand(20_000, generator=seeded()).mul(5.3).long().clamp(max=4)  # the last cell has 24.5 %, not 20 %
    with pytest.raises(AssertionError):
        assert_uniform(biased, 5)


def test_classes_are_drawn_uniformly_without_replacement() -> None:
    batch = pool_of(SIZES).draw(spec_of(2, 1, 1), 4000, seeded())
    classes = class_of(by_label(batch.support_x, batch.support_y, 2))[:, :, 0]  # (n_tasks, n_way)
    assert_uniform(ordered_pair(classes[:, 0], classes[:, 1], 5), 20)


def test_classes_of_neighbouring_tasks_are_independent() -> None:
    batch = pool_of(SIZES).draw(spec_of(2, 1, 1), 4000, seeded(1))
    first = class_of(by_label(batch.support_x, batch.support_y, 2))[:, 0, 0]  # (n_tasks,)
    assert_uniform(first[0::2] * 5 + first[1::2], 25)


def test_examples_of_a_class_are_drawn_uniformly_without_replacement_whatever_the_size_of_the_class() -> None:
    pool = pool_of(SIZES)
    batch = pool.draw(spec_of(3, 1, 1), 9000, seeded(2))
    support = by_label(batch.support_x, batch.support_y, 3)[:, :, 0].flatten(0, 1)  # (n_tasks * n_way, 2)
    query = by_label(batch.query_x, batch.query_y, 3)[:, :, 0].flatten(0, 1)
    for label, size in enumerate(SIZES):
        drawn = class_of(support) == label
        position = {int(row): place for place, row in enumerate(pool.table[label, :size])}
        first, second = (
            torch.tensor([position[int(row)] for row in row_of(x[drawn])]) for x in (support, query)
        )  # (n_drawn,) places within the class
        assert_uniform(ordered_pair(first, second, size), size * (size - 1))


def test_order_within_a_task_is_uniform_and_that_of_the_queries_independent_of_it() -> None:
    batch = pool_of(SIZES).draw(spec_of(3, 1, 1), 4000, seeded(3))

    def permutation(y: Tensor) -> Tensor:  # (n_tasks,) 0 … 5
        return ordered_pair(y[:, 0], y[:, 1], 3)

    assert_uniform(permutation(batch.support_y) * 6 + permutation(batch.query_y), 36)


def test_labels_say_nothing_about_the_class() -> None:
    batch = pool_of(SIZES).draw(spec_of(2, 1, 1), 4000, seeded(4))
    assert_uniform(class_of(batch.query_x)[:, 0] * 2 + batch.query_y[:, 0], 10)


@pytest.mark.parametrize(("n_way", "n_shot", "n_query"), [(5, 1, 3), (2, 3, 1), (5, 2, 2), (1, 1, 1)])
def test_a_task_has_its_sizes_and_labels_that_match_its_examples(n_way: int, n_shot: int, n_query: int) -> None:
    batch = pool_of(SIZES).draw(spec_of(n_way, n_shot, n_query), 64, seeded(5))
    assert batch.support_x.shape == (64, n_way * n_shot, 2)
    assert batch.query_x.shape == (64, n_way * n_query, 2)
    assert batch.support_y.shape == (64, n_way * n_shot)
    assert batch.query_y.shape == (64, n_way * n_query)
    assert batch.support_y.dtype == batch.query_y.dtype == torch.int64
    support = class_of(by_label(batch.support_x, batch.support_y, n_way))  # (n_tasks, n_way, n_shot)
    query = class_of(by_label(batch.query_x, batch.query_y, n_way))  # (n_tasks, n_way, n_query)
    assert (support == support[:, :, :1]).all()
    assert (query == support[:, :, :1]).all()
    assert all(len(set(classes.tolist())) == n_way for classes in support[:, :, 0])
    for labels, n in ((batch.support_y, n_shot), (batch.query_y, n_query)):
        assert (torch.nn.functional.one_hot(labels, n_way).sum(1) == n).all()


@pytest.mark.parametrize(("n_shot", "n_query"), [(1, 3), (3, 1), (2, 2)])
def test_no_example_stands_twice_in_a_task_even_where_a_class_is_used_up(n_shot: int, n_query: int) -> None:
    assert n_shot + n_query == min(SIZES)
    batch = pool_of(SIZES).draw(spec_of(5, n_shot, n_query), 500, seeded(6))
    rows = row_of(torch.cat([batch.support_x, batch.query_x], 1))  # (n_tasks, 5 * (n_shot + n_query))
    assert all(len(set(task.tolist())) == 5 * min(SIZES) for task in rows)


def test_padding_of_small_classes_is_never_drawn() -> None:
    batch = pool_of((2, 50)).draw(spec_of(2, 1, 1), 500, seeded(7))
    rows, classes = row_of(batch.query_x), class_of(batch.query_x)
    small = set(pool_of((2, 50)).table[0, :2].tolist())
    assert set(rows[classes == 0].tolist()) == small
    assert len(set(rows[classes == 1].tolist())) > 40


def test_same_generator_state_gives_the_same_tasks_and_the_next_state_others() -> None:
    pool, spec, generator = pool_of(SIZES), spec_of(3, 2, 2), seeded(8)
    state = generator.get_state()
    first, second = pool.draw(spec, 8, generator), pool.draw(spec, 8, generator)
    again = pool.draw(spec, 8, generator.set_state(state))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert not torch.equal(first.support_x, second.support_x)


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    pool_of(SIZES).draw(spec_of(3, 1, 1), 8, seeded())
    pool_of(SIZES).draw_examples(8, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_examples_come_from_all_classes_alike_and_uniformly_within_each() -> None:
    pool = pool_of(SIZES)
    examples = pool.draw_examples(20_000, seeded(9))
    assert examples.y.dtype == torch.int64
    assert torch.equal(class_of(examples.x), examples.y)
    assert_uniform(examples.y, len(SIZES))
    for label, size in enumerate(SIZES):
        rows = row_of(examples.x)[examples.y == label]
        places = (rows[:, None] == pool.table[label, :size]).long().argmax(1)
        assert torch.equal(pool.table[label][places], rows)
        assert_uniform(places, size)


def test_bytes_become_floats_from_zero_to_one_and_keep_their_values() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None]  # (256, 1)
    pool = ClassPool(levels, [torch.arange(0, 256, 2), torch.arange(1, 256, 2)])
    batch = pool.draw(spec_of(2, 64, 64), 1, seeded())
    x = torch.cat([batch.support_x, batch.query_x], 1).flatten()
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.sort().values, torch.linspace(0, 1, 256))
    assert pool.draw_examples(4, seeded()).x.dtype == torch.float32
    assert levels.dtype == torch.uint8


def test_a_draw_is_a_copy_of_the_pool() -> None:
    pool = pool_of(SIZES)
    before = pool.sources.clone()
    pool.draw(spec_of(5, 1, 3), 4, seeded()).support_x.zero_()
    assert torch.equal(pool.sources, before)


def test_refusal_of_too_many_ways_names_a_number_that_works() -> None:
    pool = pool_of(SIZES)
    spec = spec_of(6, 1, 1)
    with pytest.raises(UserError, match=r"6-way tasks need 6 classes and the validation pool has 5") as refusal:
        pool.check("validation", spec)
    works = offered("n_way", refusal)
    pool.check("validation", replace(spec, n_way=works))
    with pytest.raises(UserError):
        pool.check("validation", replace(spec, n_way=works + 1))


@pytest.mark.parametrize("n_shot", [1, 3])
def test_refusal_of_too_many_examples_names_a_number_that_works(n_shot: int) -> None:
    pool = pool_of(SIZES)
    spec = spec_of(5, n_shot, 9)
    with pytest.raises(UserError, match=r"smallest class of the test pool has 4") as refusal:
        pool.check("test", spec)
    works = offered("n_query", refusal)
    assert works > 0
    pool.check("test", replace(spec, n_query=works))
    pool.draw(replace(spec, n_query=works), 2, seeded())
    with pytest.raises(UserError):
        pool.check("test", replace(spec, n_query=works + 1))


def test_refusal_of_too_many_shots_names_a_number_of_shots_that_works() -> None:
    pool = pool_of(SIZES)
    with pytest.raises(UserError, match=r"smallest class of the test pool has 4") as refusal:
        pool.check("test", spec_of(5, 4, 1))
    works = offered("n_shot", refusal)
    pool.check("test", spec_of(5, works, 1))
    with pytest.raises(UserError):
        pool.check("test", spec_of(5, works + 1, 1))


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(UserError, match="the test pool has no classes"):
        ClassPool(torch.empty(0, 1), []).check("test", spec_of(5, 1, 1))


def test_a_batch_of_tasks_counts_its_tasks_and_moves_as_a_whole() -> None:
    batch = pool_of(SIZES).draw(spec_of(2, 1, 3), 7, seeded())
    assert len(batch) == 7
    names = ("support_x", "support_y", "query_x", "query_y")
    assert all(t is getattr(batch, name) for t, name in zip(batch.tensors(), names, strict=True))
    moved = batch.to(torch.device("meta"))  # holds shapes only, and is on every machine
    assert isinstance(moved, TaskBatch)
    for before, after in zip(batch.tensors(), moved.tensors(), strict=True):
        assert after.device.type == "meta"
        assert (after.shape, after.dtype) == (before.shape, before.dtype)


def test_examples_count_themselves_and_move_as_a_whole() -> None:
    examples = pool_of(SIZES).draw_examples(11, seeded())
    assert len(examples) == 11
    moved = examples.to(torch.device("meta"))
    assert isinstance(moved, Examples)
    assert moved.x.device.type == moved.y.device.type == "meta"


def test_a_spec_counts_outputs_and_examples() -> None:
    classification = TaskSpec("classification", (1, 28, 28), n_way=5, n_shot=2, n_query=3)
    regression = TaskSpec("regression", (1,), n_way=1, n_shot=10, n_query=5, y_size=2)
    assert (classification.n_outputs, classification.n_examples) == (5, 25)
    assert (regression.n_outputs, regression.n_examples) == (2, 15)


GROUPS = [0, 0, 0, 1, 1, 1, 1, 2, 2]


def grouped_pool() -> ClassPool:
    n_classes = len(GROUPS)
    members = [torch.arange(4) + 4 * number for number in range(n_classes)]
    return ClassPool(torch.arange(4.0 * n_classes)[:, None], members, GROUPS)


def groups_of_tasks(pool: ClassPool, within: float, n_tasks: int = 400) -> list[set[int]]:
    spec = replace(spec_of(3, 1, 1), within=within)
    batch = pool.draw(spec, n_tasks, seeded())
    return [{GROUPS[int(x) // 4] for x in task.flatten()} for task in batch.support_x]


def test_tasks_within_a_group_never_mix_groups_and_use_every_group_large_enough() -> None:
    groups = groups_of_tasks(grouped_pool(), 1.0)
    assert all(len(task) == 1 for task in groups)
    assert set.union(*groups) == {0, 1}  # group 2 has two classes, too few for three ways


def test_groups_are_drawn_uniformly() -> None:
    groups = [next(iter(task)) for task in groups_of_tasks(grouped_pool(), 1.0, 2000)]
    assert chisquare([groups.count(0), groups.count(1)]).pvalue > 1e-3


def test_within_a_group_classes_and_examples_are_uniform_in_any_order() -> None:
    pool = grouped_pool()
    batch = pool.draw(replace(spec_of(3, 1, 1), within=1.0), 6000, seeded(11))
    for group, members in ((0, (0, 1, 2)), (1, (3, 4, 5, 6))):
        support, query = batch.support_x[..., 0].long(), batch.query_x[..., 0].long()  # (n_tasks, 3) rows
        of_group = torch.tensor(GROUPS)[support[:, 0] // 4] == group
        first, second = (support[of_group, place] // 4 - members[0] for place in (0, 1))
        n = len(members)
        assert_uniform(ordered_pair(first, second, n), n * (n - 1))
        for rows in (support[of_group], query[of_group]):
            assert_uniform(rows[:, 0] - 4 * members[0], 4 * n)


def test_a_share_of_tasks_is_kept_within_groups() -> None:
    mixed = sum(len(task) > 1 for task in groups_of_tasks(grouped_pool(), 0.0))
    half = sum(len(task) > 1 for task in groups_of_tasks(grouped_pool(), 0.5))
    assert mixed > 350
    assert 0.4 * mixed < half < 0.6 * mixed


def places_of_tasks(same_source: float, n_tasks: int = 400) -> list[set[tuple[int, ...]]]:
    """Return of each task the places, within their classes, of each class's support example and query."""
    spec = replace(spec_of(3, 1, 1), same_source=same_source)
    batch = grouped_pool().draw(spec, n_tasks, seeded())
    tasks = []
    for x, y in zip(
        torch.cat([batch.support_x, batch.query_x], 1)[..., 0].long() % 4,
        torch.cat([batch.support_y, batch.query_y], 1),
        strict=True,
    ):
        tasks.append({tuple(x[y == label].tolist()) for label in range(3)})
    return tasks


def test_with_the_same_sources_all_classes_of_a_task_show_the_same_places_each_as_often() -> None:
    tasks = places_of_tasks(1.0, 2400)
    assert all(len(task) == 1 for task in tasks)
    [pairs] = zip(*(task for task in tasks), strict=True)
    counts = [pairs.count((support, query)) for support in range(4) for query in range(4) if support != query]
    assert sum(counts) == 2400
    assert chisquare(counts).pvalue > 1e-3


def test_a_share_of_tasks_has_the_same_sources() -> None:
    assert sum(len(task) == 1 for task in places_of_tasks(0.0)) < 20
    assert 160 < sum(len(task) == 1 for task in places_of_tasks(0.5)) < 240


def test_tasks_within_groups_are_refused_where_no_group_is_large_enough_or_there_is_none() -> None:
    spec = replace(spec_of(4, 1, 1), within=1.0)
    grouped_pool().check("test", spec)
    with pytest.raises(UserError, match=r"the largest of the test pool has 4; set tasks\.n_way to 4 or less"):
        grouped_pool().check("test", replace(spec, n_way=5))
    with pytest.raises(UserError, match="belong to no groups"):
        pool_of(SIZES).check("test", replace(spec_of(3, 1, 1), within=1.0))


def test_presentations_count_a_label_with_itself() -> None:
    assert presentations(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [1, 1, 2, 3, 1, 2]
    assert presentations(torch.tensor([[0, 0], [0, 1]])).tolist() == [[1, 2], [1, 1]]


# What draw_tasks makes of a sampler's tasks: streams, and unequal shots


class Pooled(TaskSampler):
    """The tasks of one pool."""

    name = "pooled"
    kind = "classification"

    def __init__(self, pool: ClassPool) -> None:
        self.pool = pool

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        self.pool.check(pool, spec)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self.pool.draw(spec, n_tasks, generator)


def drawn(spec: TaskSpec, n_tasks: int, seed: int = 0, pool: ClassPool | None = None) -> TaskBatch:
    return draw_tasks(Pooled(pool or pool_of(SIZES)), "test", spec, n_tasks, seeded(seed))


STREAM = replace(spec_of(3, 4, 0), stream=True)
UNEQUAL = replace(spec_of(3, 3, 1), least_shot=1, unequal=True)
UNEQUAL_STREAM = replace(STREAM, least_shot=2, unequal=True)
every_kind = pytest.mark.parametrize(
    "spec", [STREAM, UNEQUAL, UNEQUAL_STREAM], ids=["stream", "unequal", "unequal stream"]
)


def test_a_stream_asks_for_its_support_sequence_and_shows_each_class_so_often() -> None:
    batch = drawn(STREAM, 200)
    assert torch.equal(batch.query_x, batch.support_x)
    assert torch.equal(batch.query_y, batch.support_y)
    assert batch.support_x.shape == (200, 12, 2)
    assert (torch.nn.functional.one_hot(batch.support_y, 3).sum(1) == 4).all()
    rows = row_of(batch.support_x)
    assert all(len(set(task.tolist())) == 12 for task in rows), "no example is shown twice"


@every_kind
def test_labels_stand_for_one_class_each_and_no_query_was_shown_before(spec: TaskSpec) -> None:
    batch = drawn(spec, 200)
    x, y = (torch.cat(parts, 1) for parts in ((batch.support_x, batch.query_x), (batch.support_y, batch.query_y)))
    for task, labels in zip(class_of(x), y, strict=True):
        classes = [set(task[labels == label].tolist()) for label in range(3)]
        assert [len(one) for one in classes] == [1, 1, 1]
        assert len(set.union(*classes)) == 3
    if not spec.stream:
        for shown, asked in zip(row_of(batch.support_x), row_of(batch.query_x), strict=True):
            assert set(shown.tolist()).isdisjoint(asked.tolist())


def test_unequal_shots_are_uniform_for_each_class_and_shared_by_a_batch() -> None:
    counts = []
    for seed in range(1500):
        batch = drawn(UNEQUAL, 2, seed)
        of_task = torch.nn.functional.one_hot(batch.support_y, 3).sum(1)  # (2, 3)
        assert torch.equal(of_task[0], of_task[1])
        assert (torch.nn.functional.one_hot(batch.query_y, 3).sum(1) == 1).all()
        counts.append(of_task[0] - 1)
    shots = torch.stack(counts)
    assert_uniform(shots[:, 0] * 9 + shots[:, 1] * 3 + shots[:, 2], 27)
    assert sized(UNEQUAL, seeded()) == UNEQUAL, "the range is each class's, not the batch's"


@every_kind
def test_classes_and_examples_are_uniform_and_the_order_is_too(spec: TaskSpec) -> None:
    """Also where a class has fewer examples than another, which must not stand earlier for it."""
    pool = pool_of((5, 5, 5, 5))
    batches = [drawn(spec, 16, seed, pool) for seed in range(250)]
    n_classes = 4
    first = torch.cat([class_of(batch.support_x)[:, 0] for batch in batches])
    last = torch.cat([class_of(batch.support_x)[:, -1] for batch in batches])
    assert_uniform(first, n_classes)
    assert_uniform(last, n_classes)
    for place in (0, -1):
        assert_uniform(torch.cat([row_of(batch.support_x)[:, place] for batch in batches]), 20)
    # Where label 0 stands among all places, as a share of them: one half on average, whatever its number of shots.
    shares = torch.cat(
        [
            torch.arange(batch.support_y.shape[1]).expand_as(batch.support_y)[batch.support_y == 0]
            / (batch.support_y.shape[1] - 1)
            for batch in batches
            if (batch.support_y[0] == 0).sum() == spec.least_shot or not spec.unequal
        ]
    )
    assert abs(shares.mean() - 0.5) < 4 * shares.std() / len(shares) ** 0.5


@every_kind
def test_the_same_generator_state_gives_the_same_tasks_of_every_kind(spec: TaskSpec) -> None:
    before = torch.get_rng_state()
    first, again, other = (drawn(spec, 16, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert first.support_x.shape != other.support_x.shape or not torch.equal(first.support_x, other.support_x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stream", [False, True])
def test_streams_and_unequal_shots_keep_within_groups(stream: bool) -> None:
    spec = replace(spec_of(3, 3, 0 if stream else 1), within=1.0, least_shot=2, unequal=True, stream=stream)
    batch = drawn(spec, 100, pool=grouped_pool())
    groups = [{GROUPS[int(x) // 4] for x in task.flatten()} for task in batch.support_x]
    assert all(len(task) == 1 for task in groups)
    assert set.union(*groups) == {0, 1}


def test_a_stream_needs_as_many_examples_as_presentations_and_its_refusal_names_a_number_that_works() -> None:
    pool = pool_of(SIZES)
    pool.check("test", replace(STREAM, n_shot=min(SIZES)))
    with pytest.raises(
        UserError, match=r"a stream of 5 presentations .* smallest class of the test pool has 4"
    ) as refusal:
        pool.check("test", replace(STREAM, n_shot=5))
    assert offered("n_shot", refusal) == 4
    drawn(replace(STREAM, n_shot=4), 3)


def test_points_of_a_regression_are_streamed_in_a_new_order() -> None:
    class Numbers(TaskSampler):
        name, kind = "numbers", "regression"

        def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
            x = torch.arange(float(spec.n_shot + spec.n_query)).expand(n_tasks, -1)[:, :, None]
            k = spec.n_shot
            return TaskBatch(x[:, :k], -x[:, :k], x[:, k:], -x[:, k:])

    spec = TaskSpec("regression", (1,), 1, 6, 0, stream=True)
    batch = draw_tasks(Numbers(None), "test", spec, 300, seeded())
    assert torch.equal(batch.support_y, -batch.support_x)
    assert torch.equal(batch.support_x.sort(1).values, torch.arange(6.0).expand(300, -1)[:, :, None])
    assert_uniform(batch.support_x[:, -1, 0].long(), 6)
