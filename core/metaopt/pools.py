"""Pools from a user's own data: each class stands in one pool, and no example stands in two.

A sampler that reads files derives from `ClassSampler`, takes `Split` as the base of its Config, and calls `divide`,
`apart` and `fill`.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from metaopt import seeds
from metaopt.errors import UserError, unknown
from metaopt.task import POOLS, ClassPool, Examples, Pool, TaskBatch, TaskSampler, TaskSpec, in_folds

GIVEN: Mapping[str, Pool] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""What data call the pools."""
DEFAULT_SPLIT = "60/20/20"


@dataclass(frozen=True)
class Split:
    """The settings of how classes are divided into pools, the same for every sampler of given data."""

    split: str = ""
    """Three percentages, such as 60/20/20, or three numbers of classes, such as 64/12/20, of train, validation and
    test; empty: the pools that the data give, or 60/20/20 where they give none."""
    split_by: str = "class"
    """`class`, or `group`: whole groups (superclasses) stand in one pool, and numbers in `split` count groups."""
    split_seed: int = 0
    """Which classes fall into which pool; a class keeps its place in the order when others come or go."""
    train: tuple[str, ...] = ()
    """Classes and groups by name, instead of `split`; classes that no list names are left out."""
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    min_examples: int = 1
    """Classes with fewer examples are left out."""
    duplicates: str = "refuse"
    """`refuse` identical examples that stand in different pools, `skip` them all, or `keep` them, where examples are
    alike by chance, as rows of few categories are."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of examples beside their content."""

    names: Sequence[str]
    """What messages call each: a file, a row."""
    classes: Sequence[str]
    groups: Sequence[str] | None = None
    pools: Sequence[str] | None = None
    """The pool that the data give each: train, val or test."""


@dataclass(frozen=True, eq=False)
class Class:
    """A class and the rows of its examples."""

    name: str
    group: str | None
    rows: NDArray[np.int64]  # (n,)


Pools = Mapping[Pool, Sequence[Class]]


class ClassSampler(TaskSampler):
    """A sampler whose tasks come from fixed classes; `__init__` of its subclass calls `fill`."""

    kind = "classification"
    has_groups = True
    classes: Pools
    pools: Mapping[Pool, ClassPool]

    def fill(self, examples: Tensor, pools: Pools) -> None:
        """Take the classes of each pool, whose rows are those of `examples` (n, *x_shape)."""
        least = self.config.min_examples
        self.classes = {pool: [c for c in pools[pool] if len(c.rows) >= least] for pool in POOLS}
        self.pools = {pool: _class_pool(examples, self.classes[pool]) for pool in POOLS}

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        x_shape = tuple(self.pools["train"].sources.shape[1:])
        return TaskSpec(self.kind, x_shape, n_way, n_shot, n_query, n_train_classes=len(self.classes["train"]))

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        classes, need = self.classes[pool], spec.n_drawn
        total = sum(len(classes) for classes in self.classes.values())
        if len(classes) < spec.n_way:
            even = f"{total - 2 * spec.n_way}/{spec.n_way}/{spec.n_way}"
            remedies = [
                f"set tasks.n_way to {len(classes)} or less" if len(classes) > 1 else "",
                f"set tasks.split to {even}" if total >= 3 * spec.n_way and self.config.split_by == "class" else "",
                f"give it more classes ({total} in all pools)",
            ]
            raise UserError(
                f"{spec.n_way}-way tasks need {spec.n_way} classes and the {pool} pool has {len(classes)}; "
                f"{', or '.join(filter(None, remedies))}"
            )
        smallest = min(classes, key=lambda c: len(c.rows))
        if (left := len(smallest.rows)) < need:
            few = sum(len(c.rows) < need for classes in self.classes.values() for c in classes)
            shots = need - spec.n_query
            remedies = [
                f"set tasks.n_shot to {left} or less" if spec.stream and left > 1 else "",
                f"set tasks.n_query to {left - shots} or less" if left > shots else "",
                f"set tasks.min_examples to {need}, which leaves {few} of {total} classes out" if few < total else "",
                "" if left > shots or few < total else f"give every class {need} examples",
            ]
            asked = f"{need} presentations" if spec.stream else f"n_shot {shots} and n_query {spec.n_query}"
            raise UserError(
                f"{asked} need {need} examples of every class, and "
                f"{smallest.name!r} of the {pool} pool has {left}; {', or '.join(filter(None, remedies))}"
            )
        self.pools[pool].check(pool, spec)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self.pools[pool].draw(spec, n_tasks, generator)

    def examples(self, n: int, generator: Generator) -> Examples:
        return self.pools["train"].draw_examples(n, generator)

    def folds(self, n: int) -> Sequence[TaskSampler]:
        members = [*self.classes["train"], *self.classes["validation"]]
        groups = [c.name if c.group is None else c.group for c in members]
        what = "classes" if any(c.group is None for c in members) else "groups"
        parts = in_folds(Counter(groups), n, what)
        return [
            self._trained_on(
                [c for c, group in zip(members, groups, strict=True) if group not in part],
                [c for c, group in zip(members, groups, strict=True) if group in part],
            )
            for part in parts
        ]

    def whole(self) -> TaskSampler:
        return self._trained_on([*self.classes["train"], *self.classes["validation"]], self.classes["validation"])

    def _trained_on(self, train: Sequence[Class], validation: Sequence[Class]) -> TaskSampler:
        other = copy.copy(self)
        other.fill(self.pools["train"].sources, {**self.classes, "train": train, "validation": validation})
        return other


