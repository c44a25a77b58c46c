"""A feature map reconstruction network rebuilds places by ridge regression, whatever the order of the places."""

import pytest
import torch
from sklearn.linear_model import Ridge  # type: ignore[import-untyped]
from torch import Generator, Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from metaopt.errors import UserError
from metaopt.nn import Encoder
from metaopt.task import TaskSpec
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_metric.frn import FRN

SHAPE = (5, 2, 3)  # channels, height, width


class AsIs(Encoder):
    """Feature maps are the picture."""

    def __init__(self) -> None:
        super().__init__(SHAPE, Encoder.Config())
        self.map_shape = SHAPE

    def maps(self, x: Tensor) -> Tensor:
        return x


def frn(n_shot: int = 2, log_regulariser: float = 0.0, log_swelling: float = 0.0, temperature: float = 1.0) -> FRN:
    learner = FRN(TaskSpec("classification", SHAPE, 3, n_shot, 2), AsIs(), FRN.Config()).double()
    learner.log_regulariser.data.fill_(log_regulariser)
    learner.log_swelling.data.fill_(log_swelling)
    learner.scale.data.fill_(1 / temperature)
    return learner


def task(n_shot: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return supports of 3 classes, their labels, and 4 queries."""
    draw = Generator().manual_seed(1)
    support_y = torch.randperm(3 * n_shot, generator=draw) % 3
    support_x = torch.randn(len(support_y), *SHAPE, generator=draw, dtype=torch.float64)
    return support_x, support_y, torch.randn(4, *SHAPE, generator=draw, dtype=torch.float64)


def places(maps: Tensor) -> Tensor:
    """Return the feature vectors at all places of maps (n, channels, height, width), (n * height * width, channels)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("n_shot", [1, 2])
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.5, -0.4)])
def test_scores_are_errors_of_scikit_learns_ridge_at_rebuilding_the_query(
    n_shot: int, alpha: float, beta: float
) -> None:
    """Equations 5 to 8 of the paper: λ is e^α of the class's places a channel, and the rebuild is swollen by e^β."""
    support_x, support_y, query_x = task(n_shot)
    scores = frn(n_shot, alpha, beta, temperature=0.5)(support_x, support_y, query_x)
    ridge = Ridge(alpha=6 * n_shot / 5 * torch.tensor(alpha).double().exp().item(), fit_intercept=False)
    for query, row in zip(query_x, scores, strict=True):
        wanted = places(query[None])  # (6, 5)
        for k in range(3):
            of_class = places(support_x[support_y == k]).T.numpy()  # (5, 6 * n_shot)
            rebuilt = torch.from_numpy(ridge.fit(of_class, wanted.T.numpy()).predict(of_class)).T
            error = (torch.tensor(beta).double().exp() * rebuilt - wanted).square().sum(1).mean()
            torch.testing.assert_close(row[k], -2 * error, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n_shot", [1, 2])
def test_woodburys_identity_gives_the_same_rebuild(n_shot: int) -> None:
    """Equation 10 of the paper, whose system has a row for each channel."""
    support_x, support_y, query_x = task(n_shot)
    wanted, expected = places(query_x), torch.empty(4, 3).double()
    for k in range(3):
        of_class = places(support_x[support_y == k])
        gram = of_class.T @ of_class  # (5, 5)
        rebuilt = wanted @ torch.linalg.inv(gram + 6 * n_shot / 5 * torch.eye(5).double()) @ gram
        expected[:, k] = -(rebuilt - wanted).square().sum(1).view(4, 6).mean(1)
    torch.testing.assert_close(frn(n_shot)(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def test_hardly_regularised_a_class_rebuilds_its_own_examples_exactly() -> None:
    support_x, support_y, _ = task()
    support_x[:, 3:] = 0  # or six places span all five channels, and every class rebuilds everything
    support_x[support_y == 0, :2] = 0
    scores = frn(log_regulariser=-15)(support_x, support_y, support_x)
    own = scores.gather(1, support_y[:, None])
    torch.testing.assert_close(own, torch.zeros_like(own), rtol=0, atol=1e-8)
    assert (scores[support_y != 0][:, 0] < -0.1).all(), "one channel does not rebuild three"


def test_regularised_beyond_all_measure_nothing_is_rebuilt() -> None:
    support_x, support_y, query_x = task()
    scores = frn(log_regulariser=30)(support_x, support_y, query_x)
    expected = -query_x.square().sum(1).mean((1, 2))[:, None].expand(4, 3)
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)


def test_it_does_not_matter_where_in_the_picture_a_place_lies() -> None:
    support_x, support_y, query_x = task()
    learner, draw = frn(), Generator().manual_seed(2)
    expected = learner(support_x, support_y, query_x)

    def moved(maps: Tensor) -> Tensor:
        order = torch.randperm(6, generator=draw)
        return maps.flatten(2)[:, :, order].view_as(maps)

    torch.testing.assert_close(learner(moved(support_x), support_y, moved(query_x)), expected, rtol=1e-9, atol=1e-12)


def test_its_derivatives_match_finite_differences() -> None:
    learner, (support_x, support_y, query_x) = frn(), task()
    names = [name for name, _ in learner.named_parameters()]
    assert len(names) == 3

    def loss(support_x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        scores: Tensor = functional_call(learner, named, (support_x, support_y, query_x))
        return learner.loss(scores, torch.tensor([0, 2, 1, 1]))

    inputs = [support_x, *(parameter.detach() for parameter in learner.parameters())]
    assert gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


def test_vectors_are_refused_before_anything_else() -> None:
    spec = TaskSpec("classification", (6,), 3, 2, 2)
    with pytest.raises(UserError, match=r"frn rebuilds feature maps, of which the encoder mlp has none; take .* conv4"):
        FRN(spec, MLP((6,), MLP.Config()), FRN.Config())


def test_a_network_trained_with_three_ways_serves_five_with_the_same_weights() -> None:
    torch.manual_seed(0)
    encoder = Conv4((1, 32, 32), Conv4.Config(width=8))
    learner = FRN(TaskSpec("classification", (1, 32, 32), 3, 2, 2), encoder, FRN.Config())
    served = learner.with_spec(TaskSpec("classification", (1, 32, 32), 5, 1, 2))
    assert served(torch.randn(5, 1, 32, 32), torch.randperm(5), torch.randn(7, 1, 32, 32)).shape == (7, 5)
    assert FRN.any_way
