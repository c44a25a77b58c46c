"""Tables are read as people write them, and what is damaged is named, never guessed."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaopt.errors import UserError
from metaopt_tasks.files import Columns, column, find, is_missing, read_columns, texts

COLUMNS = {"text": ["ein Wort", "d'accord, „ça va“", 'a "quoted" word'], "label": ["de", "fr", "en"]}
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
PAIRS = [[row["text"], row["label"]] for row in ROWS]


def write(path: Path, content: str | bytes | Any) -> Path:
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def as_csv(columns: Columns, delimiter: str = ",") -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", as_csv(COLUMNS)),
        ("semicolons.csv", as_csv(COLUMNS, ";")),
        ("a.tsv", as_csv(COLUMNS, "\t")),
        ("of a spreadsheet.CSV", "\ufeff" + as_csv(COLUMNS)),
        ("blank lines.csv", as_csv(COLUMNS).replace("\r\n", "\n\n")),
        ("objects.json", ROWS),
        ("pairs.json", PAIRS),
        ("columns.json", COLUMNS),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("pairs.jsonl", "\r\n".join(map(json.dumps, PAIRS))),
    ],
)
def test_a_table_is_read_whichever_way_it_is_written(tmp_path: Path, name: str, content: Any) -> None:
    assert read_columns(write(tmp_path / name, content)) == COLUMNS


printable = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


@given(rows=st.lists(st.tuples(printable, printable), min_size=1, max_size=6))
def test_every_text_survives_csv_and_json_lines(rows: list[tuple[str, str]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("texts")
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    assert read_columns(write(folder / "a.csv", as_csv(columns))) == columns
    lines = "\n".join(json.dumps(list(row), ensure_ascii=False) for row in rows)
    assert read_columns(write(folder / "a.jsonl", lines)) == columns


def test_lists_by_name_are_parts_of_one_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"train": PAIRS[:1], "oos": PAIRS[1:2], "test": PAIRS[2:]})
    assert read_columns(path) == COLUMNS | {"(part)": ["train", "oos", "test"]}
    assert read_columns(path, ("test", "train"))["label"] == ["en", "de"]
    with pytest.raises(UserError, match=r"tasks\.parts: .*a\.json: no part named 'tests'; did you mean 'test'"):
        read_columns(path, ("tests",))
    with pytest.raises(UserError, match=r"leave tasks\.parts out"):
        read_columns(write(tmp_path / "b.json", PAIRS), ("test",))


def test_keys_that_some_objects_lack_are_missing_there(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path / "a.json", [{"a": 1}, {"b": 2.5}, {"a": None, "b": True}]))
    assert columns == {"a": [1, None, None], "b": [None, 2.5, True]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,text\na,b\n", "its first line must name the columns, each differently"),
        ("a.csv", "text,\na,b\n", "its first line must name the columns"),
        ("a.csv", "text,label\na,b\nc\n", r"line 3 has 1 fields and the first line 2\); mend"),
        ("a.csv", 'text,label\n"a,b\n', r"unexpected end of data"),
        ("a.csv", "text,label\n" + "x" * 200_000 + ",b\n", r"field larger than field limit"),
        ("a.csv", b"text,label\n\xff\xfe,b\n", r"is not a text in UTF-8 \(invalid start byte at byte 11\); save it"),
        ("a.json", "", r"cannot be read \(Expecting value"),
        ("a.json", '[["a", "b"]', r"cannot be read \(Expecting ',' delimiter"),
        ("a.json", "[" * 100_000, r"cannot be read \(.*recursion"),
        ("a.json", [], "holds no rows"),
        ("a.json", {}, "holds neither a list of rows nor lists by name"),
        ("a.json", 7, "holds neither a list of rows nor lists by name"),
        ("a.json", {"a": [1], "b": [1, 2]}, "its columns differ in length"),
        ("a.json", [["a", "b"], ["a"]], "row 2 is neither an object nor a pair"),
        ("a.json", {"train": [["a", "b"]], "test": [["a", "b", "c"]]}, "row 2 is neither an object nor a pair"),
        ("a.jsonl", '["a", "b"]\n["c", \n', r"line 2: Expecting value"),
        ("a.xlsx", "PK", r"a\.xlsx is no table that metaopt reads; give a file that ends in \.csv, \.tsv, \.json"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(tmp_path: Path, name: str, content: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        read_columns(write(tmp_path / name, content))
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(data=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".tsv", ".json", ".jsonl"]))
def test_any_bytes_give_columns_of_one_length_or_a_refusal(data: bytes, suffix: str, tmp_path_factory: Any) -> None:
    path = write(tmp_path_factory.mktemp("any") / f"a{suffix}", data)
    try:
        columns = read_columns(path)
    except UserError:
        return
    assert len({len(values) for values in columns.values()}) == 1


def test_parquet_needs_pyarrow_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"a\.parquet needs pyarrow; pip install pyarrow, or save the table as CSV"):
        read_columns(path)


def as_parquet(columns: Columns) -> bytes:
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path: Path) -> None:
    columns = {**COLUMNS, "n": [1.5, None, -2.0], "vector": [[1, 2], [3], []]}
    assert read_columns(write(tmp_path / "a.parquet", as_parquet(columns))) == columns


MANY = {"text": [f"sätze {n}" for n in range(40)], "label": [f"c{n % 8}" for n in range(40)]}
WRITTEN: dict[str, Callable[[], bytes]] = {
    ".csv": lambda: as_csv(MANY).encode(),
    ".json": lambda: json.dumps(MANY).encode(),
    ".jsonl": lambda: "\n".join(json.dumps(list(row)) for row in zip(*MANY.values(), strict=True)).encode(),
    ".parquet": lambda: as_parquet(MANY),
}


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(list(WRITTEN)))
def test_a_table_cut_off_or_damaged_anywhere_is_read_or_refused_in_one_line_and_nothing_is_written(
    data: st.DataObject, suffix: str, tmp_path: Path
) -> None:
    whole = bytearray(WRITTEN[suffix]())
    cut = data.draw(st.booleans())
    if cut:
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = write(tmp_path / f"a{suffix}", bytes(whole))
    before = set(tmp_path.rglob("*"))
    refusal, columns = "", {}
    try:
        columns = read_columns(path)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not refusal or path.name in refusal
    assert refusal or len({len(values) for values in columns.values()}) == 1
    assert refusal or not cut or suffix in {".csv", ".jsonl"}, "only what is written line by line may end early unseen"
    assert set(tmp_path.rglob("*")) == before


def test_a_path_is_looked_for_here_and_then_where_metaopt_data_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("METAOPT_DATA", raising=False)
    with pytest.raises(UserError, match=r"tasks\.file: there is no a\.csv; name a table with --set tasks\.file=PATH"):
        find("file", "a.csv", "a table")
    there = write(tmp_path / "data" / "a.csv", "")
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "data"))
    assert find("file", "a.csv", "a table") == there
    here = write(tmp_path / "here" / "a.csv", "")
    assert find("file", "a.csv", "a table").resolve() == here
    with pytest.raises(UserError, match=r"there is no b\.csv, nor in METAOPT_DATA \(.*data\)"):
        find("file", "b.csv", "a table")
    with pytest.raises(UserError, match=r"tasks\.file is empty; name a table with --set tasks\.file=PATH"):
        find("file", "", "a table")


def test_a_column_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"tasks\.label: a\.csv: no column named 'lable'; did you mean 'label'"):
        column(COLUMNS, "lable", Path("a.csv"), "label")


def test_a_class_is_the_same_as_a_number_and_as_a_text() -> None:
    assert texts([3, 3.0, "3", " 3 ", True], "label", Path("a.csv")) == ["3", "3", "3", "3", "True"]


@pytest.mark.parametrize("value", ["", " ", None, math.nan, [1], {"a": 1}])
def test_a_row_without_a_class_is_refused_by_its_number(value: Any) -> None:
    with pytest.raises(UserError, match=r"a\.csv: row 2"):
        texts(["a", value], "label", Path("a.csv"))


def test_missing_values_are_known_by_their_usual_names() -> None:
    assert all(map(is_missing, [None, math.nan, "", " ", "NA", "n/a", "NaN", "null", "None", "?"]))
    assert not any(map(is_missing, [0, 0.0, False, "0", "nano", "-", math.inf]))
