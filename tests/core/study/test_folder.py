"""A run folder belongs to one process at a time, and is not left behind where nothing came of it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metaopt.errors import UserError
from metaopt.study.folder import owned

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom metaopt.study.folder import owned\n"
    "with owned(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
)


@contextmanager
def holder(folder: Path) -> Iterator[None]:
    """Let another process hold a folder, until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def test_the_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    with owned(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a").is_dir()
    assert (tmp_path / "runs" / "a").is_dir()


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    with holder(tmp_path / "a"):
        for _ in range(2):  # a refused process leaves the lock to its holder
            with pytest.raises(UserError, match=r"^another process is running the study in .*/a; wait for it, or give"):
                owned(tmp_path / "a").__enter__()
        with owned(tmp_path / "b"):
            pass
    with owned(tmp_path / "a"):
        pass


def test_a_users_mistake_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mend it$"), owned(tmp_path / "runs" / "a"):
        raise UserError("mend it")
    assert list(tmp_path.iterdir()) == []


def test_a_users_mistake_leaves_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "kept").touch()
    for name in ("a", "kept.d"):
        with pytest.raises(UserError), owned(tmp_path / "runs" / name):  # noqa: PT012
            (tmp_path / "runs" / "kept.d").mkdir(exist_ok=True)
            raise UserError("mend it")
    assert (tmp_path / "runs" / "kept").exists()
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("below", ["file", "file/a", "file/a/b"])
def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_left(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write to the run folder .*; give another with --output$"):
        owned(tmp_path / below).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot write to the run folder .*\(File name too long\); give another "):
        owned(tmp_path / "new" / ("a" * 300)).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_what_else_fails_inside_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    for error in (BlockingIOError("a full pipe"), OSError("a full disk")):
        with pytest.raises(type(error), match=r"^a full "), owned(tmp_path / "a"):
            raise error
    assert (tmp_path / "a").exists()
