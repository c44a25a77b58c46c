"""A file is there whole or not at all, whoever dies while it is written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt.files import whole, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_block_that_ends_well_puts_its_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"first", b"second"):
        with whole(path) as temporary:
            temporary.write_bytes(content)
            assert temporary.parent == tmp_path, "a rename is atomic in one file system only"
            assert (path.read_bytes() if path.exists() else b"") != content, "it must not be there before the end"
        assert path.read_bytes() == content
    assert names(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(error), whole(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_first_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", {"good": 1, "bad": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "good, and then \ud800")
    assert names(tmp_path) == set()


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    writer = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom metaopt.files import whole\n"
        "with whole(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", writer, path], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


@given(JSON)
def test_json_is_read_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_json_is_written_for_people_to_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"Größe": [1]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "Größe": [\n    1\n  ]\n}\n'.encode()
