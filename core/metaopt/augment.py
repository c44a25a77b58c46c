"""Augmentation of tasks: more classes and more examples than there are, made while meta-training.

What is done to a class as a whole (joining, turns, slant, stretch) makes it another class, so it is the same for its
support and query examples; what is done to an example (jitter, elastic noise, stroke width) leaves its class what it
is, so it is drawn for each. Every part is off by default; a study searches those that it names under `augment:`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate

from metaopt import tune
from metaopt.errors import UserError
from metaopt.task import Examples, TaskBatch

GRID = 6  # nodes along a side, between which elastic noise is smooth
PICTURES = ("join", "turn", "slant", "stretch", "rotate", "scale", "shift", "elastic", "stroke")
"""The fields that only pictures have use for, while meta-training."""
DIHEDRAL = 8  # quarter turns, each mirrored or not


@dataclass(frozen=True)
class Augment:
    """How strongly tasks are augmented; at 0 not at all.

    Strengths are standard deviations of normal draws unless said otherwise, lengths shares of the picture. What moves
    in from beyond a picture's border is 0. Noise, dropout and copies are for vectors, too, all else for pictures alone.
    """

    join: float = tune.real(0.0, 1.0, default=0.0)
    """The share of tasks whose classes are joined in a ring, each with the next: two pictures side by side, or one
    above the other, are one of a new class."""
    turn: str = tune.choice("none", "task", "class")
    """Turns all classes of a task alike by a multiple of 90°, mirrored or not, or each class by one of its own."""
    slant: float = tune.real(0.0, 0.5, default=0.0)
    """Shears all pictures of a task alike."""
    stretch: float = tune.real(0.0, 0.5, default=0.0)
    """Stretches all pictures of a task alike, in height and width apart; of the logarithm."""
    rotate: float = tune.real(0.0, 45.0, default=0.0)
    """Rotates each picture by up to so many degrees, uniformly."""
    scale: float = tune.real(0.0, 0.5, default=0.0)
    """Scales each picture; of the logarithm."""
    shift: float = tune.real(0.0, 0.3, default=0.0)
    """Moves each picture by up to so much, uniformly, both ways apart."""
    elastic: float = tune.real(0.0, 0.1, default=0.0)
    """Moves the nodes of a coarse grid over each picture, smoothly in between."""
    stroke: float = tune.real(0.0, 1.0, default=0.0)
    """Thickens or thins lines: by up to so much of the way to the brightest, or darkest, pixel beside each."""
    noise: float = tune.real(0.0, 1.0, default=0.0)
    """Adds normal noise to every number of an example: on pictures and vectors."""
    dropout: float = tune.real(0.0, 0.9, default=0.0)
    """Sets each feature of an example to 0 with this probability, and scales up the others."""
    test_turns: int = tune.choice(1, 4, 8)
    """At meta-test the learner learns the task in so many turns of it, four by 90° each and then their mirror images,
    and its probabilities are averaged: as several learners' would be, if it was trained on turned tasks."""
    test_copies: int = tune.integer(1, 16, log=True, default=1)
    """Likewise from so many views of the task (of each turn), the first as it is, the others with examples jittered."""

    def check(self, x_shape: tuple[int, ...]) -> None:
        """Raise UserError where something is on that does not suit examples of this shape."""
        if (self.of_pictures or self.test_turns > 1) and len(x_shape) != 3:
            on = next((name for name in PICTURES if getattr(self, name) not in {0.0, "none"}), "test_turns")
            raise UserError(
                f"augment.{on} is for pictures and the examples have shape {x_shape}; leave it out, or take noise or "
                "dropout"
            )
        if (self.turn != "none" or self.test_turns > 1) and x_shape[1] != x_shape[2]:
            on = "turn" if self.turn != "none" else "test_turns"
            raise UserError(
                f"augment.{on} is for square pictures and these are {x_shape[1]} × {x_shape[2]}; leave it out"
            )

    @property
    def of_pictures(self) -> bool:
        """Whether anything is on that is only for pictures."""
        return any(getattr(self, name) not in {0.0, "none"} for name in PICTURES)

    @property
    def active(self) -> bool:
        """Whether anything is on."""
        return self.of_pictures or bool(self.noise or self.dropout)

    def batch(self, batch: TaskBatch, generator: Generator) -> TaskBatch:
        """Return augmented tasks of the same labels. The draws are the generator's, on the CPU."""
        if batch.support_x.shape[2:] != batch.query_x.shape[2:]:  # descriptions of classes, not examples
            queries = self._examples(batch.query_x.flatten(0, 1), generator, None)
            return replace(batch, query_x=queries.view_as(batch.query_x))
        x = torch.cat([batch.support_x, batch.query_x], 1)  # (n_tasks, n, *x_shape)
        n_tasks, n_support = batch.support_y.shape[:2]
        if self.join and x.ndim == 5 and batch.support_y.ndim == 2:
            x = torch.cat([*_joined(batch, self.join, generator)], 1)
        if self.turn != "none" and x.ndim == 5 and batch.support_y.ndim == 2:
            y = torch.cat([batch.support_y, batch.query_y], 1)  # (n_tasks, n)
            n_way = int(y.max()) + 1 if self.turn == "class" else 1
            turns = torch.randint(DIHEDRAL, (n_tasks, n_way), generator=generator).to(y.device)
            x = _turned(x, turns.gather(1, y) if self.turn == "class" else turns.expand_as(y))
        common = _common(n_tasks, self.slant, self.stretch, generator)
        each = x.shape[1]
        x = self._examples(x.flatten(0, 1), generator, common.repeat_interleave(each, 0)).view_as(x)
        return replace(batch, support_x=x[:, :n_support], query_x=x[:, n_support:])

    def examples(self, examples: Examples, generator: Generator) -> Examples:
        """Return augmented examples: jittered each, but not turned, which would make them others than their labels."""
        return replace(examples, x=self._examples(examples.x, generator, None))

    def views(self, batch: TaskBatch, generator: Generator) -> Iterator[TaskBatch]:
        """Yield the tasks as they are and in other views, for meta-test; in each view all of a task's classes alike."""
        for turn in range(self.test_turns):
            yield (seen := in_turn(batch, turn))
            for _ in range(self.test_copies - 1):
                yield self._jittered(seen, generator)

    def _jittered(self, batch: TaskBatch, generator: Generator) -> TaskBatch:
        """Return tasks whose examples are jittered, their classes left as they are."""
        return replace(self, turn="none", slant=0.0, stretch=0.0).batch(batch, generator)

    def _examples(self, x: Tensor, generator: Generator, common: Tensor | None) -> Tensor:
        """Return examples (n, *x_shape), each jittered; `common` (n, 2, 2) are maps of the plane to begin with."""
        if x.ndim == 4 and self.of_pictures:
            x = self._pictures(x, generator, common)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator).to(x)
        if self.dropout:
            kept = torch.rand(x.shape, generator=generator) >= self.dropout
            x = x * kept.to(x) / (1 - self.dropout)
        return x

    def _pictures(self, x: Tensor, generator: Generator, common: Tensor | None) -> Tensor:
        """Return pictures (n, channels, height, width), each jittered in one resampling."""
        n = len(x)

        def uniform(bound: float, *shape: int) -> Tensor:
            return bound * (2 * torch.rand(n, *shape, generator=generator) - 1)

        moved = (
            self.rotate
            or self.scale
            or self.shift
            or self.elastic
            or (common is not None and self.slant + self.stretch)
        )
        if moved:
            angle = uniform(math.radians(self.rotate))
            size = (self.scale * torch.randn(n, generator=generator)).exp()
            rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
            linear = rotation / size[:, None, None]
            if common is not None:
                linear = linear @ common
            offset = uniform(2 * self.shift, 2, 1)  # the picture is 2 wide: from -1 to 1
            moves = [linear, offset]
            if self.elastic:
                moves.append(2 * self.elastic * torch.randn(n, 2, GRID**2, generator=generator))
            grid = torch.cat(moves, 2) @ _basis(*x.shape[2:])[: sum(part.shape[2] for part in moves)]  # (n, 2, pixels)
            x = grid_sample(x, grid.view(n, 2, *x.shape[2:]).permute(0, 2, 3, 1).to(x), align_corners=False)
        if self.stroke:
            share = uniform(self.stroke, 1, 1, 1).to(x)
            up, down = share.flatten() > 0, share.flatten() < 0
            widened = x.clone()
            widened[up] += share[up] * (_dilated(x[up]) - x[up])
            widened[down] -= share[down] * (-_dilated(-x[down]) - x[down])
            x = widened
        return x


