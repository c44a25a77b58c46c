"""A prototypical network is nearest class mean in embedding space, by its closed forms."""

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from metaopt.nn import Encoder
from metaopt.task import TaskSpec
from metaopt_encoders.mlp import MLP
from metaopt_metric.protonet import ProtoNet

DISTANCES = ["euclidean", "cosine"]


class AsIs(Encoder):
    """Features are the example's numbers."""

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, Encoder.Config())
        (self.n_features,) = x_shape

    def forward(self, x: Tensor) -> Tensor:
        return x


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def labels(n_way: int, n_shot: int) -> Tensor:
    """Return the labels of a support set in a random order, (n_way * n_shot,)."""
    return torch.randperm(n_way * n_shot, generator=Generator().manual_seed(3)) % n_way


def protonet(n_way: int = 3, n_shot: int = 1, **config: object) -> ProtoNet:
    spec = TaskSpec("classification", (4,), n_way, n_shot, n_query=2)
    return ProtoNet(spec, AsIs((4,)), ProtoNet.Config(**config))  # type: ignore[arg-type]


def test_prototypes_of_one_shot_are_the_supports() -> None:
    """The score of a support among the queries is 0 for its own class, and a distance to the others' for theirs."""
    y = labels(3, 1)
    support_x = normal(3, 4)
    scores = protonet()(support_x, y, support_x)  # (3, 3)
    by_class = support_x[y.argsort()]
    expected = -(support_x[:, None] - by_class).square().sum(-1)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(scores.argmax(1), y)


def test_probabilities_are_the_softmax_of_minus_squared_distances_to_class_means() -> None:
    """Equations 1 and 2 of the paper, example by example."""
    y = labels(3, 5)
    support_x, query_x = normal(15, 4), normal(6, 4, seed=1)
    probabilities = protonet(n_shot=5)(support_x, y, query_x).softmax(-1)
    for query, row in zip(query_x, probabilities, strict=True):
        closeness = torch.tensor([float((-(query - support_x[y == k].mean(0)).square().sum()).exp()) for k in range(3)])
        torch.testing.assert_close(row, (closeness / closeness.sum()).double(), rtol=1e-5, atol=1e-7)


def test_the_euclidean_scores_are_linear_in_the_query_up_to_what_classes_share() -> None:
    """Section 2.4 of the paper: −|f − c|² is 2 c·f − |c|² less |f|², so weights are 2 c and biases −|c|²."""
    y, support_x, query_x = labels(3, 5), normal(15, 4), normal(6, 4, seed=1)
    prototypes = torch.stack([support_x[y == k].mean(0) for k in range(3)])
    linear = 2 * query_x @ prototypes.T - prototypes.square().sum(1)
    scores = protonet(n_shot=5)(support_x, y, query_x)
    torch.testing.assert_close(scores.softmax(-1), linear.softmax(-1), rtol=1e-9, atol=1e-12)


def test_cosine_scores_are_twice_the_cosine_less_two() -> None:
    y, support_x, query_x = labels(3, 5), normal(15, 4), normal(6, 4, seed=1)
    prototypes = torch.stack([support_x[y == k].mean(0) for k in range(3)])
    expected = 2 * cosine_similarity(query_x[:, None], prototypes, dim=-1) - 2
    torch.testing.assert_close(protonet(n_shot=5, distance="cosine")(support_x, y, query_x), expected)


def test_only_the_euclidean_distance_sees_the_length_of_features() -> None:
    y, support_x, query_x = labels(3, 2), normal(6, 4), normal(6, 4, seed=1)
    for distance in DISTANCES:
        learner = protonet(n_shot=2, distance=distance)
        same = torch.allclose(learner(support_x, y, query_x), learner(support_x, y, 3 * query_x))
        assert same == (distance == "cosine")


@pytest.mark.parametrize("distance", DISTANCES)
def test_temperature_divides_the_scores(distance: str) -> None:
    task = normal(6, 4), labels(3, 2), normal(6, 4, seed=1)
    plain = protonet(n_shot=2, distance=distance)(*task)
    warm = protonet(n_shot=2, distance=distance, temperature=8.0)(*task)
    torch.testing.assert_close(warm, plain / 8, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_taken_between_what_the_encoder_makes_of_examples(distance: str) -> None:
    torch.manual_seed(0)
    encoder = MLP((4,), MLP.Config(width=8)).double()
    spec = TaskSpec("classification", (4,), 3, 2, 2)
    y, support_x, query_x = labels(3, 2), normal(6, 4), normal(6, 4, seed=1)
    embedded = ProtoNet(spec, encoder, ProtoNet.Config(distance))(support_x, y, query_x)
    expected = protonet(n_shot=2, distance=distance)(encoder(support_x), y, encoder(query_x))
    torch.testing.assert_close(embedded, expected, rtol=1e-12, atol=1e-12)


def test_a_network_trained_with_three_ways_serves_five_with_the_same_weights() -> None:
    torch.manual_seed(0)
    encoder = MLP((4,), MLP.Config(width=8)).double()
    trained = ProtoNet(TaskSpec("classification", (4,), 3, 2, 2), encoder, ProtoNet.Config())
    served = trained.with_spec(TaskSpec("classification", (4,), 5, 1, 2))
    y, support_x, query_x = labels(5, 1), normal(5, 4), normal(10, 4, seed=1)
    scores = served(support_x, y, query_x)
    assert scores.shape == (10, 5)
    expected = -torch.cdist(encoder(query_x), encoder(support_x)[y.argsort()]).square()
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    assert ProtoNet.any_way
    assert trained.spec.n_way == 3
