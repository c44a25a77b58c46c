"""Nearest class mean on the raw input is scikit-learn's nearest centroid, and the nearest neighbour with one shot."""

import pytest
import torch
from sklearn.base import ClassifierMixin  # type: ignore[import-untyped]
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid  # type: ignore[import-untyped]
from torch import Generator, nn

from metaopt.task import TaskSpec
from metaopt_baseline.pixels import Pixels


@pytest.mark.parametrize(
    ("n_shot", "peer"),
    [(1, KNeighborsClassifier(n_neighbors=1)), (2, NearestCentroid()), (5, NearestCentroid())],
    ids=["nearest neighbour, 1 shot", "nearest centroid, 2 shots", "nearest centroid, 5 shots"],
)
@pytest.mark.parametrize("x_shape", [(7,), (1, 6, 5)])
def test_predictions_are_those_of_scikit_learn(x_shape: tuple[int, ...], n_shot: int, peer: ClassifierMixin) -> None:
    draw = Generator().manual_seed(0)
    learner = Pixels(TaskSpec("classification", x_shape, 5, n_shot, 40), nn.Identity(), Pixels.Config())
    for _ in range(5):
        support_y = torch.randperm(5 * n_shot, generator=draw) % 5
        support_x = torch.randn(5 * n_shot, *x_shape, generator=draw)
        query_x = torch.randn(200, *x_shape, generator=draw)
        peer.fit(support_x.flatten(1).numpy(), support_y.numpy())
        expected = torch.from_numpy(peer.predict(query_x.flatten(1).numpy()))
        assert len(set(expected.tolist())) == 5, "a constant prediction would be no test"
        assert torch.equal(learner(support_x, support_y, query_x).argmax(1), expected)


def test_scores_are_minus_squared_distances_to_class_means() -> None:
    learner = Pixels(TaskSpec("classification", (1, 1, 2), 2, 2, 1), nn.Identity(), Pixels.Config())
    support_x = torch.tensor([[0.0, 0.0], [4.0, 3.0], [2.0, 0.0], [4.0, 5.0]]).reshape(
        4, 1, 1, 2
    )  # means (1, 0), (4, 4)
    scores = learner(support_x, torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2))
    assert scores.tolist() == [[0.0, -25.0]]


def test_there_is_nothing_to_train() -> None:
    learner = Pixels(TaskSpec("classification", (7,), 5, 1, 1), nn.Identity(), Pixels.Config())
    assert list(learner.parameters()) == []
    assert learner.trains_on == "nothing"
    assert not learner.uses_encoder
