"""What the tasks are, and where the data come from: authors, year, where they are published."""

from dataclasses import dataclass

import torch
from torch import Generator

from metaopt import hookimpl, seeds
from metaopt.errors import UserError
from metaopt.task import POOLS, ClassPool, Examples, Pool, TaskBatch, TaskSampler, TaskSpec


class Placeholder(TaskSampler):
    """Tell groups of points apart: each class is a normal distribution around a centre of its own."""

    name = "placeholder"
    kind = "classification"
    encoder = "mlp"

    @dataclass(frozen=True)
    class Config:
        """Settings, which a study sets under `tasks:` and never searches."""

        features: int = 8
        """Numbers in an example."""
        classes: int = 60
        """Classes of each pool."""
        examples: int = 20
        """Examples of each class."""
        spread: float = 0.5
        """Standard deviation within a class; between the centres it is 1."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Draw the data, or read them. Raises UserError where they are missing or make no sense."""
        super().__init__(config)
        if min(config.features, config.classes, config.examples) < 1:
            raise UserError(f"tasks need features, classes and examples: {config} has none of one; set it to 1 or more")
        self.pools = {pool: self._pool(pool) for pool in POOLS}

    def _pool(self, pool: Pool) -> ClassPool:
        c, draw = (
            self.config,
            seeds.generator(0, "placeholder", pool),
        )  # the same data in every study, whatever its seed
        centres = torch.randn(c.classes, 1, c.features, generator=draw)
        examples = centres + c.spread * torch.randn(c.classes, c.examples, c.features, generator=draw)
        rows = torch.arange(c.classes * c.examples).view(c.classes, c.examples)
        return ClassPool(examples.flatten(0, 1), rows.unbind())

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        """Return the sizes of a task."""
        return TaskSpec(
            self.kind, (self.config.features,), n_way, n_shot, n_query, n_train_classes=len(self.pools["train"])
        )

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        """Raise UserError where the pool cannot give tasks of this size."""
        self.pools[pool].check(pool, spec)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        """Return tasks of the pool; whatever is random comes from the generator."""
        return self.pools[pool].draw(spec, n_tasks, generator)

    def examples(self, n: int, generator: Generator) -> Examples:
        """Return labelled examples of all train classes, for learners that do not train on tasks."""
        return self.pools["train"].draw_examples(n, generator)


@hookimpl
def register_task_samplers() -> list[type[TaskSampler]]:
    """Return the task samplers of this plugin."""
    return [Placeholder]
