"""Sinusoid tasks are sinusoids, of the paper's distribution, and repeat with their generator."""

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import TaskBatch
from metaopt_tasks.sinusoid import Sinusoid


def draw(n_tasks: int, n_shot: int = 5, n_query: int = 10, seed: int = 0, **settings: Any) -> TaskBatch:
    source = Sinusoid(Sinusoid.Config(**settings))
    return source.draw("train", source.spec(1, n_shot, n_query), n_tasks, Generator().manual_seed(seed))


def waves(x: Tensor) -> Tensor:
    """The basis of all sinusoids of frequency 1: (…, n, 1) to (…, n, 2)."""
    x = x.double()
    return torch.cat([x.sin(), x.cos()], -1)


def coefficients(tasks: TaskBatch) -> Tensor:
    """Least-squares a and b of a · sin x + b · cos x through the support points, (n_tasks, 2)."""
    solution: Tensor = torch.linalg.lstsq(waves(tasks.support_x), tasks.support_y.double()).solution
    return solution.squeeze(2)


def test_the_sinusoid_through_the_support_points_predicts_the_query_points() -> None:
    tasks = draw(200)
    predicted = waves(tasks.query_x) @ coefficients(tasks)[:, :, None]
    torch.testing.assert_close(predicted, tasks.query_y.double(), rtol=0, atol=1e-4)
    assert tasks.query_y.std() > 1


def test_amplitude_and_phase_fill_the_intervals_of_the_paper_evenly() -> None:
    # amplitude · sin(x − phase) = a · sin x + b · cos x with a = amplitude · cos phase, b = −amplitude · sin phase
    a, b = coefficients(draw(4000, n_shot=20)).unbind(1)
    for values, low, high in ((torch.hypot(a, b), 0.1, 5.0), (torch.atan2(-b, a), 0.0, math.pi)):
        quantiles = ((values - low) / (high - low)).sort().values
        expected = (torch.arange(len(values)) + 0.5) / len(values)
        kolmogorov = (quantiles - expected).abs().max() * math.sqrt(len(values))
        assert kolmogorov < 1.95  # passes by chance in 999 of 1000 draws


def test_the_mean_square_of_the_targets_is_the_closed_form() -> None:
    tasks = draw(20_000, n_shot=1, n_query=1)
    squares = tasks.query_y.double().square()
    low, high = 0.1, 5.0
    mean_square_amplitude = (high**3 - low**3) / (3 * (high - low))
    # The mean of sin² is a half over the phase's half period, whatever x is.
    error = (squares.mean() - mean_square_amplitude / 2).abs()
    assert error < 4 * squares.std() / math.sqrt(len(tasks))


def test_x_is_within_its_bounds_and_fills_them() -> None:
    tasks = draw(500)
    for x in (tasks.support_x, tasks.query_x):
        assert x.min() >= -5
        assert x.max() <= 5
        standard_error = 10 / math.sqrt(12) / math.sqrt(x.numel())
        assert x.mean().abs() < 4 * standard_error
        assert x.max() - x.min() > 9.9


def test_bounds_can_be_set_and_fixed() -> None:
    tasks = draw(100, amplitude=(2.0, 2.0), phase=(1.0, 1.0), x=(0.0, 1))
    torch.testing.assert_close(tasks.support_y, 2 * (tasks.support_x - 1).sin())
    assert tasks.query_x.min() >= 0
    assert tasks.query_x.max() <= 1


def test_noise_has_its_standard_deviation_on_support_and_query_targets() -> None:
    clean, noisy = draw(2000), draw(2000, noise=0.3)
    assert torch.equal(clean.support_x, noisy.support_x)
    assert torch.equal(clean.query_x, noisy.query_x)
    for without, with_noise in ((clean.support_y, noisy.support_y), (clean.query_y, noisy.query_y)):
        noise = (with_noise - without).double()
        assert abs(noise.std() - 0.3) < 4 * 0.3 / math.sqrt(2 * noise.numel())  # the deviation of a deviation
        assert noise.mean().abs() < 4 * 0.3 / math.sqrt(noise.numel())


def test_same_generator_state_same_tasks() -> None:
    one, again, other = draw(8), draw(8), draw(8, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), again.tensors(), strict=True))
    assert not torch.equal(one.query_y, other.query_y)


def test_pools_are_told_apart_by_their_generators_alone() -> None:
    source = Sinusoid(Sinusoid.Config())
    spec = source.spec(1, 5, 5)
    train, test = (source.draw(pool, spec, 4, Generator().manual_seed(0)) for pool in ("train", "test"))
    assert torch.equal(train.query_y, test.query_y)


def test_tasks_have_the_shapes_of_their_spec() -> None:
    source = Sinusoid(Sinusoid.Config())
    spec = source.spec(5, 3, 7)
    assert (spec.kind, spec.x_shape, spec.n_way, spec.y_size, spec.n_outputs) == ("regression", (1,), 1, 1, 1)
    tasks = source.draw("test", spec, 6, Generator().manual_seed(0))
    assert tasks.support_x.shape == tasks.support_y.shape == (6, 3, 1)
    assert tasks.query_x.shape == tasks.query_y.shape == (6, 7, 1)
    assert {tensor.dtype for tensor in tasks.tensors()} == {torch.float32}


def test_there_are_no_labelled_examples() -> None:
    with pytest.raises(UserError, match="no labelled classes"):
        Sinusoid(Sinusoid.Config()).examples(10, Generator())


@pytest.mark.parametrize("key", ["amplitude", "phase", "x"])
@pytest.mark.parametrize(
    "bounds", [(5.0, 0.1), (1.0,), (0.0, 1.0, 2.0), (0.0, math.inf), (math.nan, 1.0), ("0", 1.0), (False, 1.0)]
)
def test_bounds_that_are_no_interval_are_refused_with_key_value_and_law(key: str, bounds: Any) -> None:
    with pytest.raises(UserError, match=rf"tasks\.{key} is \[.*\]; write two finite numbers, the lower first"):
        Sinusoid(Sinusoid.Config(**{key: bounds}))


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan])
def test_noise_that_is_no_deviation_is_refused(noise: float) -> None:
    with pytest.raises(UserError, match=rf"tasks\.noise is {noise}; set"):
        Sinusoid(Sinusoid.Config(noise=noise))
