"""Regression of curves of several families: a learner must find out which family a task is of, and then its parameters.

Sinusoids and lines mixed: Finn, Xu & Levine, 2018, "Probabilistic Model-Agnostic Meta-Learning" (arXiv:1806.02817),
whose bounds are the defaults; steps beside them, which no smooth network fits at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metaopt.errors import UserError, unknown
from metaopt.task import Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt_tasks.sinusoid import check_distribution

FAMILIES = ("sinusoid", "linear", "step")
INTERVALS = ("x", "amplitude", "phase", "slope", "intercept", "edge", "level")


class Curves(TaskSampler):
    """Fit a sinusoid, a line or a step from a few points, all parameters uniform between their bounds.

    The three pools are separate draws of this one distribution, told apart by the generators that the caller draws them
    with and by nothing else.
    """

    name = "curves"
    kind = "regression"

    @dataclass(frozen=True)
    class Config:
        """The distribution of tasks: which family, and lower and upper bounds of what a task draws."""

        family: str = "mixed"
        """`sinusoid`, `linear`, `step`, or `mixed`: each task of one of the three, each as often."""
        x: tuple[float, float] = (-5.0, 5.0)
        amplitude: tuple[float, float] = (0.1, 5.0)
        """Sinusoids are amplitude · sin(x − phase)."""
        phase: tuple[float, float] = (0.0, math.pi)
        slope: tuple[float, float] = (-3.0, 3.0)
        """Lines are slope · x + intercept."""
        intercept: tuple[float, float] = (-3.0, 3.0)
        edge: tuple[float, float] = (-2.5, 2.5)
        """Steps are one level below the edge and another from it on."""
        level: tuple[float, float] = (-3.0, 3.0)
        noise: float = 0.0
        """Standard deviation of the normal noise on every target, support and query."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where there is no such family, bounds are no interval, or the noise is negative."""
        if config.family not in (*FAMILIES, "mixed"):
            raise UserError(f"tasks.family: {unknown('family', config.family, (*FAMILIES, 'mixed'))}")
        check_distribution(config, INTERVALS)
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        """Return the sizes of a task with so many support and query points; it has no classes, so one "way"."""
        return TaskSpec(self.kind, x_shape=(1,), n_way=1, n_shot=n_shot, n_query=n_query, y_size=1)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
            low, high = bounds
            return low + (high - low) * torch.rand(n_tasks, *shape, generator=generator)

        c = self.config
        x = uniform(c.x, spec.n_shot + spec.n_query, 1)  # (n_tasks, n_points, 1)
        # All are drawn for every task, so that one seed gives the same lines in every family.
        sinusoid = uniform(c.amplitude, 1, 1) * (x - uniform(c.phase, 1, 1)).sin()
        line = uniform(c.slope, 1, 1) * x + uniform(c.intercept, 1, 1)
        step = torch.where(x < uniform(c.edge, 1, 1), uniform(c.level, 1, 1), uniform(c.level, 1, 1))
        family = torch.randint(len(FAMILIES), (n_tasks,), generator=generator)
        if c.family != "mixed":
            family = torch.full_like(family, FAMILIES.index(c.family))
        y = torch.stack([sinusoid, line, step])[family, torch.arange(n_tasks)]  # (n_tasks, n_points, 1)
        y = y + c.noise * torch.randn(y.shape, generator=generator)
        k = spec.n_shot
        return TaskBatch(support_x=x[:, :k], support_y=y[:, :k], query_x=x[:, k:], query_y=y[:, k:])
