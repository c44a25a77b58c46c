"""Tables in a user's files: CSV, TSV, JSON, JSON Lines and Parquet, read into columns."""

import csv
import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.errors import UserError, unknown
from metaopt.pools import GIVEN, Labels

Columns = dict[str, list[Any]]
"""Columns by name, all of one length."""
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
MISSING = frozenset(["", "na", "n/a", "nan", "null", "none", "?"])
"""How tables write that a value is missing, in small letters."""
PART = "(part)"
"""The column that says which list of a JSON file such as {"train": […], "test": […]} a row stands in."""


LABELS = ("label", "class", "target", "y", "category", "intent", "species")
"""What tables call the column of the class, most often first."""
TEXTS = ("text", "sentence", "utterance", "query", "question", "title", "content", "review")
WORDY = 3  # words of a cell, on average, that make a column one of texts


class TableKind(NamedTuple):
    """What a table seems to hold."""

    label: str
    """The column of the class."""
    text: str | None
    """The column of texts; None where the table is one of numbers and categories."""


def table_kind(path: Path) -> TableKind | None:
    """Return what a table seems to hold; None where `path` is none, or no column seems to be the class.

    The class is the column called so, or the last one; a text is a column called so, or one of several words a cell.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return None
    columns = read_columns(path)
    names = {name.lower(): name for name in reversed([name for name in columns if name != PART])}
    label = next((names[name] for name in LABELS if name in names), next(iter(names.values())))
    text = next((names[name] for name in TEXTS if name in names and names[name] != label), None)
    for name, values in columns.items():
        if text is None and name not in {label, PART} and all(isinstance(value, str) for value in values):
            distinct = set(values)
            if len(distinct) > len(values) / 2 and sum(len(v.split()) for v in distinct) >= WORDY * len(distinct):
                text = name
    return TableKind(label, text)


def find(setting: str, given: str, what: str) -> Path:
    """Return the path that a setting gives: from here, or from $METAOPT_DATA. UserError where there is none."""
    if not given:
        raise UserError(f"tasks.{setting} is empty; name {what} with --set tasks.{setting}=PATH")
    data = os.environ.get("METAOPT_DATA")
    path = Path(given).expanduser()
    for place in [path, *([Path(data).expanduser() / path] if data else [])]:
        if place.exists():
            return place
    beside = f", nor in METAOPT_DATA ({data})" if data and not path.is_absolute() else ""
    raise UserError(f"tasks.{setting}: there is no {path}{beside}; name {what} with --set tasks.{setting}=PATH")


def read_columns(path: Path, parts: Sequence[str] = ()) -> Columns:
    """Return the columns of a table, with a row or more. `parts` are the lists of a JSON file to read; none means all.

    JSON holds a list of objects or of [text, label] pairs, or such lists by name, or columns by name. Raises UserError
    where the file is damaged or not such a table.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is no table that metaopt reads; give a file that ends in {', '.join(SUFFIXES)}")
    try:
        if suffix in {".csv", ".tsv"}:
            columns = _read_csv(path, "\t" if suffix == ".tsv" else "")
        elif suffix == ".parquet":
            columns = _read_parquet(path)
        else:
            columns = _columns_of(path, _read_json(path), parts)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__  # pyarrow says some in several lines
        raise UserError(f"{path} cannot be read ({reason}); mend the file or write it again") from None
    if parts and PART not in columns:
        raise UserError(f"tasks.parts is set and {path} holds one list of rows, without parts; leave tasks.parts out")
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{path} holds no rows; give a table with examples")
    return columns


def column(columns: Columns, name: str, path: Path, setting: str) -> list[Any]:
    """Return the column that a setting names. UserError where there is none."""
    if not isinstance(name, str) or name not in columns:  # a study file's list may hold anything
        raise UserError(f"tasks.{setting}: {path}: {unknown('column', name, columns)}")
    return columns[name]


def labels_of(columns: Columns, path: Path, config: Any) -> Labels:
    """Return what the columns that `config` names as label, group and pool say of each row.

    Where none is named pool and all parts of a JSON file are called as pools are, they are.
    """
    given = {
        setting: texts(column(columns, name, path, setting), setting, path)
        for setting in ("label", "group", "pool")
        if (name := getattr(config, setting))
    }
    if "label" not in given:
        raise UserError("tasks.label is empty; name the column of the class")
    if "pool" not in given and PART in columns and set(columns[PART]) <= GIVEN.keys():
        given["pool"] = columns[PART]
    names = [f"row {row}" for row in range(1, len(given["label"]) + 1)]
    return Labels(names, given["label"], given.get("group"), given.get("pool"))


def texts(values: Sequence[Any], what: str, path: Path) -> list[str]:
    """Return classes, groups or pools as texts: 3, 3.0 and "3" are one. UserError where a row has none."""
    return [_text(value, what, f"{path}: row {row}") for row, value in enumerate(values, start=1)]


def _text(value: Any, what: str, where: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Mapping | list):
        raise UserError(f"{where}: the {what} is {str(value)[:40]}; write a text or a number")
    text = str(value).strip()
    if value is None or text in {"", "nan"}:
        raise UserError(f"{where} has no {what}; write one, or leave the row out")
    return text


def is_missing(value: Any) -> bool:
    """Whether a value of a table is missing."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read_csv(path: Path, delimiter: str) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin UTF-8 with a mark
        if not delimiter:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)  # the comma where there is none
            file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if "" in header or len(set(header)) < len(header):
            raise ValueError("its first line must name the columns, each differently")
        rows = []
        for row in reader:
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} fields and the first line {len(header)}")
            rows.append(row)
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _read_parquet(path: Path) -> Columns:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"reading {path} needs pyarrow; pip install pyarrow, or save the table as CSV") from None
    columns: Columns = parquet.read_table(path).to_pydict()
    return columns


def _read_json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would break texts at U+2028
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return rows


def _columns_of(path: Path, data: Any, parts: Sequence[str]) -> Columns:
    if isinstance(data, Mapping) and data and all(isinstance(values, list) for values in data.values()):
        if all(isinstance(item, Mapping | list) for values in data.values() for item in values):
            return _join(path, data, parts)
        if len({len(values) for values in data.values()}) > 1:
            raise ValueError("its columns differ in length")
        return dict(data)
    if not isinstance(data, list):
        raise ValueError("it holds neither a list of rows nor lists by name")
    return _of_rows(data)


def _join(path: Path, data: Mapping[str, list[Any]], parts: Sequence[str]) -> Columns:
    for part in parts:
        if part not in data:
            raise UserError(f"tasks.parts: {path}: {unknown('part', str(part), data)}")
    chosen = parts or list(data)
    columns = _of_rows([row for part in chosen for row in data[part]])
    columns[PART] = [part for part in chosen for _ in data[part]]
    return columns


def _of_rows(rows: list[Any]) -> Columns:
    names: dict[str, None] = {}
    objects: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, list) and len(row) == 2:
            row = {"text": row[0], "label": row[1]}  # noqa: PLW2901
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} is neither an object nor a pair [text, label]")
        objects.append(row)
        names |= dict.fromkeys(row)
    return {name: [row.get(name) for row in objects] for name in names}
