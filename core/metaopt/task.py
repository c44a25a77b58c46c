"""Tasks: what a learner learns from, what it is scored on, and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from metaopt.cuda import moved
from metaopt.environment import Environments, Outside
from metaopt.errors import UserError
from metaopt.preprocessing import Preprocessing

Kind = Literal["classification", "regression", "control"]
Supports = Literal["examples", "descriptions"]
Pool = Literal["train", "validation", "test"]
POOLS: tuple[Pool, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskSpec:
    """The sizes of a task, from which a learner sizes itself."""

    kind: Kind
    x_shape: tuple[int, ...]
    """Shape of one example: (channels, height, width) of a picture, (n_features,) of a vector."""
    n_way: int
    """Classes in a task; 1 where there are none."""
    n_shot: int
    """Support examples a class; in control the episodes that a learner learns from."""
    n_query: int
    """Query examples a class; 0 in a stream, whose support examples are asked themselves. In control the episodes after
    those, which show what was learned."""
    y_size: int = 1
    """Numbers in a regression target, or in an action."""
    n_train_classes: int = 0
    """Classes in the train pool; 0 in regression."""
    description_shape: tuple[int, ...] = ()
    """Shape of the description of a class, where support sets hold those and no examples; empty where they do not."""
    least_shot: int = 0
    """Above 0, shots are drawn from this number to `n_shot`: one for each batch of tasks, see `sized`, or `unequal`."""
    unequal: bool = False
    """Whether each class of a task has a number of shots of its own, drawn from `least_shot` to `n_shot`."""
    stream: bool = False
    """Whether a task is a sequence of support examples, each predicted when it is shown and its label told after."""
    within: float = 0.0
    """The share of tasks whose classes all come from one group, such as an alphabet; the others mix groups."""
    same_source: float = 0.0
    """The share of tasks whose classes have their examples from the same sources, such as drawers."""
    n_actions: int = 0
    """In control the actions to choose from; 0 where an action is `y_size` numbers."""
    n_told: int = 0
    """In control the numbers that tell tasks apart, which only an oracle is told."""

    @property
    def support_shape(self) -> tuple[int, ...]:
        """Shape of what a support set holds: of an example, or of the description of a class."""
        return self.description_shape or self.x_shape

    @property
    def n_outputs(self) -> int:
        """Numbers in the prediction for one query: a score a class, or the target's size; likewise for an action."""
        return self.n_way if self.kind == "classification" else self.n_actions or self.y_size

    @property
    def n_drawn(self) -> int:
        """Examples of each of its classes that a task takes."""
        return self.n_query if self.description_shape else self.n_shot + self.n_query

    @property
    def n_examples(self) -> int:
        """Support and query examples together: what a task costs."""
        return self.n_way * (self.n_shot + self.n_query)


def sized(spec: TaskSpec, generator: Generator) -> TaskSpec:
    """Return the sizes of one batch: where all of it has one number of shots from a range, with that one, uniform."""
    if not spec.least_shot or spec.unequal:
        return spec
    n_shot = torch.randint(spec.least_shot, spec.n_shot + 1, (), generator=generator)
    return replace(spec, n_shot=int(n_shot), least_shot=0)


@dataclass(frozen=True)
class TaskBatch:
    """Tasks of one size, stacked. In classification y holds the labels 0 … n_way − 1, drawn anew each task.

    Of a stream the support set is the sequence, in its order, and the query set the same examples.
    """

    support_x: Tensor  # (n_tasks, n_support, *support_shape)
    support_y: Tensor  # (n_tasks, n_support) int64, or (n_tasks, n_support, y_size)
    query_x: Tensor  # (n_tasks, n_queries, *x_shape)
    query_y: Tensor  # (n_tasks, n_queries) int64, or (n_tasks, n_queries, y_size)

    def __len__(self) -> int:
        return len(self.support_x)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.support_x, self.support_y, self.query_x, self.query_y

    def to(self, device: torch.device) -> "TaskBatch":
        return TaskBatch(*(moved(tensor, device) for tensor in self.tensors()))


@dataclass(frozen=True)
class Examples:
    """Labelled examples of the train pool, for learners that do not train on tasks."""

    x: Tensor  # (n, *x_shape)
    y: Tensor  # (n,) int64, the class among all train classes
    descriptions: Tensor | None = None  # (n_train_classes, *description_shape), where classes are described

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> "Examples":
        descriptions = None if self.descriptions is None else moved(self.descriptions, device)
        return Examples(moved(self.x, device), moved(self.y, device), descriptions)


