"""The learner `sklearn` is scikit-learn's classifiers on the numbers of an example."""

from typing import Any

import pytest
import torch
from sklearn import linear_model, naive_bayes, neighbors, svm  # type: ignore[import-untyped]
from torch import Generator, Tensor, nn

from metaopt.task import TaskSpec
from metaopt.tune import declared
from metaopt_baseline.pixels import Pixels
from metaopt_baseline.sklearn import Sklearn

PEERS: dict[str, tuple[dict[str, Any], Any]] = {
    "logistic": ({"logistic_c": 0.3}, linear_model.LogisticRegression(C=0.3)),
    "svm": ({"svm_c": 0.3}, svm.SVC(kernel="linear", C=0.3, break_ties=True)),
    "neighbors": ({"neighbors": 3}, neighbors.KNeighborsClassifier(3)),
    "bayes": ({"smoothing": 0.1}, naive_bayes.GaussianNB(var_smoothing=0.1)),
}


def learner(spec: TaskSpec, classifier: str, **config: Any) -> Sklearn:
    return Sklearn(spec, nn.Identity(), Sklearn.Config(classifier, **config))


def task(x_shape: tuple[int, ...], n_way: int, n_shot: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(seed)
    means = torch.randn(n_way, *x_shape, generator=draw)
    support_y, query_y = (torch.randperm(n_way * n, generator=draw) % n_way for n in (n_shot, 20))
    support_x, query_x = (means[y] + torch.randn(len(y), *x_shape, generator=draw) for y in (support_y, query_y))
    return support_x, support_y, query_x


def test_every_classifier_is_tested_here() -> None:
    assert str(declared(Sklearn.Config)["classifier"]) == "one of " + ", ".join(PEERS)


@pytest.mark.parametrize("x_shape", [(7,), (1, 6, 5)], ids=["vectors", "pictures"])
@pytest.mark.parametrize(("n_way", "n_shot"), [(2, 1), (2, 5), (5, 1), (5, 3)])
@pytest.mark.parametrize("classifier", PEERS)
def test_predictions_are_those_of_scikit_learn(
    classifier: str, n_way: int, n_shot: int, x_shape: tuple[int, ...]
) -> None:
    config, peer = PEERS[classifier]
    if classifier == "neighbors" and n_way * n_shot < 3:
        pytest.skip("scikit-learn refuses more neighbours than examples; see the next test")
    support_x, support_y, query_x = task(x_shape, n_way, n_shot)
    scores = learner(TaskSpec("classification", x_shape, n_way, n_shot, 20), classifier, **config)(
        support_x, support_y, query_x
    )
    peer.fit(support_x.flatten(1).numpy(), support_y.numpy())
    expected = peer.predict(query_x.flatten(1).numpy())
    assert scores.shape == (20 * n_way, n_way)
    assert scores.isfinite().all()
    assert scores.argmax(1).tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 1, "a constant prediction would be no test"


def test_more_neighbours_than_examples_are_all_the_examples() -> None:
    support_x, support_y, query_x = task((7,), 2, 1)
    scores = learner(TaskSpec("classification", (7,), 2, 1, 20), "neighbors", neighbors=10)(
        support_x, support_y, query_x
    )
    assert (scores == 0.5).all()


@pytest.mark.parametrize("classifier", ["neighbors", "bayes", "svm"])
def test_from_one_example_a_class_neighbours_and_naive_bayes_are_the_nearest_class_mean(classifier: str) -> None:
    """So is the machine of two classes, whose plane is halfway between its two support vectors."""
    n_way = 2 if classifier == "svm" else 5
    spec = TaskSpec("classification", (7,), n_way, 1, 20)
    config = {"svm_c": 1000.0} if classifier == "svm" else {}
    nearest = Pixels(spec, nn.Identity(), Pixels.Config())
    for seed in range(5):
        one_shot = task((7,), n_way, 1, seed)
        predicted = learner(spec, classifier, **config)(*one_shot).argmax(1)
        assert torch.equal(predicted, nearest(*one_shot).argmax(1))
        assert len(predicted.unique()) > 1


def test_there_is_nothing_to_train() -> None:
    bare = learner(TaskSpec("classification", (7,), 5, 1, 1), "logistic")
    assert list(bare.parameters()) == []
    assert (bare.trains_on, bare.uses_encoder, bare.batchable) == ("nothing", False, False)
