"""The Bayes accuracy of normal classes is what the Bayes classifier scores, and what nothing beats."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm  # type: ignore[import-untyped]
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.nn import class_means, squared_distances
from metaopt.task import POOLS, TaskBatch
from metaopt_tasks import gaussian
from metaopt_tasks.gaussian import Gaussian, bayes_accuracy


def load(**config: Any) -> Gaussian:
    return Gaussian(Gaussian.Config(**config))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def accuracies(batch: TaskBatch, n_way: int, shrink: float) -> Tensor:
    """The accuracy (n_tasks,) of nearest class mean, means drawn towards 0 by a factor."""
    return torch.stack(
        [
            (squared_distances(query_x, shrink * class_means(x, y, n_way)).argmin(1) == query_y).float().mean()
            for x, y, query_x, query_y in zip(*batch.tensors(), strict=True)
        ]
    )


SETTINGS = [(5, 1, 16, 1.0), (5, 5, 16, 0.7), (2, 1, 3, 1.0), (2, 4, 1, 2.0), (3, 1, 1, 1.0), (10, 2, 40, 0.5)]


@pytest.mark.parametrize(("n_way", "n_shot", "features", "spread"), SETTINGS)
def test_the_bayes_classifier_scores_the_bayes_accuracy(n_way: int, n_shot: int, features: int, spread: float) -> None:
    sampler = load(features=features, spread=spread)
    batch = sampler.draw("test", sampler.spec(n_way, n_shot, 10), 1500, seeded())
    found = accuracies(batch, n_way, spread**2 / (spread**2 + 1 / n_shot))
    standard_error = float(found.std()) / len(found) ** 0.5
    assert standard_error < 0.008
    assert abs(float(found.mean()) - bayes_accuracy(n_way, n_shot, features, spread)) < 4 * standard_error


@pytest.mark.parametrize(("n_way", "n_shot", "features", "spread"), SETTINGS)
def test_no_other_shrinkage_beats_the_bayes_accuracy(n_way: int, n_shot: int, features: int, spread: float) -> None:
    sampler = load(features=features, spread=spread)
    batch = sampler.draw("test", sampler.spec(n_way, n_shot, 10), 1000, seeded(1))
    for shrink in (0.1, 1.0):
        found = accuracies(batch, n_way, shrink)
        best = bayes_accuracy(n_way, n_shot, features, spread)
        assert float(found.mean()) < best + 4 * float(found.std()) / len(found) ** 0.5


def test_two_classes_give_the_same_by_one_integral_and_by_two() -> None:
    # A third class that is never nearer would be the second again, so compare at the seam: two ways by sampling S.
    for features, spread, shots in ((1, 1.0, 1), (16, 1.0, 1), (16, 0.5, 5), (200, 0.3, 2)):
        draw = np.random.default_rng(0)
        shrink = spread**2 / (spread**2 + 1 / shots)
        scale = math.sqrt(shrink) * spread
        tau = math.sqrt(1 + (1 - shrink) * spread**2)
        distance = scale * np.linalg.norm(draw.normal(size=(20_000, features)) * math.sqrt(2), axis=1)
        sampled = norm.cdf(distance / (2 * tau))
        assert abs(sampled.mean() - bayes_accuracy(2, shots, features, spread)) < 4 * sampled.std() / 20_000**0.5


def test_known_means_far_apart_are_told_apart_surely_and_equal_ones_by_chance() -> None:
    assert bayes_accuracy(5, math.inf, 16, 20.0) > 0.9999
    for n_way in (2, 5, 20):
        assert bayes_accuracy(n_way, 1, 16, 1e-3) == pytest.approx(1 / n_way, abs=2e-3)


def test_the_exact_series_and_the_normal_limit_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for features in (1, 16, 200):
        exact = bayes_accuracy(5, 1, features, 0.05)  # noncentralities of 1e5 and more
        monkeypatch.setattr(gaussian, "FAR", 1e4)
        assert bayes_accuracy(5, 1, features, 0.05) == pytest.approx(exact, abs=1e-5)
        monkeypatch.undo()


def test_one_feature_and_known_means_of_two_classes_have_a_closed_form() -> None:
    # E Φ(spread |z| / √2) for a normal z is 1/2 + arctan(spread / √2) / π.
    for spread in (0.3, 1.0, 4.0):
        want = 0.5 + math.atan(spread / math.sqrt(2)) / math.pi
        assert bayes_accuracy(2, math.inf, 1, spread) == pytest.approx(want, abs=1e-7)


def test_the_bayes_accuracy_rises_with_shots_features_and_spread_and_falls_with_ways() -> None:
    values = [bayes_accuracy(5, shots, 8) for shots in (1, 2, 5, 20, math.inf)]
    assert values == sorted(values)
    assert values[-1] - values[-2] < 0.02
    values = [bayes_accuracy(5, 1, features) for features in (1, 4, 16, 64)]
    assert values == sorted(values)
    values = [bayes_accuracy(5, 1, 8, spread) for spread in (0.1, 0.5, 1.0, 3.0)]
    assert values == sorted(values)
    values = [bayes_accuracy(n_way, 1, 8) for n_way in (20, 10, 5, 3, 2)]
    assert values == sorted(values)


def test_means_and_examples_have_their_variances() -> None:
    sampler = load(features=4, spread=2.0)
    batch = sampler.draw("train", sampler.spec(3, 50, 1), 300, seeded())
    means = torch.stack([class_means(x, y, 3) for x, y in zip(batch.support_x, batch.support_y, strict=True)])
    assert kstest(means.flatten().numpy() / math.sqrt(4 + 1 / 50), "norm").pvalue > 1e-3
    centre = means.gather(1, batch.support_y[:, :, None].expand(-1, -1, 4))
    residual = (batch.support_x - centre).flatten() / math.sqrt(49 / 50)
    assert kstest(residual[::7].numpy(), "norm").pvalue > 1e-3


def test_queries_are_of_their_labels_class_and_labels_stand_in_no_order() -> None:
    sampler = load(features=8, spread=50.0)
    batch = sampler.draw("test", sampler.spec(3, 1, 1), 1200, seeded())
    assert accuracies(batch, 3, 1.0).mean() > 0.999
    for y in (batch.support_y, batch.query_y):
        places = y[:, 0] * 3 + y[:, 1]
        counts = torch.bincount(places, minlength=9)[[1, 2, 3, 5, 6, 7]]  # the six orders
        assert counts.sum() == 1200
        assert chisquare(counts.numpy()).pvalue > 1e-3


def test_one_seed_gives_each_pool_other_tasks_and_again_the_same() -> None:
    sampler = load()
    spec = sampler.spec(5, 1, 2)
    first, again = ([sampler.draw(pool, spec, 3, seeded()).support_x for pool in POOLS] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({x.numpy().tobytes() for x in first}) == 3


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"features": 0}, r"tasks\.features is 0; set it to 1 or more"),
        ({"spread": 0.0}, r"tasks\.spread is 0\.0; set this standard deviation above 0"),
        ({"spread": math.inf}, r"tasks\.spread is inf"),
        ({"spread": math.nan}, r"tasks\.spread is nan"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(**config)


def test_tasks_too_large_for_memory_are_refused_with_ways_that_work() -> None:
    sampler = load(features=1000)
    spec = sampler.spec(5000, 1, 9)
    with pytest.raises(UserError, match=r"has 50,000,000 numbers, more than 10,000,000; set tasks\.n_way to 1000 or"):
        sampler.check("train", spec)
    sampler.check("train", replace(spec, n_way=1000))
    with pytest.raises(UserError):
        sampler.check("train", replace(spec, n_way=1001))


def test_there_are_no_labelled_examples_to_train_on() -> None:
    with pytest.raises(UserError, match="'gaussian' has no labelled classes"):
        load().examples(3, seeded())