@cache
def _basis(height: int, width: int) -> Tensor:
    """Return by what the numbers of a move are multiplied to say where each pixel comes from, (3 + GRID², pixels).

    The first two stand for the pixel's own place, from -1 to 1, the third for an offset, and the others for a node each
    of the coarse grid, between which a bicubic spline is laid. One product does it for all pictures, as sampling and
    adding grids one by one takes ten times as long.
    """
    down, across = ((2 * torch.arange(side) + 1) / side - 1 for side in (height, width))
    place = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width), torch.ones(height, width)])
    nodes = torch.eye(GRID**2).view(-1, 1, GRID, GRID)
    smooth = interpolate(nodes, (height, width), mode="bicubic", align_corners=True)[:, 0]
    return torch.cat([place, smooth]).flatten(1)


def _dilated(x: Tensor) -> Tensor:
    """Return pictures (n, channels, height, width) with the brightest of the 3 × 3 pixels around each in its place."""
    for side in (2, 3):
        most, length = x.clone(), x.shape[side]
        after, before = most.narrow(side, 1, length - 1), most.narrow(side, 0, length - 1)
        torch.maximum(after, x.narrow(side, 0, length - 1), out=after)
        torch.maximum(before, x.narrow(side, 1, length - 1), out=before)
        x = most
    return x


