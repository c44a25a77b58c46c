"""SimpleShot is ordinary training and nearest class mean, on features less their mean and of length 1."""

import copy

import pytest
import torch
from sklearn.neighbors import NearestCentroid  # type: ignore[import-untyped]
from torch import Generator, Tensor

from metaopt.executor import EXECUTORS, Executor, Loop
from metaopt.learner import Gradients
from metaopt.task import Examples, TaskSpec
from metaopt_baseline.pretrain import Pretrain
from metaopt_encoders.mlp import MLP
from metaopt_metric.simpleshot import RATE, SimpleShot

SPEC = TaskSpec("classification", (6,), n_way=3, n_shot=2, n_query=4, n_train_classes=9)


def simpleshot(transform: str = "cl2n") -> SimpleShot:
    torch.manual_seed(0)
    return SimpleShot(SPEC, MLP((6,), MLP.Config(16)), SimpleShot.Config(transform)).double()


def examples(n: int = 20, seed: int = 0) -> Examples:
    draw = Generator().manual_seed(seed)
    return Examples(torch.randn(n, 6, generator=draw, dtype=torch.float64), torch.randint(9, (n,), generator=draw))


def task() -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    x = torch.randn(36, 6, generator=draw, dtype=torch.float64)
    return x[:6], torch.randperm(6, generator=draw) % 3, x[6:]


def ignore(gradients: Gradients) -> None:
    """Take no step."""


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero")  # a unit that is off for all
@pytest.mark.parametrize("transform", ["cl2n", "l2n", "un"])
def test_predictions_are_those_of_scikit_learns_nearest_centroid_on_transformed_features(transform: str) -> None:
    learner = simpleshot(transform)
    learner.train_mean += 0.3 * torch.rand(16, generator=Generator().manual_seed(2))
    support_x, support_y, query_x = task()
    support, query = learner.encoder(support_x).detach(), learner.encoder(query_x).detach()
    if transform == "cl2n":
        support, query = support - learner.train_mean, query - learner.train_mean
    if transform != "un":
        support, query = support / support.norm(dim=1)[:, None], query / query.norm(dim=1)[:, None]
    expected = NearestCentroid().fit(support.numpy(), support_y.numpy()).predict(query.numpy())
    assert len(set(expected.tolist())) > 1, "a constant prediction would be no test"
    assert learner(*task()).argmax(1).tolist() == expected.tolist()


def test_only_centred_features_know_the_train_mean() -> None:
    for transform in ("cl2n", "l2n", "un"):
        learner = simpleshot(transform)
        before = learner(*task())
        learner.train_mean += 0.3
        assert torch.equal(learner(*task()), before) == (transform != "cl2n")


def test_the_train_mean_is_the_mean_of_all_features_seen_so_far_and_later_a_running_one() -> None:
    learner, means, expected = simpleshot(), [], torch.zeros(16)
    n_plain = round(1 / RATE)
    for step in range(2 * n_plain):
        batch = examples(seed=step)
        means.append(learner.encoder(batch.x).detach().mean(0))
        learner.outer_step(batch, Loop(), ignore)
        expected = torch.stack(means).mean(0) if step < n_plain else (1 - RATE) * expected + RATE * means[-1]
        torch.testing.assert_close(learner.train_mean, expected, rtol=1e-9, atol=1e-12)
    assert int(learner.n_batches) == 2 * n_plain


def test_centring_removes_what_all_features_share() -> None:
    """Where features differ little beside what they share, only centred ones point different ways."""
    learner, (support_x, support_y, query_x) = simpleshot(), task()
    with torch.no_grad():
        learner.encoder.layers[-2].bias += 1000  # type: ignore[index, union-attr, operator]
    learner.outer_step(Examples(torch.cat([support_x, query_x]), torch.arange(36) % 9), Loop(), ignore)
    spread = {}
    for transform in ("cl2n", "l2n"):
        other = copy.deepcopy(learner)
        other.config = SimpleShot.Config(transform)
        spread[transform] = other(support_x, support_y, query_x).std(1).mean().item()
    assert spread["cl2n"] > 1000 * spread["l2n"]


def test_without_centring_it_is_pretraining() -> None:
    for transform, distance in (("l2n", "cosine"), ("un", "euclidean")):
        learner = simpleshot(transform)
        torch.manual_seed(0)
        pretrain = Pretrain(SPEC, MLP((6,), MLP.Config(16)), Pretrain.Config(distance)).double()
        assert torch.equal(learner(*task()), pretrain(*task()))
        steps: list[list[Gradients]] = [[], []]
        learners = zip((learner, pretrain), steps, strict=True)
        losses = [each.outer_step(examples(), Loop(), step.append) for each, step in learners]
        assert torch.equal(*losses)
        (gradients,), (expected,) = steps
        assert set(gradients) == set(expected)
        for name, gradient in expected.items():
            assert torch.equal(gradients[name], gradient)


@pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
def test_predictions_follow_the_train_mean(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an executor remembers from one call must not be an old mean."""
    monkeypatch.setattr("metaopt.executor.RECORD_AFTER", 1)
    learner, seen = simpleshot().eval(), []
    for step in range(3):
        learner.outer_step(examples(seed=step), executor, ignore)
        with torch.no_grad():
            predictions = executor.map(learner, "forward", *(tensor[None] for tensor in task()))
        assert isinstance(predictions, Tensor)
        torch.testing.assert_close(predictions[0], learner(*task()), rtol=1e-9, atol=1e-12)
        seen.append(predictions)
    assert not torch.allclose(seen[0], seen[2], rtol=1e-3)


def test_the_train_mean_is_part_of_what_is_saved() -> None:
    learner, other = simpleshot(), simpleshot()
    learner.outer_step(examples(), Loop(), ignore)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other(*task()), learner(*task()))
    assert {"train_mean", "n_batches"} <= set(learner.state_dict())