def divide(labels: Labels, settings: Split) -> Pools:
    """Return the classes of each pool, sorted by name.

    Raises UserError where settings make no sense, where a class stands in two groups or in two pools, and where the
    settings name what is not there.
    """
    for key, options in (("split_by", ("class", "group")), ("duplicates", ("refuse", "skip", "keep"))):
        if (given := getattr(settings, key)) not in options:
            raise UserError(f"tasks.{key} is {given!r}; write {', '.join(options[:-1])} or {options[-1]}")
    lists: dict[Pool, Sequence[object]] = {pool: getattr(settings, pool) for pool in POOLS}
    if settings.split and any(lists.values()):
        listed = next(pool for pool in POOLS if lists[pool])
        raise UserError(
            f"tasks.{listed} is set beside tasks.split ({settings.split}), and either says the pools; leave one out"
        )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(labels.classes):
        rows.setdefault(name, []).append(row)
    classes = []
    for name in sorted(rows):
        if len(rows[name]) >= settings.min_examples:
            group = None if labels.groups is None else _the_one("group", labels.groups, name, rows[name])
            classes.append(Class(name, group, np.array(rows[name], dtype=np.int64)))
    if any(lists.values()):
        return _listed(classes, lists)
    if labels.pools is not None and not settings.split:
        return _as_given(classes, labels.pools)
    return _drawn(classes, settings)


def _listed(classes: Sequence[Class], lists: Mapping[Pool, Sequence[object]]) -> Pools:
    owner: dict[str, Pool] = {}
    for pool, entries in lists.items():
        for entry in map(str, entries):  # a study file may write the class 7 as a number
            named = [c for c in classes if c.name == entry] or [c for c in classes if c.group == entry]
            if not named:
                known = {c.name for c in classes} | {c.group for c in classes if c.group is not None}
                raise UserError(f"tasks.{pool}: {unknown('class or group', entry, known)}")
            for c in named:
                if (other := owner.setdefault(c.name, pool)) != pool:
                    raise UserError(f"the class {c.name!r} is listed in tasks.{other} and tasks.{pool}; keep it in one")
    return {pool: [c for c in classes if owner.get(c.name) == pool] for pool in POOLS}


def _as_given(classes: Sequence[Class], given: Sequence[str]) -> Pools:
    pools: dict[Pool, list[Class]] = {pool: [] for pool in POOLS}
    for c in classes:
        try:
            pool = _the_one("pool", given, c.name, c.rows)
        except UserError as error:
            raise UserError(f"{error}, or set tasks.split to {DEFAULT_SPLIT} to divide the classes anew") from None
        if pool not in GIVEN:
            raise UserError(f"the class {c.name!r}: {unknown('pool', pool, GIVEN)}")
        pools[GIVEN[pool]].append(c)
    return pools