class TaskSampler:
    """A source of few-shot tasks in three pools, disjoint by class (in regression: separate draws).

    A plugin's sampler sets `name` and `kind`, declares its settings in a frozen dataclass `Config`, and gives
    `spec` and `draw`. All randomness comes from the generator passed in: the same generator state, the same tasks.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    supports: ClassVar[Supports] = "examples"
    """What support sets hold: examples of the classes, or in zero-shot learning descriptions of them."""
    encoder: ClassVar[str] = "mlp"
    """The encoder of studies that name none."""
    has_groups: ClassVar[bool] = False
    """Whether classes may belong to groups and `draw` keeps `spec.within`; otherwise a study may not set it."""
    has_sources: ClassVar[bool] = False
    """Whether the n-th example of every class is of one source and `draw` keeps `spec.same_source`; otherwise likewise.
    """
    pools_are: str = "each pool is a separate draw of one distribution of tasks"
    """What tells pools apart that hold no classes, for people: for previews and reports."""
    benchmarks: ClassVar[tuple[str, ...]] = ()
    """Names of fixed evaluations that it brings, for `metaopt evaluate --on NAME`."""
    made_by: ClassVar[type[Preprocessing]] = Preprocessing
    """What turns a user's examples into those of tasks, after the study too; see `preprocessing`."""
    outside: ClassVar[type[Outside]] = Outside
    """In control what makes a task of a user's environment, after the study: how it is seen, and acted in."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: Any) -> None:
        """Read the data. Raises UserError where they are missing or broken."""
        self.config = config

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        """Return the sizes of a task with so many classes, and support and query examples a class."""
        raise NotImplementedError(f"the task sampler {type(self).__name__} does not define `spec`")

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        """Raise UserError, with the numbers that would work, where `pool` cannot give tasks of this size."""

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        """Return `n_tasks` independent tasks of the pool. No query stands in its own support set."""
        raise NotImplementedError(f"the task sampler {type(self).__name__} does not define `draw`")

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Environments:
        """Return `n_tasks` independent environments of the pool: what samplers of kind "control" have for `draw`."""
        raise NotImplementedError(f"the task sampler {type(self).__name__} does not define `environments`")

    def examples(self, n: int, generator: Generator) -> Examples:
        """Return `n` labelled examples drawn from all train classes."""
        raise UserError(f"the task sampler {self.name!r} has no labelled classes, which this learner trains on")

    def folds(self, n: int) -> Sequence["TaskSampler"]:
        """Return `n` samplers of the classes of the train and validation pools, each with others to be scored on.

        Each class stands in the validation pool of one of them and in the train pools of the others. Groups stay whole.
        Raises UserError where there are too few.
        """
        raise UserError(f"the sampler {self.name!r} cannot divide its classes into folds; leave out evaluation.folds")

    def whole(self) -> "TaskSampler":
        """Return a sampler whose train pool holds the classes of the train and the validation pool."""
        raise UserError(f"the sampler {self.name!r} cannot put its pools together; leave out final")

    def preprocessing(self, x_shape: tuple[int, ...]) -> Preprocessing:
        """Return what makes examples of shape `x_shape` for this sampler: of the class `made_by`, fitted."""
        return self.made_by(x_shape)

    @classmethod
    def recognise(cls, path: Path) -> Mapping[str, Any] | None:
        """Return keys of a study file for the data at `path`, as {"tasks": {"root": …}}; None where it reads none such.

        For `metaopt study run DATA`. Looks at names and first lines alone, as it is asked about anything.
        """
        return None

    @classmethod
    def benchmark(cls, name: str, config: Any, x_shape: tuple[int, ...]) -> tuple[TaskSpec, TaskBatch]:
        """Return the tasks of one of `benchmarks`, of labels, all of one size, with examples of the shape `x_shape`.

        `config` is that of the sampler which the model was trained with, where it is one of this class, and otherwise
        has the defaults. Raises UserError where examples cannot have that shape, or training saw what is asked.
        """
        raise NotImplementedError(f"the task sampler {cls.__name__} does not define `benchmark`")


class ClassPool:
    """Examples of some classes, held in memory, from which tasks are drawn by index.

    `examples` (n_examples, *x_shape) may be uint8, which draws turn into float32 in [0, 1]. `members` holds, a
    class, the rows of its examples; classes may differ in size. `groups`, a class, is the number of the group that it
    belongs to (an alphabet, a superclass), where there are such. With `descriptions` (n_classes, *description_shape)
    support sets hold those, and no examples.
    """

    def __init__(
        self,
        examples: Tensor,
        members: Sequence[Tensor],
        groups: Sequence[int] | None = None,
        descriptions: Tensor | None = None,
    ) -> None:
        self.sources = examples
        self.descriptions = descriptions
        self.groups = None if groups is None else torch.tensor(groups, dtype=torch.int64)  # (n_classes,)
        self.sizes = torch.tensor([len(rows) for rows in members])  # (n_classes,)
        self.table = torch.zeros(len(members), int(self.sizes.max()) if len(members) else 0, dtype=torch.int64)
        for row, rows in zip(self.table, members, strict=True):
            row[: len(rows)] = rows

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.table)

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        """Raise UserError where these classes or their examples are too few for tasks of this size."""
        check_sizes(pool, self.sizes.tolist(), spec)
        if spec.within and not len(self._groups_of(spec.n_way)):
            largest = 0 if self.groups is None else int(self.groups.bincount().max())
            prefix = "train_" if pool == "train" else ""
            fewer = f"tasks.{prefix or 'n_'}way to {largest} or less, or " if largest > 1 else ""
            raise UserError(
                f"{spec.n_way}-way tasks within a group need a group of {spec.n_way} classes and the largest of the "
                f"{pool} pool has {largest}; set {fewer}tasks.{prefix}within to 0"
                if largest
                else f"the classes of the {pool} pool belong to no groups; set tasks.{prefix}within to 0"
            )

    def draw(self, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        """Return tasks whose classes and examples are drawn uniformly without replacement, in a random order."""
        draws = torch.rand(n_tasks, len(self), generator=generator)
        if spec.within:
            draws = self._kept_within(draws, spec, generator)
        classes = draws.topk(spec.n_way).indices  # (n_tasks, n_way)
        order = torch.rand(n_tasks, spec.n_way, self.table.shape[1], generator=generator)
        if spec.same_source:
            same = torch.rand(n_tasks, 1, 1, generator=generator) < spec.same_source
            order = torch.where(same, order[:, :1], order)
        missing = torch.arange(self.table.shape[1]) >= self.sizes[classes][:, :, None]
        picked = order.masked_fill(missing, -1.0).topk(spec.n_drawn).indices
        rows = self.table[classes[:, :, None], picked]  # (n_tasks, n_way, n_shot + n_query)
        if self.descriptions is not None:
            described, support_y = _shuffled(classes[:, :, None], generator)  # (n_tasks, n_way)
            query_rows, query_y = _shuffled(rows, generator)
            return TaskBatch(self.descriptions[described], support_y, self._read(query_rows), query_y)
        support_rows, support_y = _shuffled(rows[:, :, : spec.n_shot], generator)
        query_rows, query_y = _shuffled(rows[:, :, spec.n_shot :], generator)
        return TaskBatch(self._read(support_rows), support_y, self._read(query_rows), query_y)

    def draw_examples(self, n: int, generator: Generator) -> Examples:
        """Return `n` examples, each of a class drawn uniformly."""
        classes = torch.randint(len(self), (n,), generator=generator)
        position = (torch.rand(n, generator=generator) * self.sizes[classes]).long()
        return Examples(self._read(self.table[classes, position]), classes, self.descriptions)

    def _groups_of(self, n_way: int) -> Tensor:
        """Return the numbers of the groups of so many classes or more."""
        if self.groups is None:
            return torch.empty(0, dtype=torch.int64)
        return torch.nonzero(self.groups.bincount() >= n_way).flatten()

    def _kept_within(self, draws: Tensor, spec: TaskSpec, generator: Generator) -> Tensor:
        """Return the draws with the classes outside a group, drawn uniformly, put last: for a share of the tasks."""
        assert self.groups is not None, "check refuses tasks within groups where there are none"
        groups = self._groups_of(spec.n_way)
        group = groups[torch.randint(len(groups), (len(draws), 1), generator=generator)]  # (n_tasks, 1)
        kept_within = torch.rand(len(draws), 1, generator=generator) < spec.within
        return draws.masked_fill(kept_within & (self.groups != group), -1.0)

    def _read(self, rows: Tensor) -> Tensor:
        # Many times faster than self.sources[rows], which copies pixel by pixel.
        examples = self.sources.index_select(0, rows.flatten()).view(*rows.shape, *self.sources.shape[1:])
        if examples.dtype != torch.uint8:
            return examples
        # NumPy's large arrays stand on huge pages: thousands of page faults less a call, a fifth of its time.
        made = torch.from_numpy(np.empty(examples.shape, np.float32))
        return made.copy_(examples).div_(255)


def in_folds(units: Mapping[str, int], n: int, what: str) -> list[set[str]]:
    """Return the names of `units` in `n` folds of about as many classes each, of which `units` says how many one has.

    Raises UserError where there are fewer units than folds.
    """
    if len(units) < n:
        raise UserError(
            f"evaluation.folds is {n} and the train and validation pools have {len(units)} {what} together; set it to "
            f"{len(units)} or less"
            if len(units) > 1
            else f"evaluation.folds needs two {what} or more in the train and validation pools; leave it out"
        )
    folds: list[set[str]] = [set() for _ in range(n)]
    for unit in sorted(units, key=lambda unit: (-units[unit], unit)):
        min(folds, key=lambda fold: sum(units[one] for one in fold)).add(unit)
    return folds


def draw_tasks(sampler: TaskSampler, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
    """Return tasks of any sampler as `spec` says: streams and unequal shots are made here, of what the sampler draws.

    Unequal shots are drawn uniformly, one number for each label, which all tasks of the batch share. The order of what
    is left is uniform, as that of a stream is.
    """
    if not (spec.stream or spec.unequal):
        return sampler.draw(pool, spec, n_tasks, generator)
    plain = replace(spec, least_shot=0, unequal=False, stream=False)
    if not spec.stream:
        batch = sampler.draw(pool, plain, n_tasks, generator)
        support_x, support_y = _kept(batch.support_x, batch.support_y, spec, generator)
        return replace(batch, support_x=support_x, support_y=support_y)
    batch = sampler.draw(pool, replace(plain, n_shot=spec.n_shot - 1, n_query=1), n_tasks, generator)
    x = torch.cat([batch.support_x, batch.query_x], 1)
    y = torch.cat([batch.support_y, batch.query_y], 1)
    x, y = _kept(x, y, spec, generator)
    return TaskBatch(x, y, x, y)


def _kept(x: Tensor, y: Tensor, spec: TaskSpec, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the examples (n_tasks, n, …) in a new order, with unequal shots without those beyond their label's."""
    n_tasks, n = y.shape[:2]
    order = torch.rand(n_tasks, n, generator=generator)
    if spec.unequal:
        shots = torch.randint(spec.least_shot, spec.n_shot + 1, (spec.n_way,), generator=generator)
        order = order.masked_fill(presentations(y) > shots[y], 2.0)  # behind all others, which are below 1
        n = int(shots.sum())
    rows = order.argsort(1)[:, :n] + y.shape[1] * torch.arange(n_tasks)[:, None]
    kept = (part.flatten(0, 1).index_select(0, rows.flatten()).view(n_tasks, n, *part.shape[2:]) for part in (x, y))
    return next(kept), next(kept)


