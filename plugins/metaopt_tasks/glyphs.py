"""Characters of an invented alphabet, each written by many hands: a few-shot data set that needs no download.

In the manner of Omniglot (Lake, Salakhutdinov & Tenenbaum, 2015, doi:10.1126/science.aab3050), whose characters are
likewise drawn stroke by stroke. A class is a *character*: one to four strokes of a pen, each with its length, its
corners and bends, and the place where it joins the strokes before it. An example is the character in another *hand*:
each of these numbers a little different, and then slant, proportions, size, place and pen width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.task import POOLS, ClassPool, Examples, Pool, TaskBatch, TaskSampler, TaskSpec, check_sizes

MOST = 4 * 10**9  # pixels, a byte each, of one pool
N_STROKES = 4  # at most
N_PARTS = 3  # of a stroke, each an arc; between them the stroke may turn a corner
N_POINTS = 60  # of a stroke, a multiple of N_PARTS: enough that the blots of a thin pen merge into a line
PICTURES_A_CHUNK = 64  # few enough for their blots to stay in cache


class Glyphs(TaskSampler):
    """Tell invented characters apart: pictures (1, size, size), ink 1 on 0.

    Each pool's characters are drawn from a generator of its own, so pools share none and depend neither on each
    other's size nor on which is asked for first. A pool is drawn when its first tasks are: in a second or two.
    """

    name = "glyphs"
    kind = "classification"
    encoder = "conv4"

    @dataclass(frozen=True)
    class Config:
        """The data set: the same settings give the same pictures in every study, whatever the study's seed."""

        size: int = 28
        """Height and width of a picture in pixels; the same hands write at every size."""
        train_classes: int = 1000
        validation_classes: int = 200
        test_classes: int = 200
        examples: int = 20
        """Examples of each class."""
        variation: float = 1.0
        """How much hands differ: 0 is print, all examples of a class alike; 2 is hardly legible."""
        seed: int = 0
        """The data set's own; another one gives other characters."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where a setting makes no sense."""
        least = {"size": 8, "train_classes": 2, "validation_classes": 2, "test_classes": 2, "examples": 2}
        for key, low in least.items():
            if (value := getattr(config, key)) < low:
                raise UserError(f"tasks.{key} is {value}; glyphs need {low} at least, so set it to {low} or more")
        if not 0 <= config.variation <= 2:
            raise UserError(f"tasks.variation is {config.variation}; set it between 0 (print) and 2 (hardly legible)")
        super().__init__(config)
        self._pools: dict[Pool, ClassPool] = {}

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        shape = (1, self.config.size, self.config.size)
        return TaskSpec(self.kind, shape, n_way, n_shot, n_query, n_train_classes=self.config.train_classes)

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        n_classes, each = getattr(self.config, f"{pool}_classes"), self.config.examples
        if (pixels := n_classes * each * self.config.size**2) > MOST:
            raise UserError(
                f"tasks.{pool}_classes is {n_classes}: with {each} examples of {self.config.size} × {self.config.size} "
                f"pixels each that is {pixels:,} pixels; keep a pool below {MOST:,}"
            )
        check_sizes(pool, [each] * n_classes, spec)  # known before anything is drawn

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self._pool(pool).draw(spec, n_tasks, generator)

    def examples(self, n: int, generator: Generator) -> Examples:
        return self._pool("train").draw_examples(n, generator)

    @property
    def pools(self) -> Mapping[Pool, ClassPool]:
        """All pools, those drawn now that no task was asked of yet."""
        return {pool: self._pool(pool) for pool in POOLS}

    def _pool(self, pool: Pool) -> ClassPool:
        if pool not in self._pools:
            members = self._members(pool)
            pictures = _pictures(len(members), self.config, seeds.generator(self.config.seed, "glyphs", pool))
            self._pools[pool] = ClassPool(pictures, members)
        return self._pools[pool]

    def _members(self, pool: Pool) -> Sequence[Tensor]:
        n_classes: int = getattr(self.config, f"{pool}_classes")
        return torch.arange(n_classes * self.config.examples).view(n_classes, -1).unbind()


