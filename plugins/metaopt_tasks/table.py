"""A table in a user's file: a row an example, a column the class, the others numbers and categories in any mixture.

What turns columns into features is fitted to the rows of train classes alone, by scikit-learn (Pedregosa et al., 2011,
arXiv:1201.0490).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.errors import InputError, UserError, unknown
from metaopt.pools import ClassSampler, Split, apart, digest, divide, rows_of
from metaopt.preprocessing import Given, Preprocessing
from metaopt_tasks.files import PART, Columns, column, find, is_missing, labels_of, read_columns, table_kind, texts

LARGEST = 1e18  # of a number, whose square float32 still holds


class Rows(Preprocessing):
    """Makes features of a table's rows by what the train rows had: medians, means, categories; see `Table`.

    Takes a DataFrame, a list of dicts or columns by name.
    """

    takes = "rows"

    def make(self, examples: Any) -> Tensor:
        """Return the features (n, n_features) of rows."""
        columns = _by_name(examples)
        numbers = [self._number(columns, name) for name in self.settings["numbers"]]
        categories = [_category(_column(columns, name)) for name in self.settings["categories"]]
        n = len(next(iter(columns.values())))
        return torch.from_numpy(self.encode(np.array(numbers).reshape(-1, n).T, _table(categories, n)))

    def encode(self, numbers: NDArray[np.float64], categories: NDArray[np.object_]) -> NDArray[np.float32]:
        """Return features (n, n_features) of numbers (n, …), NaN where one is missing, and of categories (n, …)."""
        filled = np.where(np.isnan(numbers), self.arrays["medians"], numbers)
        blocks = [(filled - self.arrays["means"]) / self.arrays["scales"]]
        for values, levels, rare in zip(categories.T, self.settings["levels"], self.settings["rare"], strict=True):
            places = {level: place for place, level in enumerate(levels)}
            one_hot = np.zeros((len(values), len(levels) + rare))
            for row, value in enumerate(values):
                if (place := places.get(value, len(levels) if rare else None)) is not None:
                    one_hot[row, place] = 1
            blocks.append(one_hot)
        with np.errstate(over="ignore"):
            features: NDArray[np.float32] = np.hstack(blocks).astype(np.float32)
        return features

    def read(self, path: Path, *, labelled: bool) -> Given:
        """Return the rows of a CSV, TSV, JSON, JSON Lines or Parquet file, and the column of the class."""
        columns, label = read_columns(path), self.settings["label"]
        labels = texts(column(columns, label, path, "label"), "label", path) if labelled else None
        n = len(next(iter(columns.values())))
        rows = [{name: values[row] for name, values in columns.items()} for row in range(n)]
        return Given([f"row {row}" for row in range(1, n + 1)], rows, labels)

    def _number(self, columns: Columns, name: str) -> NDArray[np.float64]:
        values = _column(columns, name)
        found = _numbers(values)
        if found is None or (np.abs(found) > LARGEST).any():
            raise InputError(f"the column {name!r} held numbers in the study, and here holds others; mend it")
        return found


def _by_name(examples: Any) -> Columns:
    """Return rows, a DataFrame or columns as columns by name. InputError where they are none."""
    try:
        if hasattr(examples, "columns"):
            columns: Columns = {str(name): examples[name].tolist() for name in examples.columns}
        elif isinstance(examples, Mapping):
            columns = {name: list(values) for name, values in examples.items()}
        else:
            rows = [dict(row) for row in examples]
            columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for r in rows for key in r)}
    except (TypeError, ValueError):
        columns = {}
    if not columns or not len(next(iter(columns.values()))):
        raise InputError("these are no rows with columns by name; give a DataFrame, or a list of dicts, of one or more")
    return columns


def _column(columns: Columns, name: str) -> list[Any]:
    if name not in columns:
        raise InputError(unknown("column", name, map(str, columns)) + "; the model needs every column of its study")
    return columns[name]


def _category(values: Sequence[Any]) -> list[str]:
    return ["" if is_missing(value) else str(value).strip() for value in values]


def _table(columns: Sequence[Sequence[str]], n: int) -> NDArray[np.object_]:
    return np.array(columns, object).reshape(-1, n).T


def _fitted(
    names: tuple[Sequence[str], Sequence[str]],
    numbers: NDArray[np.float64],
    categories: NDArray[np.object_],
    config: "Table.Config",
) -> Rows:
    """Return what makes features, fitted to rows of train classes: numbers (n, …) and categories (n, …)."""
    from sklearn.impute import SimpleImputer  # type: ignore[import-untyped] # here, as sklearn takes a second to import
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # type: ignore[import-untyped]

    medians = means = scales = np.empty(0)
    if numbers.shape[1]:
        imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(numbers)
        scaler = StandardScaler().fit(imputer.transform(numbers))
        medians, means, scales = imputer.statistics_, scaler.mean_, scaler.scale_
        medians = np.where(np.isnan(medians), 0.0, medians)  # of a column of which train rows have nothing
    levels: list[list[str]] = []
    rare: list[bool] = []
    if categories.shape[1]:
        one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=config.max_categories)
        one_hot.fit(categories)
        for known, few in zip(one_hot.categories_, one_hot.infrequent_categories_, strict=True):
            shared = set() if few is None else set(few)
            levels.append([level for level in known if level not in shared])
            rare.append(bool(shared))
    settings = {"numbers": list(names[0]), "categories": list(names[1]), "levels": levels, "rare": rare,
                "label": config.label}  # fmt: skip
    width = len(names[0]) + sum(map(len, levels)) + sum(rare)
    return Rows((width,), settings, {"medians": medians, "means": means, "scales": scales})


class Table(ClassSampler):
    """Tell the rows of a table apart: numbers standardised, categories one-hot, what is missing imputed."""

    name = "table"
    made_by = Rows

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
        names, numbers, categories = _features(columns, path, config)  # (n, n_numbers), (n, n_categorical)
        digests = [digest(a.tobytes() + repr(b.tolist()).encode()) for a, b in zip(numbers, categories, strict=True)]
        pools = apart(pools, np.stack(digests), labels.names, config)
        if not len(train := rows_of(pools["train"])):
            raise UserError("the train pool has no rows, to which features are fitted; give it classes")
        self.rows = _fitted(names, numbers[train], categories[train], config)
        examples = self.rows.encode(numbers, categories)
        if len(odd := np.flatnonzero(~np.isfinite(examples).all(1))):
            raise UserError(f"{path}: row {odd[0] + 1} holds a number too far from those of the train pool; mend it")
        self.fill(torch.from_numpy(examples), pools)

    def preprocessing(self, x_shape: tuple[int, ...]) -> Preprocessing:
        return self.rows

    @classmethod
    def recognise(cls, path: Path) -> Mapping[str, Any] | None:
        if (found := table_kind(path)) is None or found.text is not None:
            return None
        tasks: dict[str, Any] = {"file": str(path), "label": found.label, "duplicates": "skip"}
        return {"tasks": tasks, "encoder": {"mlp": {"width": [64, 256]}}}


def _features(
    columns: Columns, path: Path, config: Table.Config
) -> tuple[tuple[list[str], list[str]], NDArray[np.float64], NDArray[np.object_]]:
    """Return the columns of numbers (n, …), NaN where one is missing, and of categories (n, …), then empty.

    Before them stand the names of both.
    """
    for setting in ("leave_out", "categories"):
        for name in getattr(config, setting):
            column(columns, name, path, setting)
    others = {config.label, config.group, config.pool, PART, *config.leave_out}
    numbers: list[NDArray[np.float64]] = []
    categories: list[list[str]] = []
    names: tuple[list[str], list[str]] = ([], [])
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
            names[0].append(name)
        else:
            categories.append(_category(values))
            names[1].append(name)
    if not numbers and not categories:
        raise UserError(f"{path} has no columns beside {config.label!r} to tell classes by; give it some")
    n = len(columns[config.label])
    return names, np.array(numbers).reshape(-1, n).T, _table(categories, n)


def _numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Return a column (n,) as numbers, NaN where one is missing; None where any is no number."""
    try:
        return np.array([math.nan if is_missing(value) else float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return None
