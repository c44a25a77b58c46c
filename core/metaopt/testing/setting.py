"""Small settings in which learners are checked: a few tasks of vectors and of pictures, and encoders for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import Examples, TaskBatch, TaskSpec
from metaopt.tune import Choice, Fixed, conditions, declared


class Skipped(Exception):  # noqa: N818 - not an error
    """A check that does not apply, and why."""


SPECS = (
    TaskSpec("classification", (6,), n_way=3, n_shot=2, n_query=4, n_train_classes=5),
    TaskSpec("classification", (1, 16, 16), n_way=3, n_shot=2, n_query=4, n_train_classes=5),
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

    def tasks(self, n: int = 3, seed: int = 0) -> TaskBatch:
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
        for size in (spec.n_shot, spec.n_query):
            y = torch.arange(spec.n_way).repeat(size).expand(n, -1)  # (n, n_way * size)
            centre = means[classes.gather(1, y)]
            noise = torch.randn(centre.shape, generator=draw, dtype=torch.float64)
            sets += [centre + 0.1 * noise, y]
        return TaskBatch(*sets)

    def examples(self, n: int = 12, seed: int = 0) -> Examples:
        """Return labelled examples of the same classes."""
        draw = Generator().manual_seed(seed)
        means = _means(self.spec)
        y = torch.randint(len(means), (n,), generator=draw)
        noise = torch.randn(n, *self.spec.x_shape, generator=draw, dtype=torch.float64)
        return Examples(means[y] + 0.1 * noise, y)

    def batch(self, seed: int = 0) -> TaskBatch | Examples:
        """Return what an outer step of this learner is given."""
        return self.examples(seed=seed) if self.cls.trains_on == "examples" else self.tasks(seed=seed)


def settings(cls: type[Learner]) -> list[Setting]:
    """Return the settings that suit a learner; those that it refuses with a UserError are left out."""
    found = []
    for spec in SPECS:
        setting = Setting(cls, spec)
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


def corners(config: type) -> Iterator[dict[str, Any]]:
    """Yield settings of a Config in which one hyperparameter stands at an end of its range, or at an option."""
    for name, parameter in declared(config).items():
        needs = dict(conditions(config)[name])
        if isinstance(parameter, Choice):
            yield from ({**needs, name: option} for option in parameter.options)
        elif not isinstance(parameter, Fixed):
            yield from ({**needs, name: end} for end in (parameter.low, parameter.high))


def _means(spec: TaskSpec) -> Tensor:
    draw = Generator().manual_seed(1)
    return 2 * torch.randn(spec.n_train_classes, *spec.x_shape, generator=draw, dtype=torch.float64)