def _drawn(classes: Sequence[Class], settings: Split) -> Pools:
    if settings.split_by == "class":
        units = {c.name: [c] for c in classes}
    else:
        units = {}
        for c in classes:
            if c.group is None:
                raise UserError(
                    "tasks.split_by is group and the classes belong to no groups; set it to class, or give the groups"
                )
            units.setdefault(c.group, []).append(c)
    # Each by a number of its own, so that a further class moves no other; ascii, as a file name may be no Unicode.
    order = sorted(units, key=lambda unit: seeds.derive(settings.split_seed, "split", ascii(unit)))
    ends = _ends(settings.split or DEFAULT_SPLIT, len(units), "classes" if settings.split_by == "class" else "groups")
    pools: dict[Pool, list[Class]] = {}
    for pool, start, end in zip(POOLS, (0, *ends), ends, strict=False):
        members = [c for unit in order[start:end] for c in units[unit]]
        pools[pool] = sorted(members, key=lambda c: c.name)
    return pools


def _ends(split: str, n_units: int, what: str) -> tuple[int, int, int]:
    """Return where, among `n_units`, the three pools of a split end."""
    if not (match := re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", split)):
        raise UserError(
            f"tasks.split is {split[:40]!r}; write three percentages that add up to 100, such as {DEFAULT_SPLIT}, or "
            f"three numbers of {what} that do not"
        )
    train, validation, test = map(int, match.groups())
    ends = (train, train + validation, train + validation + test)
    if ends[2] == 100:
        ends = tuple((n_units * end + 50) // 100 for end in ends)  # type: ignore[assignment]  # three, which mypy loses
    if ends[2] > n_units:
        raise UserError(
            f"tasks.split is {split}, {ends[2]} {what}, and there are {n_units}; ask for fewer, or write percentages "
            f"such as {DEFAULT_SPLIT}"
        )
    return ends


def _the_one(what: str, values: Sequence[str], name: str, rows: Iterable[int]) -> str:
    """Return the one group or pool of a class. UserError where its examples have two."""
    found = sorted({values[row] for row in rows})
    if len(found) > 1:
        raise UserError(f"the class {name!r} stands in the {what}s {found[0]!r} and {found[1]!r}; give it one {what}")
    return found[0]


def without(pools: Pools, left_out: NDArray[np.bool_]) -> Pools:
    """Return the pools without the rows that are marked in `left_out` (n,)."""
    return {pool: [replace(c, rows=c.rows[~left_out[c.rows]]) for c in classes] for pool, classes in pools.items()}


def rows_of(classes: Iterable[Class]) -> NDArray[np.int64]:
    """Return the rows of all examples of some classes."""
    return np.concatenate([np.empty(0, np.int64), *(c.rows for c in classes)])


def digest(content: bytes) -> NDArray[np.uint8]:
    """Return 16 bytes that only identical content shares."""
    return np.frombuffer(blake2b(content, digest_size=16).digest(), np.uint8)


def apart(pools: Pools, digests: NDArray[np.uint8], names: Sequence[str], settings: Split) -> Pools:
    """Return the pools without examples that stand in two of them, or as `settings.duplicates` says.

    `digests` is (n, 16). Raises UserError, which names two identical examples, where these are refused.
    """
    owner = np.full(len(digests), -1)
    for number, pool in enumerate(POOLS):
        owner[rows_of(pools[pool])] = number
    used = np.flatnonzero(owner >= 0)
    keys = np.ascontiguousarray(digests[used]).view("V16").ravel()
    _, same = np.unique(keys, return_inverse=True)  # (n_used,) the same number for the same content
    first, last = np.full(len(used), len(POOLS)), np.full(len(used), -1)
    np.minimum.at(first, same, owner[used])
    np.maximum.at(last, same, owner[used])
    shared = first[same] != last[same]  # (n_used,)
    if settings.duplicates == "keep" or not shared.any():
        return pools
    if settings.duplicates == "skip":
        left_out = np.zeros(len(digests), bool)
        left_out[used[shared]] = True
        return without(pools, left_out)
    row = used[shared][0]
    copies = used[same == same[shared][0]]
    other = copies[owner[copies] != owner[row]][0]
    raise UserError(
        f"{names[row]} of the {POOLS[owner[row]]} pool and {names[other]} of the {POOLS[owner[other]]} pool are "
        f"identical ({shared.sum()} examples stand in two pools); remove them, or set tasks.duplicates to skip, which "
        "leaves them all out, or to keep where they are alike by chance"
    )


def _class_pool(examples: Tensor, classes: Sequence[Class]) -> ClassPool:
    members = [torch.from_numpy(c.rows) for c in classes]
    if not any(c.group is not None for c in classes):
        return ClassPool(examples, members)
    numbers: dict[str | None, int] = {}
    return ClassPool(examples, members, [numbers.setdefault(c.group, len(numbers)) for c in classes])
