"""A cached array is there whole or not at all, is never another's, and need not fit in memory."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metaopt import cache

NUMBERS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    """Parts that count how often they are made."""

    def __init__(self, numbers: NDArray[np.generic] = NUMBERS) -> None:
        self.numbers, self.times = numbers, 0

    def __call__(self) -> Iterator[NDArray[np.generic]]:
        self.times += 1
        yield from self.numbers


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def get(parts: cache.Parts, identity: object = "a", shape: tuple[int, ...] = (4, 2, 3)) -> NDArray[np.float32]:
    return cache.array("numbers", identity, shape, np.float32, parts)


def test_an_array_is_made_once_and_then_read_from_a_file() -> None:
    made = Made()
    for _ in range(3):
        np.testing.assert_array_equal(get(made), NUMBERS)
    assert made.times == 1


def test_the_array_is_mapped_and_torch_may_write_to_its_copy_alone(folder: Path) -> None:
    array = get(Made())
    assert isinstance(array, np.memmap)
    torch.from_numpy(array).zero_()  # a warning, which is an error here, where memory is read-only
    np.testing.assert_array_equal(get(Made()), NUMBERS)
    np.testing.assert_array_equal(np.load(files(folder)[0], allow_pickle=False), NUMBERS)


@pytest.mark.parametrize("other", ["b", ("a",), "a ", None, "\udcff.png"])
def test_an_array_of_another_identity_is_another_file(folder: Path, other: object) -> None:
    get(Made())
    made = Made(NUMBERS + 1)
    np.testing.assert_array_equal(get(made, other), NUMBERS + 1)
    assert made.times == 1
    assert len(files(folder)) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: whole[:7],
        lambda whole: whole[:-1],
        lambda whole: b"\0" * len(whole),
        lambda whole: whole.replace(b"<f4", b"<i4"),
        lambda whole: whole.replace(b"(4, 2, 3)", b"(4, 3, 2)"),
        lambda whole: whole.replace(b"(4, 2, 3)", b"(9, 9, 9)"),
    ],
    ids=["empty", "7 bytes", "last byte lost", "zeros", "another type", "another shape", "larger than the file"],
)
def test_a_torn_file_is_made_anew(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    get(Made())
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    made = Made()
    np.testing.assert_array_equal(get(made), NUMBERS)
    assert made.times == 1
    assert file.read_bytes() == whole


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_what_interrupts_the_making_is_passed_on_and_leaves_nothing(folder: Path, failure: type[BaseException]) -> None:
    def interrupted() -> Iterator[NDArray[np.float32]]:
        yield NUMBERS[0]
        assert len(files(folder)) == 1  # what is written so far
        raise failure

    with pytest.raises(failure):
        get(interrupted)
    assert files(folder) == []


def test_a_full_disk_costs_the_cache_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    np.testing.assert_array_equal(get(Made()), NUMBERS)
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "file" / "cache"))
    made = Made()
    np.testing.assert_array_equal(get(made), NUMBERS)
    assert made.times == 1  # not first in vain


def test_parts_that_do_not_fill_the_array_are_never_cached(folder: Path) -> None:
    with pytest.raises(AssertionError, match="not the bytes of an array"):
        get(Made(NUMBERS[:3]))
    assert files(folder) == []


def test_parts_that_a_killed_process_left_are_removed_and_those_of_a_live_one_kept(folder: Path) -> None:
    folder.mkdir()
    old, new = folder / "x.npy.1.part", folder / "y.npy.2.part"
    for part in (old, new):
        part.touch()
    os.utime(old, (time.time() - 2 * cache.ABANDONED,) * 2)
    get(Made())
    assert not old.exists()
    assert new.exists()


def test_processes_that_make_one_array_at_once_do_no_harm(folder: Path) -> None:
    together = Barrier(4, timeout=10)

    def parts() -> Iterator[NDArray[np.float32]]:
        together.wait()
        yield NUMBERS

    with ThreadPoolExecutor(4) as threads:
        arrays = list(threads.map(lambda _: get(parts), range(4)))
    for array in arrays:
        np.testing.assert_array_equal(array, NUMBERS)
    assert [file.suffix for file in files(folder)] == [".npy"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"METAOPT_CACHE": "a", "XDG_CACHE_HOME": "b", "HOME": "c"}, "a"),
        ({"XDG_CACHE_HOME": "b", "HOME": "c"}, "b/metaopt"),
        ({"HOME": "c"}, "c/.cache/metaopt"),
        ({"METAOPT_CACHE": "~/a", "HOME": "c"}, "c/a"),
    ],
)
def test_the_cache_stands_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("METAOPT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(expected)
