"""A plugin written against the first version of every hook, kept as it was: it must go on working.

Its wheel stands beside it. One nearest neighbour (Cover & Hart, 1967, doi:10.1109/TIT.1967.1053964).
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import ClassPool, Examples, Pool, TaskBatch, TaskSampler, TaskSpec


class Nearest(Learner):
    """Score a class by the cosine similarity of its support example that is closest to the query."""

    name = "nearest"
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        temperature: float = tune.real(0.01, 1.0, log=True, default=0.1)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support = normalize(self.encoder(support_x), dim=-1)  # (n_support, n_features)
        query = normalize(self.encoder(query_x), dim=-1)  # (n_queries, n_features)
        similarity = query @ support.T  # (n_queries, n_support)
        member = support_y[:, None] == torch.arange(self.spec.n_way, device=support_y.device)  # (n_support, n_way)
        closest = torch.where(member, similarity[:, :, None], -torch.inf).amax(1)  # (n_queries, n_way)
        return closest / self.config.temperature


class Directions(TaskSampler):
    """Tell random directions of the plane apart."""

    name = "directions"
    kind = "classification"
    encoder = "doubled"

    @dataclass(frozen=True)
    class Config:
        classes: int = 12
        blur: float = 0.1

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pools: dict[str, ClassPool] = {}
        for seed, pool in enumerate(("train", "validation", "test")):
            draw = Generator().manual_seed(seed)
            means = normalize(torch.randn(config.classes, 1, 2, generator=draw), dim=-1)
            points = means + config.blur * torch.randn(config.classes, 20, 2, generator=draw)
            rows = torch.arange(config.classes * 20).view(config.classes, 20)
            self.pools[pool] = ClassPool(points.flatten(0, 1), list(rows))

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, (2,), n_way, n_shot, n_query, n_train_classes=self.config.classes)

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        self.pools[pool].check(pool, spec)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self.pools[pool].draw(spec, n_tasks, generator)

    def examples(self, n: int, generator: Generator) -> Examples:
        return self.pools["train"].draw_examples(n, generator)


class Doubled(Encoder):
    """A linear map to twice as many features."""

    name = "doubled"

    def __init__(self, x_shape: tuple[int, ...], config: Encoder.Config) -> None:
        super().__init__(x_shape, config)
        self.n_features = 2 * prod(x_shape)
        self.layer = nn.Linear(prod(x_shape), self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(x.flatten(1))
        return features


class Errors(MetaObjective):
    """The share of queries that are answered wrongly."""

    name = "errors"
    direction = "minimize"
    kinds = ("classification",)
    worst = 1.0

    def score(self, outcome: Outcome) -> Tensor:
        return (outcome.predictions.argmax(-1) != outcome.query_y).float().mean(1)  # (n_tasks,)


@hookimpl
def register_task_samplers() -> list[type[TaskSampler]]:
    """Return the task sampler of this plugin."""
    return [Directions]


@hookimpl
def register_encoders() -> list[type[Encoder]]:
    """Return the encoder of this plugin."""
    return [Doubled]


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the learner of this plugin."""
    return [Nearest]


@hookimpl
def register_meta_objectives() -> list[type[MetaObjective]]:
    """Return the meta-objective of this plugin."""
    return [Errors]


@hookimpl
def trial_finished(result) -> None:
    """Note a trial in the file that NEAREST_TRIALS names."""
    if path := os.environ.get("NEAREST_TRIALS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{result.number} {result.learner} {result.state}\n")
