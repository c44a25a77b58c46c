"""Small settings in which learners are checked: a few tasks of vectors and of pictures, and encoders for them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import Examples, TaskBatch, TaskSpec
from metaopt.tune import Choice, Integer, Real, conditions, declared


class Skipped(Exception):  # noqa: N818 - not an error
    """A check that does not apply, and why."""


SPECS = (
    TaskSpec("classification", (6,), n_way=3, n_shot=2, n_query=4, n_train_classes=5),
    TaskSpec("classification", (1, 16, 16), n_way=3, n_shot=1, n_query=4, n_train_classes=5),
    TaskSpec("classification", (6,), n_way=3, n_shot=1, n_query=4, n_train_classes=5, description_shape=(4,)),
    TaskSpec("regression", (2,), n_way=1, n_shot=6, n_query=8, y_size=2),
)


class SmallEncoder(Encoder):
    """Two smooth layers, so that finite differences and gradients are well-behaved: dense, or convolutions."""

    name = "small"

    def __init__(self, x_shape: tuple[int, ...], config: Any = None) -> None:
        super().__init__(x_shape, config)
        layers: list[nn.Module]
        if len(x_shape) == 3:
            self.map_shape = (8, x_shape[1] // 4, x_shape[2] // 4)
            layers = [
                nn.Conv2d(x_shape[0], 8, 3, 2, 1),
                nn.GroupNorm(1, 8),
                nn.Tanh(),
                nn.Conv2d(8, 8, 3, 2, 1),
                nn.Tanh(),
            ]
        else:
            self.map_shape = None
            layers = [nn.Linear(prod(x_shape), 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.n_features = prod(self.map_shape) if self.map_shape else 8

    def maps(self, x: Tensor) -> Tensor:
        return super().maps(x) if self.map_shape is None else self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features.flatten(1)


@dataclass(frozen=True)
class Setting:
    """A learner in float64 that was built in one of the SPECS."""

    cls: type[Learner]
    spec: TaskSpec

    def build(self, seed: int = 0, **config: Any) -> Learner:
        """Return a fresh learner; the same seed gives the same parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder: nn.Module = SmallEncoder(self.spec.x_shape) if self.cls.uses_encoder else nn.Identity()
            return self.cls(self.spec, encoder, self.cls.Config(**config)).double()

    def tasks(self, n: int = 3, seed: int = 0, noise: float = 0.1) -> TaskBatch:
        """Return tasks in float64 that can be learned: classes lie around means, targets are linear in x."""
        draw = Generator().manual_seed(seed)
        spec = self.spec
        if spec.kind == "regression":
            slopes = 1 + 0.3 * torch.randn(n, *spec.x_shape, spec.y_size, generator=draw, dtype=torch.float64)
            x = torch.randn(n, spec.n_shot + spec.n_query, *spec.x_shape, generator=draw, dtype=torch.float64)
            y = x @ slopes
            return TaskBatch(x[:, : spec.n_shot], y[:, : spec.n_shot], x[:, spec.n_shot :], y[:, spec.n_shot :])
        means = _means(spec)
        classes = torch.stack([torch.randperm(len(means), generator=draw)[: spec.n_way] for _ in range(n)])
        sets = []
        for size, of_class in ((spec.n_shot, _descriptions(spec)), (spec.n_query, means)):
            y = torch.arange(spec.n_way).repeat(size).expand(n, -1)  # (n, n_way * size)
            centre = of_class[classes.gather(1, y)]
            sets += [centre + noise * torch.randn(centre.shape, generator=draw, dtype=torch.float64), y]
        return TaskBatch(*sets)

    def examples(self, n: int = 12, seed: int = 0, noise: float = 0.1) -> Examples:
        """Return labelled examples of the same classes."""
        draw = Generator().manual_seed(seed)
        means = _means(self.spec)
        y = torch.randint(len(means), (n,), generator=draw)
        x = means[y] + noise * torch.randn(n, *self.spec.x_shape, generator=draw, dtype=torch.float64)
        return Examples(x, y, _descriptions(self.spec) if self.spec.description_shape else None)

    def batch(self, n_tasks: int = 3, seed: int = 0, noise: float = 0.1) -> TaskBatch | Examples:
        """Return what an outer step of this learner is given."""
        if self.cls.trains_on == "examples":
            return self.examples(4 * n_tasks, seed, noise)
        return self.tasks(n_tasks, seed, noise)


def settings(cls: type[Learner]) -> list[Setting]:
    """Return the settings that suit a learner; those that it refuses with a UserError are left out."""
    found = []
    for spec in SPECS:
        setting = Setting(cls, spec)
        if (cls.supports == "descriptions") != bool(spec.description_shape):
            continue
        if spec.kind not in cls.kinds or (spec.kind == "regression" and cls.trains_on == "examples"):
            continue
        try:
            setting.build()
        except UserError:
            continue
        found.append(setting)
    assert found, (
        f"{cls.__qualname__} refuses vectors, pictures and regression alike; it must learn one of them, of shapes "
        f"{', '.join(str(spec.x_shape) for spec in SPECS)}"
    )
    return found


def options(config: type) -> Iterator[dict[str, Any]]:
    """Yield the defaults of a Config, and one setting for each further option: each path through the code."""
    yield {}
    for name, parameter in declared(config).items():
        if isinstance(parameter, Choice):
            yield from ({**_needs(config, name), name: option} for option in parameter.options[1:])


def corners(config: type) -> Iterator[dict[str, Any]]:
    """Yield the settings of `options`, and those in which one hyperparameter stands at an end of its range."""
    yield from options(config)
    for name, parameter in declared(config).items():
        if isinstance(parameter, Real | Integer):
            yield from ({**_needs(config, name), name: end} for end in (parameter.low, parameter.high))


def random_states() -> dict[str, object]:
    """Return the states of the global generators by name, to be compared."""
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy": str(np.random.get_state()),
        "Python": random.getstate(),
    }


def _needs(config: type, name: str) -> dict[str, Any]:
    """Return what must be set for a hyperparameter to count, and for that to count, and so on."""
    needs: dict[str, Any] = {}
    for other, value in conditions(config)[name].items():
        needs |= _needs(config, other) | {other: value}
    return needs


def _means(spec: TaskSpec) -> Tensor:
    draw = Generator().manual_seed(1)
    return 2 * torch.randn(spec.n_train_classes, *spec.x_shape, generator=draw, dtype=torch.float64)


def _descriptions(spec: TaskSpec) -> Tensor:
    """Return what support sets show of each class: its mean, or a description that tells its mean."""
    means = _means(spec)
    if not spec.description_shape:
        return means
    map_ = torch.randn(means[0].numel(), *spec.description_shape, generator=Generator().manual_seed(2)).to(means)
    return means.flatten(1) @ map_