def presentations(y: Tensor) -> Tensor:
    """Return how often each label of sequences (…, n) has been seen, itself included: 1 at a class's first example."""
    return (y[..., :, None] == y[..., None, :]).tril().sum(-1)


def check_sizes(pool: Pool, sizes: Sequence[int], spec: TaskSpec) -> None:
    """Raise UserError, with numbers that work, where classes of these sizes cannot give tasks of this size."""
    if not sizes:
        raise UserError(f"the {pool} pool has no classes; give it {spec.n_way} or more for {spec.n_way}-way tasks")
    if len(sizes) < spec.n_way:
        raise UserError(
            f"{spec.n_way}-way tasks need {spec.n_way} classes and the {pool} pool has {len(sizes)}; "
            f"set tasks.n_way to {len(sizes)} or less, or give the pool more classes"
        )
    smallest, need = min(sizes), spec.n_drawn
    if smallest < need and spec.stream:
        raise UserError(
            f"a stream of {need} presentations of each class needs {need} examples of it and the smallest class of the "
            f"{pool} pool has {smallest}; set tasks.n_shot to {smallest} or less, or leave that class out"
        )
    if smallest < need:
        left = smallest - (need - spec.n_query)
        remedy = (
            f"set tasks.n_query to {left} or less with {spec.n_shot} shots"
            if left > 0
            else f"set tasks.n_shot to {smallest - 1} or less and leave a query"
        )
        raise UserError(
            f"{spec.n_shot} shots and {spec.n_query} queries need {need} examples of every class and the smallest "
            f"class of the {pool} pool has {smallest}; {remedy}, or leave that class out"
        )


def _shuffled(rows: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the rows (n_tasks, n_way, n) of each task in a random order, with their labels, (n_tasks, n_way * n).

    Tasks in class order would let a learner read labels off positions (meta-dataset issue 54: four points too good).
    """
    labels = torch.arange(rows.shape[1])[None, :, None].expand_as(rows).flatten(1)
    order = torch.rand(labels.shape, generator=generator).argsort(1)
    return rows.flatten(1).gather(1, order), labels.gather(1, order)
