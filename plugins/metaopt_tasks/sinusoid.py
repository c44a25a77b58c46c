"""Sinusoid regression (Finn, Abbeel & Levine, 2017, "Model-Agnostic Meta-Learning", arXiv:1703.03400, section 5.1)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import Pool, TaskBatch, TaskSampler, TaskSpec


class Sinusoid(TaskSampler):
    """Fit y = amplitude · sin(x − phase) from a few points: amplitude and phase are the task's, x each point's.

    Amplitude, phase and x are uniform between their bounds, as in the authors' code. The three pools are separate
    draws of this one distribution, told apart by the generators that the caller draws them with and by nothing else.
    """

    name = "sinusoid"
    kind = "regression"

    @dataclass(frozen=True)
    class Config:
        """The distribution of tasks: lower and upper bounds, by default those of the paper."""

        amplitude: tuple[float, float] = (0.1, 5.0)
        phase: tuple[float, float] = (0.0, math.pi)
        """In radians."""
        x: tuple[float, float] = (-5.0, 5.0)
        """In radians."""
        noise: float = 0.0
        """Standard deviation of the normal noise on every target, support and query."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where bounds are not two finite numbers in order, or the noise is negative."""
        check_distribution(config, ("amplitude", "phase", "x"))
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        """Return the sizes of a task with so many support and query points; it has no classes, so one "way"."""
        return TaskSpec(self.kind, x_shape=(1,), n_way=1, n_shot=n_shot, n_query=n_query, y_size=1)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
            low, high = bounds
            return low + (high - low) * torch.rand(*shape, generator=generator)

        amplitude = uniform(self.config.amplitude, n_tasks, 1, 1)
        phase = uniform(self.config.phase, n_tasks, 1, 1)
        x = uniform(self.config.x, n_tasks, spec.n_shot + spec.n_query, 1)
        # Drawn even where there is none, so that tasks differ in their noise only, whatever its size.
        noise = self.config.noise * torch.randn(x.shape, generator=generator)
        y = amplitude * (x - phase).sin() + noise  # (n_tasks, n_shot + n_query, 1)
        k = spec.n_shot
        return TaskBatch(support_x=x[:, :k], support_y=y[:, :k], query_x=x[:, k:], query_y=y[:, k:])


def check_distribution(config: Any, intervals: Iterable[str]) -> None:
    """Raise UserError where fields of `config` that are intervals are none, or its `noise` is negative."""
    for key in intervals:
        if not _is_interval(bounds := getattr(config, key)):
            given = list(bounds) if isinstance(bounds, tuple) else bounds
            raise UserError(f"tasks.{key} is {given}; write two finite numbers, the lower first, such as [0.1, 5.0]")
    if not 0 <= config.noise < math.inf:
        raise UserError(f"tasks.noise is {config.noise}; set this standard deviation to 0 (no noise) or more")


def _is_interval(bounds: object) -> bool:
    """Whether these are two finite numbers, the lower first; a study file may have given anything."""
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        return False
    numbers = [n for n in bounds if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    return len(numbers) == 2 and numbers[0] <= numbers[1]