@dataclass(frozen=True)
class Characters:
    """How the pen moves, stroke by stroke; a stroke that a character lacks has no length and no gap."""

    length: Tensor  # (n, N_STROKES) in any unit: characters are scaled to fit the picture
    corner: Tensor  # (n, N_STROKES, N_PARTS) radians turned at the start of each part; the first is the heading
    bend: Tensor  # (n, N_STROKES, N_PARTS) radians turned along each part
    joint: Tensor  # (n, N_STROKES) where on all earlier strokes this one joins, from 0 to 1
    anchor: Tensor  # (n, N_STROKES) which place on this stroke is joined there, from 0 (its start) to 1
    gap: Tensor  # (n, N_STROKES, 2) from the joint to the anchor: 0 where they touch

    def take(self, rows: Tensor) -> "Characters":
        return Characters(*(getattr(self, field.name)[rows] for field in fields(self)))


def _pictures(n_classes: int, config: Glyphs.Config, generator: Generator) -> Tensor:
    """Return uint8 pictures, (n_classes * examples, 1, size, size), class by class, ink 255 on 0."""
    characters, variation = _characters(n_classes, generator), config.variation
    pictures = torch.empty(n_classes * config.examples, 1, config.size, config.size, dtype=torch.uint8)
    for rows in torch.arange(len(pictures)).tensor_split(math.ceil(len(pictures) / PICTURES_A_CHUNK)):
        hands = _by_another_hand(characters.take(rows // config.examples), variation, generator)
        paths = _on_the_page(_trace(hands), variation, generator)
        pen = 0.05 * (0.3 * variation * (2 * torch.rand(len(rows), generator=generator) - 1)).exp()
        pictures[rows, 0] = _ink(paths, pen, config.size).mul_(255).round_().to(torch.uint8)
    return pictures


def _characters(n: int, generator: Generator) -> Characters:
    def chance(probability: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) < probability

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def either_way(low: float, high: float, *shape: int) -> Tensor:
        return uniform(low, high, *shape) * torch.where(chance(0.5, *shape), 1, -1)

    share = torch.tensor([0.06, 0.32, 0.40, 0.22])  # of characters with one to four strokes
    n_strokes = 1 + torch.multinomial(share, n, replacement=True, generator=generator)[:, None]
    used = torch.arange(N_STROKES) < n_strokes  # (n, N_STROKES)
    length = uniform(0.6, 1.5, N_STROKES) * used
    length[:, 0] = uniform(1.5, 2.2)  # the first stroke is the stem that others join
    # A lone stroke turns more corners than others, or many a character would be the same arc.
    turns = torch.rand(n, N_STROKES, N_PARTS, generator=generator) < torch.where(n_strokes == 1, 0.8, 0.3)[:, :, None]
    corner = either_way(1.0, 2.5, N_STROKES, N_PARTS) * turns
    # Strokes of one character head different ways, or they would lie on top of each other.
    corner[:, :, 0] = torch.cat([uniform(0, 2 * math.pi, 1), either_way(0.8, 2.4, N_STROKES - 1)], 1).cumsum(1)
    round_ones = either_way(0.4, 1.5, N_STROKES, 1) * chance(0.7, N_STROKES, 1)
    bend = round_ones + uniform(-0.8, 0.8, N_STROKES, N_PARTS)
    joint = uniform(0, 1, N_STROKES)
    anchor = uniform(0.3, 0.7, N_STROKES) * chance(0.5, N_STROKES)
    gap = uniform(-0.9, 0.9, N_STROKES, 2) * (chance(0.35, N_STROKES) & used)[:, :, None]
    return Characters(length, corner, bend, joint, anchor, gap)


def _by_another_hand(characters: Characters, variation: float, generator: Generator) -> Characters:
    def noise(deviation: float, like: Tensor) -> Tensor:
        return variation * deviation * torch.randn(like.shape, generator=generator)

    c = characters
    return Characters(
        length=c.length * noise(0.10, c.length).exp(),
        corner=c.corner + noise(0.09, c.corner),
        bend=c.bend + noise(0.13, c.bend),
        joint=(c.joint + noise(0.03, c.joint)).clamp(0, 1),
        anchor=c.anchor,
        gap=c.gap + noise(0.05, c.gap) * (c.length > 0)[:, :, None],
    )


def _trace(characters: Characters) -> Tensor:
    """Return the points along the strokes, (n, N_STROKES, N_POINTS, 2)."""
    steps_a_part = N_POINTS // N_PARTS
    turn = (characters.bend / steps_a_part).repeat_interleave(steps_a_part, dim=2)  # (n, N_STROKES, N_POINTS)
    turn[:, :, ::steps_a_part] += characters.corner
    heading = turn.cumsum(2)
    steps = torch.stack([heading.cos(), heading.sin()], 3) * characters.length[:, :, None, None] / N_POINTS
    paths = steps.cumsum(2)
    row = torch.arange(len(paths))
    for stroke in range(1, N_STROKES):
        earlier = paths[:, :stroke].flatten(1, 2)  # (n, stroke * N_POINTS, 2)
        joint = earlier[row, (characters.joint[:, stroke] * (earlier.shape[1] - 1)).long()]  # (n, 2)
        anchor = paths[row, stroke, (characters.anchor[:, stroke] * (N_POINTS - 1)).long()]
        paths[:, stroke] += (joint + characters.gap[:, stroke] - anchor)[:, None]
    return paths


def _on_the_page(paths: Tensor, variation: float, generator: Generator) -> Tensor:
    """Return the paths rotated, slanted, stretched, scaled and shifted into the page, from -1 to 1 both ways."""

    def noise(deviation: float) -> Tensor:
        return variation * deviation * torch.randn(len(paths), generator=generator)

    angle, slant, width, height = noise(0.07), noise(0.12), noise(0.1).exp(), noise(0.1).exp()
    across = torch.stack([width * angle.cos(), slant - angle.sin()], 1)
    down = torch.stack([angle.sin(), height * angle.cos()], 1)
    paths = paths @ torch.stack([across, down], 2)[:, None]
    low, high = paths.amin((1, 2)), paths.amax((1, 2))  # (n, 2)
    reach = 0.8 * (-0.15 * variation * torch.rand(len(paths), 1, generator=generator)).exp()  # (n, 1)
    shift = min(variation, 1.0) * (0.9 - reach) * (2 * torch.rand(len(paths), 2, generator=generator) - 1)
    half = (high - low) / 2
    scale = reach / torch.maximum(half, 0.5 * half.amax(1, keepdim=True))  # (n, 2); what is flat or thin is stretched
    return (paths - ((low + high) / 2)[:, None, None]) * scale[:, None, None] + shift[:, None, None]


def _ink(paths: Tensor, pen: Tensor, size: int) -> Tensor:
    """Return pictures (n, size, size), ink 1 on 0, of pens (n,) that went along the paths.

    All along its path a pen leaves blots, exp(−distance² / 2 pen²), weighted to add up to 1 along the middle of a
    straight line; paper is white where their sum is low and black where it is high, so a line is about 2.4 pens wide.
    A blot is a product over the two axes and a sum of blots a matrix product, which is many times faster than the
    distance from every pixel to every point.
    """
    pen = pen.clamp(min=1 / size)[:, None]  # (n, 1); thinner than half a pixel, a line would break up
    blots = ((paths[:, :, 1:] + paths[:, :, :-1]) / 2).flatten(1, 2)  # (n, n_blots, 2)
    lengths = (paths[:, :, 1:] - paths[:, :, :-1]).norm(dim=3).flatten(1)  # (n, n_blots)
    weights = lengths / (pen * math.sqrt(2 * math.pi))
    pixels = (torch.arange(size) + 0.5) * 2 / size - 1
    distances = (blots[:, :, :, None] - pixels) / pen[:, :, None, None]  # (n, n_blots, 2, size)
    # exp is ten times slower where its result is denormal, as it is for most pixels: stop well before
    near = distances.square_().mul_(-0.5).clamp_(min=-20).exp_()
    across, down = near[:, :, 0], near[:, :, 1] * weights[:, :, None]
    ink = torch.bmm(down.mT, across)  # (n, size, size)
    return ink.sub_(0.25).div_(0.45).clamp_(0, 1)
