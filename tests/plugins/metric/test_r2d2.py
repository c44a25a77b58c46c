"""R2-D2 is ridge regression in closed form, and differentiable all through."""

import pytest
import torch
from sklearn.linear_model import Ridge  # type: ignore[import-untyped]
from torch import Generator, Tensor
from torch.autograd import gradcheck

from metaopt.nn import Encoder
from metaopt.task import Kind, TaskSpec
from metaopt_metric.r2d2 import R2D2


class AsIs(Encoder):
    """Features are the example's numbers."""

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, Encoder.Config())
        (self.n_features,) = x_shape

    def forward(self, x: Tensor) -> Tensor:
        return x


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def r2d2(n_features: int, kind: Kind = "classification", **config: float) -> R2D2:
    spec = TaskSpec(kind, (n_features,), 3 if kind == "classification" else 1, 2, 2, y_size=2)
    return R2D2(spec, AsIs((n_features,)), R2D2.Config(**config)).double()


def task(n_features: int, kind: Kind = "classification") -> tuple[Tensor, Tensor, Tensor]:
    """Return 6 supports, their labels or targets, and 7 queries."""
    y = torch.tensor([2, 0, 1, 1, 2, 0]) if kind == "classification" else normal(6, 2, seed=2)
    return normal(6, n_features), y, normal(7, n_features, seed=1)


def targets(y: Tensor) -> Tensor:
    return torch.eye(3).double()[y] if y.ndim == 1 else y


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1).double()], 1)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("n_features", [3, 40], ids=["fewer features than supports", "more"])
@pytest.mark.parametrize("regulariser", [0.1, 10.0])
def test_predictions_are_those_of_scikit_learns_ridge(kind: Kind, n_features: int, regulariser: float) -> None:
    """Its intercept is the weight of a feature that is always 1, and regularised as the others are."""
    learner = r2d2(n_features, kind, regulariser=regulariser)
    support_x, support_y, query_x = task(n_features, kind)
    ridge = Ridge(alpha=regulariser, fit_intercept=False).fit(with_one(support_x).numpy(), targets(support_y).numpy())
    expected = torch.from_numpy(ridge.predict(with_one(query_x).numpy()))
    scale = 10.0 if kind == "classification" else 1.0
    torch.testing.assert_close(learner(support_x, support_y, query_x), scale * expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_features", [3, 40])
def test_woodburys_identity_gives_the_weights_of_the_normal_equations(n_features: int) -> None:
    learner, (support_x, support_y, query_x) = r2d2(n_features, regulariser=0.5, scale=1.0), task(n_features)
    x, identity = with_one(support_x), torch.eye(n_features + 1).double()
    weights = torch.linalg.inv(x.T @ x + 0.5 * identity) @ x.T @ targets(support_y)
    torch.testing.assert_close(
        learner(support_x, support_y, query_x), with_one(query_x) @ weights, rtol=1e-6, atol=1e-9
    )


def test_hardly_regularised_and_rich_in_features_it_fits_the_supports_exactly() -> None:
    learner, (support_x, support_y, _) = r2d2(40, scale=1.0), task(40)
    learner.log_regulariser.data.fill_(-25)
    torch.testing.assert_close(learner(support_x, support_y, support_x), targets(support_y), rtol=0, atol=1e-9)


def test_regularised_beyond_all_measure_it_sums_inner_products_with_the_supports_of_a_class() -> None:
    learner, (support_x, support_y, query_x) = r2d2(5, scale=1.0), task(5)
    learner.log_regulariser.data.fill_(25)
    expected = with_one(query_x) @ with_one(support_x).T @ targets(support_y)
    scores = learner(support_x, support_y, query_x) * learner.log_regulariser.exp()
    torch.testing.assert_close(scores, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n_features", [3, 9])
def test_its_derivatives_in_features_regulariser_and_scale_match_finite_differences(n_features: int) -> None:
    learner, (support_x, support_y, query_x) = r2d2(n_features), task(n_features)
    parameters = list(learner.parameters())
    assert len(parameters) == 2

    def loss(support_x: Tensor, query_x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(("log_regulariser", "scale"), parameters, strict=True))
        predictions = torch.func.functional_call(learner, named, (support_x, support_y, query_x))
        return learner.loss(predictions, torch.arange(7) % 3)

    inputs = (support_x, query_x, *(parameter.detach() for parameter in parameters))
    assert gradcheck(loss, tuple(tensor.requires_grad_() for tensor in inputs))


def test_the_settings_are_where_learning_starts() -> None:
    learner = r2d2(4, regulariser=3.0, scale=7.0)
    assert learner.log_regulariser.exp().item() == pytest.approx(3.0)
    assert learner.scale.item() == 7.0
    assert r2d2(4, "regression", scale=7.0).scale.item() == 1.0, "targets need no scale to begin with"
