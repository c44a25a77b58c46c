"""Each class stands in one pool, no example in two, and what cannot be is refused with what can."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare  # type: ignore[import-untyped]
from torch import Generator

from metaopt.errors import UserError
from metaopt.pools import ClassSampler, Labels, Pools, Split, apart, digest, divide, rows_of, without
from metaopt.task import POOLS


def labels_of(n_classes: int = 10, n_examples: int = 3, group_size: int = 0) -> Labels:
    """Classes c00, c01, …, whose rows alternate; groups g0, g1, … of neighbouring classes."""
    numbers = [number for _ in range(n_examples) for number in range(n_classes)]
    return Labels(
        names=[f"row {row}" for row in range(len(numbers))],
        classes=[f"c{number:02}" for number in numbers],
        groups=[f"g{number // group_size}" for number in numbers] if group_size else None,
    )


def with_pools(labels: Labels, pool_of: dict[str, str]) -> Labels:
    return replace(labels, pools=[pool_of[name] for name in labels.classes])


def names(pools: Pools) -> dict[str, list[str]]:
    return {pool: [c.name for c in pools[pool]] for pool in POOLS}


def sizes(pools: Pools) -> list[int]:
    return [len(pools[pool]) for pool in POOLS]


@dataclass(frozen=True)
class Given(Split):
    n_classes: int = 10
    n_examples: int = 3


class Sampler(ClassSampler):
    """Examples are their row numbers."""

    name = "given"
    Config = Given  # type: ignore[assignment]

    def __init__(self, config: Given) -> None:
        super().__init__(config)
        labels = labels_of(config.n_classes, config.n_examples)
        self.fill(torch.arange(float(len(labels.classes)))[:, None], divide(labels, config))


# Splits


@given(
    n_classes=st.integers(1, 60),
    split=st.sampled_from(["60/20/20", "34/33/33", "100/0/0", "0/50/50", "1/1/1", " 2 / 3 / 4 "]),
    seed=st.integers(-5, 5),
)
def test_a_class_stands_in_one_pool_with_all_its_rows(n_classes: int, split: str, seed: int) -> None:
    labels = labels_of(n_classes)
    try:
        pools = divide(labels, Split(split=split, split_seed=seed))
    except UserError:
        assert n_classes < 9
        return
    drawn = [name for members in names(pools).values() for name in members]
    assert len(set(drawn)) == len(drawn)
    assert len(drawn) == n_classes or sum(map(int, split.split("/"))) == len(drawn)
    for members in pools.values():
        for c in members:
            assert [labels.classes[row] for row in c.rows] == [c.name] * 3
        assert [c.name for c in members] == sorted(c.name for c in members)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("", [6, 2, 2]),
        ("60/20/20", [6, 2, 2]),
        ("34/33/33", [3, 4, 3]),
        ("5/3/2", [5, 3, 2]),
        ("2/2/2", [2, 2, 2]),  # four classes are left out
        ("80/0/20", [8, 0, 2]),
    ],
)
def test_three_numbers_that_add_up_to_100_are_percentages_and_others_count_classes(
    split: str, expected: list[int]
) -> None:
    assert sizes(divide(labels_of(10), Split(split=split))) == expected


def test_the_seed_says_which_classes_fall_where_and_nothing_else_does() -> None:
    first, again, other = (names(divide(labels_of(), Split(split_seed=seed))) for seed in (0, 0, 1))
    assert first == again != other
    labels = labels_of()
    backwards = Labels(*(list(values)[::-1] for values in (labels.names, labels.classes)))
    assert names(divide(backwards, Split())) == first


def test_each_class_falls_into_each_pool_as_often_as_the_split_says() -> None:
    seeds = 600
    drawn = [names(divide(labels_of(10, 1), Split(split="20/30/50", split_seed=seed))) for seed in range(seeds)]
    for pool, share in (("train", 0.2), ("validation", 0.3), ("test", 0.5)):
        counts = Counter(name for pools in drawn for name in pools[pool])
        assert len(counts) == 10
        # The classes of one draw exclude each other, so the statistic is (1 − share) · chi-square with 9 degrees.
        statistic = sum((n - seeds * share) ** 2 / (seeds * share) for n in counts.values()) / (1 - share)
        assert statistic < 27.9  # p = 1e-3


def test_a_further_class_moves_at_most_one_class_over_each_border() -> None:
    for n_classes in range(10, 30):
        smaller, larger = (names(divide(labels_of(n), Split(split="50/25/25"))) for n in (n_classes, n_classes + 1))
        moved = [name for pool in POOLS for name in smaller[pool] if name not in larger[pool]]  # of n_classes classes
        assert len(moved) <= 2


def test_whole_groups_are_held_out() -> None:
    pools = divide(labels_of(20, group_size=4), Split(split="3/1/1", split_by="group"))
    assert sizes(pools) == [12, 4, 4]
    groups = [{c.group for c in pools[pool]} for pool in POOLS]
    assert [len(group) for group in groups] == [3, 1, 1]
    assert len(set.union(*groups)) == 5


def test_pools_that_the_data_give_are_taken() -> None:
    given_pools = {f"c{n:02}": ("train", "val", "valid", "validation", "test")[n % 5] for n in range(10)}
    pools = divide(with_pools(labels_of(), given_pools), Split())
    assert names(pools) == {
        "train": ["c00", "c05"],
        "validation": ["c01", "c02", "c03", "c06", "c07", "c08"],
        "test": ["c04", "c09"],
    }


def test_a_split_in_the_settings_goes_before_pools_that_the_data_give() -> None:
    labels = labels_of()
    mixed = replace(labels, pools=["train" if row % 2 else "test" for row in range(len(labels.classes))])
    assert names(divide(mixed, Split(split="60/20/20"))) == names(divide(labels, Split()))


def test_lists_name_classes_and_groups() -> None:
    labels = labels_of(12, group_size=4)
    lists = Split(train=("g0", "c04"), validation=("c05",), test=("g2",))
    assert names(divide(labels, lists)) == {
        "train": ["c00", "c01", "c02", "c03", "c04"],
        "validation": ["c05"],
        "test": ["c08", "c09", "c10", "c11"],
    }


def test_a_list_may_write_a_class_as_a_number() -> None:
    labels = Labels(["a", "b", "c"], ["7", "8", "9"])
    lists = Split(train=(7,), validation=(8,), test=(9,))  # type: ignore[arg-type]
    assert names(divide(labels, lists)) == {"train": ["7"], "validation": ["8"], "test": ["9"]}


def test_small_classes_are_left_out_before_the_split_is_drawn() -> None:
    classes = [f"c{n:02}" for n in range(10) for _ in range(1 + 4 * (n % 2))]  # of one and five examples
    pools = divide(Labels([""] * len(classes), classes), Split(split="60/20/20", min_examples=2))
    assert sizes(pools) == [3, 1, 1]


def test_names_may_be_any_text() -> None:
    classes = ["", " ", "ß/Ω", "e\u0301", "\udcff", "a\nb"]
    pools = divide(Labels(classes, classes), Split(split="2/2/2"))
    assert sorted(c.name for members in pools.values() for c in members) == sorted(classes)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"split": "60-20-20"}, r"tasks\.split is '60-20-20'; write three percentages .*such as 60/20/20"),
        ({"split": "60/40"}, r"tasks\.split is '60/40'"),
        ({"split": "-1/50/51"}, r"tasks\.split is '-1/50/51'"),
        ({"split": "9" * 5000 + "/1/1"}, r"write three percentages"),
        ({"split": "64/16/19"}, r"tasks\.split is 64/16/19, 99 classes, and there are 10; ask for fewer"),
        ({"split": "2/1/1", "split_by": "group"}, r"2/1/1, 4 groups, and there are 3"),
        ({"split_by": "alphabet"}, r"tasks\.split_by is 'alphabet'; write class or group"),
        ({"duplicates": "allow"}, r"tasks\.duplicates is 'allow'; write refuse, skip or keep"),
        ({"split": "60/20/20", "test": ("c00",)}, r"tasks\.test is set beside tasks\.split \(60/20/20\).*leave one"),
        ({"test": ("c0",)}, r"tasks\.test: no class or group named 'c0'; did you mean 'c0\d'"),
        ({"train": ("g0",), "test": ("c01",)}, r"'c01' is listed in tasks\.train and tasks\.test; keep it in one"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_can(split: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        divide(labels_of(10, group_size=4), Split(**split))  # type: ignore[arg-type]


def test_a_split_by_group_needs_groups() -> None:
    with pytest.raises(UserError, match=r"belong to no groups; set it to class"):
        divide(labels_of(), Split(split_by="group"))


def test_a_class_in_two_pools_of_the_data_is_refused_with_the_way_out() -> None:
    labels = labels_of()
    mixed = replace(labels, pools=["train"] * 29 + ["test"])
    with pytest.raises(
        UserError, match=r"'c09' stands in the pools 'test' and 'train'; give it one pool, or set tasks\.split to 60"
    ):
        divide(mixed, Split())
    divide(mixed, Split(split="60/20/20"))


def test_a_class_in_two_groups_is_refused() -> None:
    labels = replace(labels_of(), groups=["g"] * 29 + ["h"])
    with pytest.raises(UserError, match=r"the class 'c09' stands in the groups 'g' and 'h'; give it one group"):
        divide(labels, Split())


def test_a_pool_of_another_name_is_refused_with_the_nearest() -> None:
    labels = replace(labels_of(), pools=["trian"] * 30)
    with pytest.raises(UserError, match=r"'c00': no pool named 'trian'; did you mean 'train'"):
        divide(labels, Split())


# Identical examples


def digests_of(contents: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([digest(content) for content in contents])


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=9, max_size=9))
def test_exactly_the_examples_that_stand_in_two_pools_are_found(contents: list[int]) -> None:
    labels = labels_of(9, 1)
    pools = divide(labels, Split(split="3/3/3"))
    owner = {int(row): pool for pool in POOLS for row in rows_of(pools[pool])}
    leaked = {
        row for row in range(9) for other in range(9) if contents[row] == contents[other] and owner[row] != owner[other]
    }
    digests = digests_of([bytes([content]) for content in contents])
    kept = apart(pools, digests, labels.names, Split(duplicates="skip"))
    assert {int(row) for pool in POOLS for row in rows_of(kept[pool])} == set(range(9)) - leaked
    assert apart(pools, digests, labels.names, Split(duplicates="keep")) is pools
    if not leaked:
        assert apart(pools, digests, labels.names, Split()) == pools
        return
    with pytest.raises(UserError, match=r"set tasks\.duplicates to skip") as refusal:
        apart(pools, digests, labels.names, Split())
    match = re.match(r"row (\d) of the (\w+) pool and row (\d) of the (\w+) pool are", str(refusal.value))
    assert match, refusal.value
    row, other = int(match[1]), int(match[3])
    assert contents[row] == contents[other]
    assert owner[row] == match[2] != match[4] == owner[other]
    assert f"({len(leaked)} examples" in str(refusal.value)


def test_identical_examples_of_one_pool_and_of_unused_classes_are_no_leak() -> None:
    labels = labels_of(4, 2)
    pools = divide(labels, Split(train=("c00", "c01"), test=("c02",)))
    contents = [b"same", b"same", b"other", b"same", b"same", b"same", b"another", b"other"]
    assert labels.classes == ["c00", "c01", "c02", "c03"] * 2
    assert apart(pools, digests_of(contents), labels.names, Split()) is pools


def test_digests_tell_contents_apart() -> None:
    contents = [b"", b"\0", b"\0\0", *(bytes([n]) for n in range(1, 256))]
    assert len({digest(content).tobytes() for content in contents}) == len(contents)
    assert digest(b"").shape == (16,)


def test_marked_rows_are_left_out() -> None:
    pools = divide(labels_of(10, 3), Split())
    marked = np.zeros(30, bool)
    marked[[0, 10, 5]] = True
    kept = without(pools, marked)
    assert sorted(np.concatenate([rows_of(kept[pool]) for pool in POOLS])) == sorted(set(range(30)) - {0, 10, 5})


# Samplers


def test_tasks_hold_examples_of_their_pool_alone() -> None:
    sampler = Sampler(Given())
    spec = sampler.spec(2, 1, 2)
    assert spec.x_shape == (1,)
    assert spec.n_train_classes == 6
    for pool in POOLS:
        sampler.check(pool, spec)
        batch = sampler.draw(pool, spec, 50, Generator().manual_seed(0))
        rows = torch.cat([batch.support_x, batch.query_x], 1).long().flatten(1)
        assert set(rows.flatten().tolist()) == set(rows_of(sampler.classes[pool]).tolist())
        assert all(len(set(task.tolist())) == 6 for task in rows)


def test_examples_are_drawn_uniformly_over_train_classes() -> None:
    sampler = Sampler(Given())
    examples = sampler.examples(3000, Generator().manual_seed(0))
    rows = examples.x.long().flatten()
    for c, label in zip(sampler.classes["train"], range(6), strict=True):
        assert set(rows[examples.y == label].tolist()) == set(c.rows.tolist())
    assert chisquare(torch.bincount(examples.y).numpy()).pvalue > 1e-3


def test_groups_reach_the_tasks() -> None:
    labels = labels_of(12, group_size=4)
    sampler = Sampler(Given())
    sampler.fill(torch.arange(36.0)[:, None], divide(labels, Split(split="2/1/0", split_by="group")))
    spec = replace(sampler.spec(3, 1, 1), within=1.0)
    sampler.check("train", spec)
    batch = sampler.draw("train", spec, 60, Generator().manual_seed(0))
    groups = [{int(x) % 12 // 4 for x in task.flatten()} for task in batch.support_x]
    assert {len(group) for group in groups} == {1}
    assert len(set.union(*groups)) == 2
    with pytest.raises(UserError, match="belong to no groups"):
        Sampler(Given()).check("train", spec)


def offered(setting: str, refusal: pytest.ExceptionInfo[UserError]) -> str:
    match = re.search(rf"set tasks\.{setting} to ([\d/]+)", str(refusal.value))
    assert match, refusal.value
    return match[1]


def test_refusal_of_too_many_ways_offers_ways_and_a_split_that_work() -> None:
    sampler = Sampler(Given(n_classes=16))
    with pytest.raises(UserError, match=r"5-way tasks need 5 classes and the validation pool has 3") as refusal:
        sampler.check("validation", sampler.spec(5, 1, 2))
    sampler.check("validation", sampler.spec(int(offered("n_way", refusal)), 1, 2))
    better = Sampler(Given(n_classes=16, split=offered("split", refusal)))
    for pool in POOLS:
        better.check(pool, better.spec(5, 1, 2))


def test_refusal_offers_no_split_and_no_ways_that_would_not_work() -> None:
    with pytest.raises(UserError) as refusal:
        Sampler(Given(n_classes=5)).check("test", Sampler(Given()).spec(2, 1, 1))
    assert str(refusal.value).endswith("the test pool has 1; give it more classes (5 in all pools)")


def test_refusal_of_too_many_examples_names_the_class_and_offers_numbers_that_work() -> None:
    classes = [f"c{n:02}" for n in range(12) for _ in range(2 if n == 4 else 9)]
    labels = Labels([""] * len(classes), classes)

    def sampler_of(least: int) -> Sampler:
        sampler = Sampler(Given(min_examples=least))
        split = Split(split="8/2/2", min_examples=least) if least == 1 else Split(split="7/2/2", min_examples=least)
        sampler.fill(torch.zeros(len(classes), 1), divide(labels, split))
        return sampler

    sampler = sampler_of(1)
    (pool,) = (pool for pool in POOLS if "c04" in names(sampler.classes)[pool])
    with pytest.raises(UserError, match=r"need 6 examples of every class, and 'c04' of the \w+ pool has 2") as refusal:
        sampler.check(pool, sampler.spec(2, 1, 5))
    assert "leaves 1 of 12 classes out" in str(refusal.value)
    sampler.check(pool, sampler.spec(2, 1, int(offered("n_query", refusal))))
    smaller = sampler_of(int(offered("min_examples", refusal)))
    for every in POOLS:
        smaller.check(every, smaller.spec(2, 1, 5))
    with pytest.raises(UserError, match=r"'c04' of the \w+ pool has 2; set tasks\.min_examples to 7, which") as refusal:
        sampler.check(pool, sampler.spec(2, 2, 5))
    assert "tasks.n_query" not in str(refusal.value)


def test_pairs_of_rows_of_classes_are_in_order() -> None:
    pools = divide(labels_of(4, 5), Split(split="4/0/0"))
    assert rows_of(pools["test"]).shape == (0,)
    assert all(a < b for c in pools["train"] for a, b in pairwise(c.rows))
