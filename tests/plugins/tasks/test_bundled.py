"""Scikit-learn's own data sets are tasks without a download, as far as they have the classes."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris  # type: ignore[import-untyped]
from torch import Generator

from metaopt.errors import UserError
from metaopt.nn import class_means, squared_distances
from metaopt.pools import rows_of
from metaopt.task import POOLS
from metaopt_tasks import bundled
from metaopt_tasks.bundled import Bundled


def load(**config: Any) -> Bundled:
    return Bundled(Bundled.Config(**config))


def test_the_ten_digits_make_three_pools_of_three_classes_or_more() -> None:
    sampler = load()
    assert [len(sampler.classes[pool]) for pool in POOLS] == [4, 3, 3]
    assert sorted(c.name for pool in POOLS for c in sampler.classes[pool]) == [str(digit) for digit in range(10)]
    assert sampler.spec(3, 1, 1).x_shape == (64,)


def test_digits_are_their_pixels_from_zero_to_one() -> None:
    sampler, digits = load(), load_digits()
    for pool in POOLS:
        for c in sampler.classes[pool]:
            found = sampler.pools[pool].sources[torch.from_numpy(c.rows)].numpy()
            np.testing.assert_allclose(found, digits.data[digits.target == int(c.name)] / 16)
    assert sampler.pools["train"].sources.max() == 1


def test_other_data_are_standardised_by_their_train_classes() -> None:
    sampler, iris = load(data="iris", train=("setosa", "virginica"), test=("versicolor",)), load_iris()
    x = iris.data[iris.target != 1]
    want = (iris.data - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(sampler.pools["test"].sources.numpy(), want, rtol=1e-5, atol=1e-5)
    assert sampler.classes["test"][0].rows.tolist() == list(range(50, 100))


@pytest.mark.parametrize(("name", "n_classes"), [("digits", 10), ("iris", 3), ("wine", 3), ("breast_cancer", 2)])
def test_each_data_set_has_its_classes(name: str, n_classes: int) -> None:
    sampler = load(data=name, split=f"{n_classes}/0/0", duplicates="refuse")
    assert len(sampler.classes["train"]) == n_classes
    assert len(rows_of(sampler.classes["train"])) == len(bundled.load(name).data)
    sampler.check("train", sampler.spec(n_classes, 5, 15))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"data": "irises"}, r"tasks\.data: no data set named 'irises'; did you mean 'iris'"),
        ({"data": "faces"}, r"choose one of: breast_cancer, digits, iris, wine"),
        ({"data": "iris", "test": ("setosa",)}, r"the train pool has no classes of iris"),
        ({"train": ("11",)}, r"no class or group named '11'"),
        ({"split": "40/30/30", "train": ("1",)}, r"tasks\.train is set beside tasks\.split"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(**config)


def test_a_study_of_few_classes_is_refused_with_numbers_that_work() -> None:
    sampler = load(data="iris")
    with pytest.raises(UserError, match=r"2-way tasks need 2 classes and the validation pool has 1; give it more"):
        sampler.check("validation", sampler.spec(2, 1, 15))
    with pytest.raises(UserError, match=r"5-way tasks need 5 classes and the test pool has 3; set tasks\.n_way to 3"):
        load().check("test", load().spec(5, 1, 15))


def test_new_digits_are_told_apart_by_nearest_class_mean() -> None:
    sampler = load()
    batch = sampler.draw("test", sampler.spec(3, 5, 15), 200, Generator().manual_seed(0))
    hits = [
        (squared_distances(query_x, class_means(support_x, support_y, 3)).argmin(1) == query_y).float().mean()
        for support_x, support_y, query_x, query_y in zip(*batch.tensors(), strict=True)
    ]
    assert torch.stack(hits).mean() > 0.85