def _common(n_tasks: int, slant: float, stretch: float, generator: Generator) -> Tensor:
    """Return a map of the plane for each task, (n_tasks, 2, 2): sheared, then stretched in either direction."""
    maps = torch.eye(2).repeat(n_tasks, 1, 1)
    if slant:
        maps[:, 0, 1] = slant * torch.randn(n_tasks, generator=generator)
    if stretch:
        maps = maps * (stretch * torch.randn(n_tasks, 2, 1, generator=generator)).exp()
    return maps


def _joined(batch: TaskBatch, share: float, generator: Generator) -> Iterator[Tensor]:
    """Yield support and query pictures (n_tasks, n, channels, height, width), in a share of tasks those of two classes.

    The k-th picture of a class is joined with the k-th of the class after it in the ring.
    """
    n_tasks, n_way = len(batch.support_y), int(batch.support_y.max()) + 1
    chosen, across = torch.rand(2, n_tasks, generator=generator) < torch.tensor([[share], [0.5]])
    ring = torch.rand(n_tasks, n_way, generator=generator).argsort(1)
    after = torch.empty_like(ring).scatter_(1, ring, ring.roll(1, 1)).to(batch.support_y.device)  # (n_tasks, n_way)
    for x, y in ((batch.support_x, batch.support_y), (batch.query_x, batch.query_y)):
        result = x.clone()
        for task in torch.nonzero(chosen).flatten().tolist():
            pair = torch.stack([x[task], x[task][_like(y[task], after[task])]])  # (2, n, channels, height, width)
            height, width = x.shape[3:]
            sides = ((height, width // 2), (height, width - width // 2))
            if not across[task]:
                sides = ((height // 2, width), (height - height // 2, width))
            parts = [adaptive_avg_pool2d(part, side) for part, side in zip(pair, sides, strict=True)]
            result[task] = torch.cat(parts, 3 if across[task] else 2)
        yield result


def _like(y: Tensor, after: Tensor) -> Tensor:
    """Return for each of the examples with labels y (n,) the place of one of the class after its own, (n,).

    The k-th of its class is given the k-th, counted anew from the first where there are fewer.
    """
    is_of = y[:, None] == torch.arange(len(after), device=y.device)  # (n, n_way)
    rank = is_of.long().cumsum(0)[torch.arange(len(y)), y] - 1
    places = is_of.long().sort(stable=True, dim=0, descending=True).indices  # (n, n_way), those of a class first
    like: Tensor = places[rank % is_of.sum(0)[after[y]], after[y]]
    return like


def turned(x: Tensor, turn: int) -> Tensor:
    """Return square pictures (..., side, side) turned by a multiple of 90°, and mirrored after that from 4 on."""
    x = x.rot90(turn % 4, (-2, -1))
    return x.flip(-1) if turn >= 4 else x


def in_turn(batch: TaskBatch, turn: int) -> TaskBatch:
    """Return tasks in one of their turns, the first being the tasks as they are; descriptions of classes stay so."""
    if not turn:
        return batch
    support_x = turned(batch.support_x, turn) if batch.support_x.ndim == 5 else batch.support_x
    return replace(batch, support_x=support_x, query_x=turned(batch.query_x, turn))


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Return square pictures (n_tasks, n, channels, side, side), each turned as `turns` (n_tasks, n) say."""
    result = torch.empty_like(x)
    for turn in range(DIHEDRAL):
        which = turns == turn
        result[which] = turned(x[which], turn)
    return result
