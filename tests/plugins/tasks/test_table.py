"""A table becomes numbers that only its train classes have scaled, whatever is missing from it."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from metaopt.errors import UserError
from metaopt.task import POOLS
from metaopt_tasks.table import Table

CLASSES = ["a", "b", "c", "d", "e", "f"]
LABELS = [name for name in CLASSES for _ in range(4)]
N = len(LABELS)
LISTS: dict[str, Any] = {"train": ("a", "b"), "validation": ("c", "d"), "test": ("e", "f")}
TRAIN = np.array([label in "ab" for label in LABELS])
WIDTH = np.random.default_rng(0).normal(7, 3, N).round(3)
HEIGHT = np.random.default_rng(1).normal(-1, 0.1, N).round(3)
COLOUR = [("red", "green", "blue")[row % 3] for row in range(N)]


def write(path: Path, columns: Mapping[str, Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def load(path: Path, **config: Any) -> Table:
    return Table(Table.Config(file=str(path), **LISTS | config))


def features(sampler: Table) -> NDArray[np.float32]:
    """The features (n, n_features) of all rows."""
    sources: Tensor = sampler.pools["train"].sources
    assert sources.dtype == torch.float32
    return sources.numpy()


def standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = (values - values[TRAIN].mean()) / values[TRAIN].std()
    return scaled


def test_numbers_are_standardised_by_the_rows_of_train_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", {"width": WIDTH, "label": LABELS, "height": HEIGHT})
    found = features(load(path))
    np.testing.assert_allclose(found, np.stack([standardised(WIDTH), standardised(HEIGHT)], 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[TRAIN].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found[TRAIN].std(0), 1, rtol=1e-6)


def test_rows_of_other_classes_change_no_feature_of_train_rows(tmp_path: Path) -> None:
    before = load(write(tmp_path / "a.csv", {"label": LABELS, "width": WIDTH, "colour": COLOUR}))
    changed = np.where(TRAIN, WIDTH, WIDTH * 100)
    colours = [colour if train else f"new {row}" for row, (colour, train) in enumerate(zip(COLOUR, TRAIN, strict=True))]
    after = load(write(tmp_path / "b.csv", {"label": LABELS, "width": changed, "colour": colours}))
    np.testing.assert_array_equal(features(after)[TRAIN], features(before)[TRAIN])
    assert np.abs(features(after)[~TRAIN, 0]).max() > 10
    assert (features(after)[~TRAIN, 1:] == 0).all()  # categories that no train row has


def test_categories_are_one_hot(tmp_path: Path) -> None:
    found = features(load(write(tmp_path / "a.csv", {"label": LABELS, "colour": COLOUR}), duplicates="keep"))
    expected = [[colour == "blue", colour == "green", colour == "red"] for colour in COLOUR]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_numbers_may_be_categories(tmp_path: Path) -> None:
    codes = [(10115, 20095)[row % 2] for row in range(N)]
    path = write(tmp_path / "a.csv", {"label": LABELS, "code": codes, "width": WIDTH})
    assert features(load(path)).shape == (N, 2)
    found = features(load(path, categories=("code",)))
    np.testing.assert_array_equal(found[:, 1:], np.eye(2, dtype=np.float32)[np.arange(N) % 2])


def test_rare_categories_share_a_feature(tmp_path: Path) -> None:
    names = [f"name {row}" if row % 2 else "Smith" for row in range(N)]
    path = write(tmp_path / "a.csv", {"label": LABELS, "name": names})
    found = features(load(path, max_categories=2, duplicates="keep"))
    np.testing.assert_array_equal(found, np.eye(2, dtype=np.float32)[np.arange(N) % 2])


@pytest.mark.parametrize("missing", ["", "NA", "nan", "?", " null "])
def test_a_missing_number_is_the_median_of_train_rows_and_a_missing_category_one_of_its_own(
    tmp_path: Path, missing: str
) -> None:
    width: list[Any] = WIDTH.tolist()
    colour = list(COLOUR)
    width[0] = width[20] = colour[1] = missing
    found = features(load(write(tmp_path / "a.csv", {"label": LABELS, "width": width, "colour": colour})))
    filled = np.array([math.nan, *WIDTH[1:20], math.nan, *WIDTH[21:]])
    filled[[0, 20]] = np.median(filled[TRAIN][1:])
    np.testing.assert_allclose(found[:, 0], standardised(filled), rtol=1e-4, atol=1e-5)
    assert found.shape == (N, 1 + 4)
    np.testing.assert_array_equal(found[1, 1:], [1, 0, 0, 0])


def test_a_column_that_train_rows_lack_or_hold_constant_says_nothing(tmp_path: Path) -> None:
    absent = ["" if train else 3.5 for train in TRAIN]
    found = features(load(write(tmp_path / "a.csv", {"label": LABELS, "w": WIDTH, "x": absent, "y": [5] * N})))
    np.testing.assert_allclose(found[:, 2], 0)
    assert (found[TRAIN, 1] == 0).all()
    assert np.isfinite(found).all()


def test_groups_pools_and_what_is_left_out_are_no_features(tmp_path: Path) -> None:
    columns = {
        "row": range(N),
        "species": LABELS,
        "family": ["x" if label in "abc" else "y" for label in LABELS],
        "where": ["train" if train else "test" for train in TRAIN],
        "width": WIDTH,
    }
    path = write(tmp_path / "a.csv", columns)
    none: dict[str, Any] = dict.fromkeys(LISTS, ())
    sampler = load(path, **none, label="species", group="family", pool="where", leave_out=("row",))
    assert features(sampler).shape == (N, 1)
    assert [[c.name for c in sampler.classes[pool]] for pool in POOLS] == [["a", "b"], [], ["c", "d", "e", "f"]]
    assert {c.group for c in sampler.classes["test"]} == {"x", "y"}


@pytest.mark.parametrize(
    ("columns", "config", "says"),
    [
        ({}, {"label": "klass"}, r"tasks\.label: .*a\.csv: no column named 'klass'; choose one of: label, w"),
        ({}, {"label": ""}, r"tasks\.label is empty; name the column of the class"),
        ({}, {"pool": "where"}, r"tasks\.pool: .*no column named 'where'"),
        ({}, {"leave_out": ("row",)}, r"tasks\.leave_out: .*no column named 'row'"),
        ({}, {"categories": ({"a": 1},)}, r"tasks\.categories: .*no column named"),
        ({}, {"leave_out": ("w",)}, r"has no columns beside 'label' to tell classes by"),
        ({}, {"max_categories": 1}, r"tasks\.max_categories is 1; set it to 2 or more"),
        ({}, {"train": ("aa",)}, r"no class or group named 'aa'"),
        ({}, {"train": ()}, r"the train pool has no rows, to which features are fitted"),
        ({"w": [*WIDTH[:-1], "inf"]}, {}, r"row 24 of 'w' is beyond 1e\+18; mend it or leave it empty"),
        ({"w": [*WIDTH[:-1], "1e300"]}, {}, r"row 24 of 'w' is beyond 1e\+18"),
        ({"label": [*LABELS[:-1], ""]}, {}, r"row 24 has no label; write one, or leave the row out"),
        ({"w": [1] * N}, {}, r"row 1 of the train pool and row 9 of the validation pool are identical \(24 examples"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    tmp_path: Path, columns: dict[str, Any], config: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "a.csv", {"label": LABELS, "w": WIDTH} | columns)
    with pytest.raises(UserError, match=says):
        load(path, **config)


def test_a_cell_that_is_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"label": "a", "w": [1, 2]}, {"label": "b", "w": [1, 2]}]')
    with pytest.raises(UserError, match=r"'w' holds lists, and a table one value a cell"):
        load(path, train=("a",), validation=("b",), test=())


cells = st.one_of(
    st.sampled_from(["", "NA", "nan", "inf", "-inf", "1e308", "-1e-308", "0", "1_0", "0x1", "ßé", "\u2028", "-nan"]),
    st.floats().map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=4),
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(cells, min_size=N, max_size=N), second=st.lists(cells, min_size=N, max_size=N))
def test_any_table_gives_finite_features_or_a_refusal(tmp_path: Path, first: list[str], second: list[str]) -> None:
    path = write(tmp_path / "a.csv", {"label": LABELS, "x": first, "y": second})
    try:
        sampler = load(path, duplicates="skip")
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert np.isfinite(features(sampler)).all()
    assert "\n" not in refusal
