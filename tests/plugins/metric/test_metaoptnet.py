"""MetaOptNet's machine is that of Crammer & Singer, by scikit-learn and by its optimality conditions."""

import pytest
import torch
from sklearn.svm import LinearSVC  # type: ignore[import-untyped]
from torch import Generator, Tensor
from torch.autograd import gradcheck

from metaopt.nn import Encoder
from metaopt.task import TaskSpec
from metaopt_metric.metaoptnet import MetaOptNet, dual_variables

ENOUGH = 30  # steps until float64 has no more to give


class AsIs(Encoder):
    """Features are the example's numbers."""

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, Encoder.Config())
        (self.n_features,) = x_shape

    def forward(self, x: Tensor) -> Tensor:
        return x


def task(n_way: int, n_shot: int, n_features: int = 6, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return supports around class means, so that some are inside the margin and some are not, and 50 queries."""
    draw = Generator().manual_seed(5)
    means = torch.randn(n_way, n_features, dtype=torch.float64, generator=draw)
    y = torch.randperm(n_way * n_shot, generator=draw) % n_way
    noise = torch.randn(len(y) + 50, n_features, dtype=torch.float64, generator=draw)
    return means[y] + spread * noise[:-50], y, means[torch.arange(50) % n_way] + spread * noise[-50:]


def problem(n_way: int, n_shot: int) -> tuple[Tensor, Tensor]:
    """Return a kernel and who is of which class, (n_way, n_support)."""
    x, y, _ = task(n_way, n_shot)
    return x @ x.T + torch.eye(len(x)).double(), (y == torch.arange(n_way)[:, None]).double()


sizes = pytest.mark.parametrize(("n_way", "n_shot"), [(2, 1), (3, 1), (3, 5), (5, 4), (20, 1)])
costs = pytest.mark.parametrize("cost", [0.001, 0.1, 1.0])


@sizes
@costs
def test_predictions_are_those_of_scikit_learns_crammer_singer_machine(n_way: int, n_shot: int, cost: float) -> None:
    """1 on the kernel's diagonal is a feature of its own for each support, which queries have not."""
    support_x, support_y, query_x = task(n_way, n_shot)
    n = len(support_x)
    machine = LinearSVC(
        multi_class="crammer_singer", C=cost, fit_intercept=False, tol=1e-9, max_iter=1_000_000, random_state=0
    ).fit(torch.cat([support_x, torch.eye(n).double()], 1).numpy(), support_y.numpy())
    weights = torch.from_numpy(machine.coef_)[:, :6]  # (n_way or 1, n_features)
    spec = TaskSpec("classification", (6,), n_way, n_shot, 1)
    learner = MetaOptNet(spec, AsIs((6,)), MetaOptNet.Config(cost=cost, scale=3.0, steps=ENOUGH)).double()
    scores = learner(support_x, support_y, query_x)
    if n_way == 2:  # scikit-learn keeps the difference of the two
        scores = scores[:, 1:] - scores[:, :1]
    expected = 3 * query_x @ weights.T
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@sizes
@costs
def test_dual_variables_meet_the_conditions_of_the_optimum(n_way: int, n_shot: int, cost: float) -> None:
    """Of a concave problem: feasible, and no example's α can be moved from one class to another with a gain."""
    kernel, member = problem(n_way, n_shot)
    duals = dual_variables(kernel, member, cost, ENOUGH)
    slacks, slopes = cost * member - duals, member - duals @ kernel
    assert (slacks >= 0).all()
    assert duals.sum(0).abs().max() < 1e-12
    prices = slopes - slopes.amin(0)  # what a unit of slack costs more than where it is cheapest
    assert (slacks * prices).max() < 1e-10 * cost
    assert not (slacks < 1e-6 * cost).all(0).any(), "an example's slacks add up to the cost"


@sizes
def test_the_papers_steps_are_enough(n_way: int, n_shot: int) -> None:
    kernel, member = problem(n_way, n_shot)
    for cost in (0.001, 0.1, 1.0):
        duals, exact = (dual_variables(kernel, member, cost, n) for n in (MetaOptNet.Config().steps, ENOUGH))
        torch.testing.assert_close(duals, exact, rtol=0, atol=2e-3 * cost)


@sizes
def test_single_precision_is_enough(n_way: int, n_shot: int) -> None:
    kernel, member = problem(n_way, n_shot)
    for cost in (0.001, 0.1, 1.0):
        duals = dual_variables(kernel.float(), member.float(), cost, ENOUGH)
        torch.testing.assert_close(
            duals.double(), dual_variables(kernel, member, cost, ENOUGH), rtol=0, atol=1e-4 * cost
        )


@pytest.mark.parametrize(("n_way", "n_shot"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("cost", [0.1, 1.0])
def test_its_derivative_matches_finite_differences(n_way: int, n_shot: int, cost: float) -> None:
    x, y, _ = task(n_way, n_shot, n_features=4)
    member = (y == torch.arange(n_way)[:, None]).double()

    def duals(x: Tensor) -> Tensor:
        return dual_variables(x @ x.T + torch.eye(len(x)).double(), member, cost, ENOUGH)

    assert gradcheck(duals, x.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-4)
    (slope,) = torch.autograd.grad(duals(x).square().sum(), x)
    assert slope.abs().max() > 1e-6


@sizes
def test_the_optimums_value_changes_with_the_kernel_as_if_the_optimum_stood_still(n_way: int, n_shot: int) -> None:
    """The envelope theorem: the slope of max Σ α·member − ½ Σ α·(α kernel) is −½ Σ α αᵀ."""
    kernel, member = problem(n_way, n_shot)
    kernel.requires_grad_()
    duals = dual_variables(kernel, member, 0.1, ENOUGH)
    value = (duals * member).sum() - 0.5 * (duals * (duals @ kernel)).sum()
    (slope,) = torch.autograd.grad(value, kernel)
    expected = -0.5 * duals.T @ duals
    torch.testing.assert_close(slope + slope.T, expected + expected.T, rtol=1e-6, atol=1e-12)


def test_examples_far_apart_are_told_apart_with_a_margin_of_1() -> None:
    """At a high cost the machine's margin is hard, and it is exactly 1 for the examples that hold it."""
    x, y, _ = task(3, 5, spread=0.1)
    member = (y == torch.arange(3)[:, None]).double()
    kernel = 20 * x @ x.T + torch.eye(len(x)).double()
    scores = dual_variables(kernel, member, 100.0, 60) @ kernel  # (n_way, n_support)
    others = scores.masked_fill(member.bool(), -torch.inf).amax(0)
    margins = (scores * member).sum(0) - others
    assert float(margins.min()) == pytest.approx(1, abs=1e-6)


def test_what_is_not_a_number_stays_so_and_raises_nothing() -> None:
    kernel, member = problem(3, 2)
    assert dual_variables(kernel * torch.nan, member, 0.1, 15).isnan().all()
