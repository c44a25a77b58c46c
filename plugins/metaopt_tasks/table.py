"""A table in a user's file: a row an example, a column the class, the others numbers and categories in any mixture.

What turns columns into features is fitted to the rows of train classes alone, by scikit-learn (Pedregosa et al., 2011,
arXiv:1201.0490).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt.errors import UserError
from metaopt.pools import ClassSampler, Split, apart, digest, divide, rows_of
from metaopt_tasks.files import PART, Columns, column, find, is_missing, labels_of, read_columns

LARGEST = 1e18  # of a number, whose square float32 still holds


class Table(ClassSampler):
    """Tell the rows of a table apart: numbers standardised, categories one-hot, what is missing imputed."""

    name = "table"

    @dataclass(frozen=True)
    class Config(Split):
        """Which file, which of its columns is what, and how classes are divided into pools."""

        file: str = ""
        """A CSV, TSV, JSON, JSON Lines or Parquet file."""
        label: str = "label"
        """The column of the class."""
        group: str = ""
        """The column of the class's group (superclass), where there is one."""
        pool: str = ""
        """The column that says train, val or test, where there is one."""
        leave_out: tuple[str, ...] = ()
        """Columns that are no features, such as the number of a row."""
        categories: tuple[str, ...] = ()
        """Columns of numbers that are categories, such as postal codes."""
        max_categories: int = 50
        """Features made of one column; the rarest categories share one."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.max_categories < 2:
            raise UserError(f"tasks.max_categories is {config.max_categories}; set it to 2 or more")
        path = find("file", config.file, "a table such as a CSV file")
        columns = read_columns(path)
        labels = labels_of(columns, path, config)
        pools = divide(labels, config)
        numbers, categories = _features(columns, path, config)  # (n, n_numbers), (n, n_categorical)
        digests = [digest(a.tobytes() + repr(b.tolist()).encode()) for a, b in zip(numbers, categories, strict=True)]
        pools = apart(pools, np.stack(digests), labels.names, config)
        if not len(train := rows_of(pools["train"])):
            raise UserError("the train pool has no rows, to which features are fitted; give it classes")
        examples = _encode(numbers, categories, train, config.max_categories)
        if len(odd := np.flatnonzero(~np.isfinite(examples).all(1))):
            raise UserError(f"{path}: row {odd[0] + 1} holds a number too far from those of the train pool; mend it")
        self.fill(torch.from_numpy(examples), pools)


def _features(columns: Columns, path: Path, config: Table.Config) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    """Return the columns of numbers (n, …), NaN where one is missing, and of categories (n, …), then empty."""
    for setting in ("leave_out", "categories"):
        for name in getattr(config, setting):
            column(columns, name, path, setting)
    others = {config.label, config.group, config.pool, PART, *config.leave_out}
    numbers: list[NDArray[np.float64]] = []
    categories: list[list[str]] = []
    for name in (name for name in columns if name not in others):
        values = columns[name]
        if any(isinstance(value, list | dict) for value in values):
            raise UserError(f"{path}: {name!r} holds lists, and a table one value a cell; name it in tasks.leave_out")
        if name not in config.categories and (found := _numbers(values)) is not None:
            if len(odd := np.flatnonzero(np.abs(found) > LARGEST)):
                raise UserError(
                    f"{path}: row {odd[0] + 1} of {name!r} is beyond {LARGEST:g}; mend it or leave it empty"
                )
            numbers.append(found)
        else:
            categories.append(["" if is_missing(value) else str(value).strip() for value in values])
    if not numbers and not categories:
        raise UserError(f"{path} has no columns beside {config.label!r} to tell classes by; give it some")
    n = len(columns[config.label])
    return np.array(numbers).reshape(-1, n).T, np.array(categories, object).reshape(-1, n).T


def _numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Return a column (n,) as numbers, NaN where one is missing; None where any is no number."""
    try:
        return np.array([math.nan if is_missing(value) else float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return None


def _encode(
    numbers: NDArray[np.float64], categories: NDArray[np.object_], train: NDArray[np.int64], max_categories: int
) -> NDArray[np.float32]:
    """Return the features (n, n_features) of columns of numbers and of categories, fitted to `train` rows."""
    from sklearn.impute import SimpleImputer  # type: ignore[import-untyped] # here, as sklearn takes a second to import
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # type: ignore[import-untyped]

    number = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    one_hot = OneHotEncoder(
        sparse_output=False, handle_unknown="infrequent_if_exist", max_categories=max_categories, dtype=np.float32
    )
    blocks = [
        encoder.fit(block[train]).transform(block)
        for encoder, block in ((number, numbers), (one_hot, categories))
        if block.shape[1]
    ]
    with np.errstate(over="ignore"):
        features: NDArray[np.float32] = np.hstack(blocks).astype(np.float32)
    return features
