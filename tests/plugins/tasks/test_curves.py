"""Curves are of the family that is asked for, between the bounds that are asked for, or of each family alike."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare, kstest  # type: ignore[import-untyped]
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt_tasks.curves import FAMILIES, Curves


def load(**config: Any) -> Curves:
    return Curves(Curves.Config(**config))


def points(sampler: Curves, n_tasks: int, n_points: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x and y (n_tasks, n_points) of tasks, support and query together, sorted by x."""
    spec = sampler.spec(1, n_points // 2, n_points - n_points // 2)
    batch = sampler.draw("train", spec, n_tasks, Generator().manual_seed(seed))
    x = torch.cat([batch.support_x, batch.query_x], 1)[:, :, 0].double()
    y = torch.cat([batch.support_y, batch.query_y], 1)[:, :, 0].double()
    order = x.argsort(1)
    return x.gather(1, order), y.gather(1, order)


def residual(x: Tensor, y: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The largest residual (n_tasks,) of the least-squares fit of each task by a basis, and its coefficients."""
    design = torch.stack(basis, 2)  # (n_tasks, n_points, n_basis)
    found = torch.linalg.lstsq(design, y[:, :, None]).solution
    return (design @ found - y[:, :, None]).abs().amax((1, 2)), found[:, :, 0]


def family_of(x: Tensor, y: Tensor) -> Tensor:
    """The number (n_tasks,) of the family that each task's points lie on exactly."""
    sine = residual(x, y, [x.sin(), x.cos()])[0] < 1e-4
    line = residual(x, y, [x, torch.ones_like(x)])[0] < 1e-4
    jumps = (y.diff(dim=1).abs() > 1e-9).sum(1)
    step = jumps <= 1
    assert (sine.int() + line.int() + step.int() == 1).all()
    return line * 1 + step * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_curves_of_its_kind_alone(family: str) -> None:
    x, y = points(load(family=family), 300)
    assert (family_of(x, y) == FAMILIES.index(family)).all()


def test_mixed_gives_each_family_as_often() -> None:
    found = family_of(*points(load(), 1500))
    assert chisquare(torch.bincount(found, minlength=3).numpy()).pvalue > 1e-3


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert low - 1e-4 <= values.min()
    assert values.max() <= high + 1e-4
    assert kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3


def test_lines_have_slopes_and_intercepts_uniform_between_their_bounds() -> None:
    x, y = points(load(family="linear", slope=(-1.0, 2.0), intercept=(3.0, 4.0)), 2000)
    _, found = residual(x, y, [x, torch.ones_like(x)])
    assert_uniform(found[:, 0], -1, 2)
    assert_uniform(found[:, 1], 3, 4)


def test_sinusoids_have_amplitudes_and_phases_uniform_between_their_bounds() -> None:
    x, y = points(load(family="sinusoid"), 2000)
    _, found = residual(x, y, [x.sin(), x.cos()])  # a sin(x − p) = a cos p sin x − a sin p cos x
    assert_uniform(found.norm(dim=1), 0.1, 5)
    assert_uniform(torch.atan2(-found[:, 1], found[:, 0]), 0, math.pi)


def test_steps_have_edges_and_levels_uniform_between_their_bounds() -> None:
    x, y = points(load(family="step", edge=(0.0, 2.0), level=(-1.0, 5.0)), 2000, 400)
    assert_uniform(y[:, 0], -1, 5)
    assert_uniform(y[:, -1], -1, 5)
    assert abs(torch.corrcoef(torch.stack([y[:, 0], y[:, -1]]))[0, 1]) < 4 / 2000**0.5
    jump = y.diff(dim=1).abs().argmax(1, keepdim=True)
    before, after = x.gather(1, jump), x.gather(1, jump + 1)
    assert kstest(((before + after) / 2).flatten().numpy(), "uniform", (0, 2)).pvalue > 1e-3


def test_x_is_uniform_and_independent_of_support_and_query() -> None:
    spec = load().spec(1, 5, 5)
    batch = load(x=(1.0, 3.0)).draw("test", spec, 400, Generator().manual_seed(0))
    for x in (batch.support_x, batch.query_x):
        assert_uniform(x.flatten().double(), 1, 3)


def test_noise_is_normal_around_the_curve_and_changes_nothing_else() -> None:
    config: dict[str, Any] = {"slope": (0.0, 3.0)}
    (x, quiet), (again, noisy) = points(load(**config), 200), points(load(noise=0.3, **config), 200)
    assert torch.equal(x, again)
    assert kstest(((noisy - quiet) / 0.3).flatten()[:2000].numpy(), "norm").pvalue > 1e-3


def test_one_seed_gives_a_mixed_task_the_curve_it_has_in_its_family() -> None:
    x, mixed = points(load(), 60)
    found = family_of(x, mixed)
    for number, family in enumerate(FAMILIES):
        same_x, alone = points(load(family=family), 60)
        assert torch.equal(same_x, x)
        assert torch.equal(alone[found == number], mixed[found == number])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"family": "lines"}, r"tasks\.family: no family named 'lines'; did you mean 'linear'"),
        ({"slope": (1.0,)}, r"tasks\.slope is \[1\.0\]; write two finite numbers, the lower first"),
        ({"edge": (2.0, 1.0)}, r"tasks\.edge is \[2\.0, 1\.0\]"),
        ({"level": (0.0, math.inf)}, r"tasks\.level is"),
        ({"x": ("a", 1.0)}, r"tasks\.x is"),
        ({"noise": -1.0}, r"tasks\.noise is -1\.0; set this standard deviation to 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(**config)
