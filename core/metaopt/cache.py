"""Arrays that are costly to make, kept on disk between runs: there whole or not at all, and memory-mapped."""

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike, NDArray

ABANDONED = 3600  # seconds after which a part that nobody writes to is what a killed process left behind

Parts = Callable[[], Iterable[NDArray[Any]]]
"""Makes an array piece by piece, so that it need not fit in memory: its numbers in C order."""


def folder() -> Path:
    """Return the folder of the cache: $METAOPT_CACHE, or metaopt in $XDG_CACHE_HOME or in ~/.cache."""
    given = os.environ.get("METAOPT_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "metaopt")).expanduser()


def array(name: str, identity: object, shape: tuple[int, ...], dtype: DTypeLike, parts: Parts) -> NDArray[Any]:
    """Return the array that `parts` make: from the cache, or made and then cached.

    `identity` is everything that the numbers depend on, as plain values whose repr is complete; where that is another,
    so is the cached file, whose name `name` begins. The array is mapped, so that only what is used is read, and copied
    on write, so that torch may take it. A cache that cannot be written costs time at the next start and no more. What
    `parts` raises, but for OSError, is passed on, and nothing is left behind.
    """
    path = folder() / f"{name}-{sha256(repr(identity).encode()).hexdigest()[:32]}.npy"
    found = _mapped(path)
    if found is None or found.dtype != dtype or found.shape != shape:  # absent, torn or not readable
        try:
            _write(path, shape, np.dtype(dtype), parts)
            found = _mapped(path)
        except OSError:
            found = None
    return _in_memory(shape, dtype, parts) if found is None else found


def _mapped(path: Path) -> NDArray[Any] | None:
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError):
        return None


def _write(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Parts) -> None:
    """Write under a name that nobody else uses, then rename: a reader finds a whole file or none.

    By plain writes: where a disk is full they raise, and writing to mapped memory would kill the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.part"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            end = file.tell() + math.prod(shape) * dtype.itemsize
            for numbers in parts():
                file.write(np.ascontiguousarray(numbers, dtype).data)
            assert file.tell() == end, f"the parts are not the bytes of an array {shape} of {dtype}"
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _in_memory(shape: tuple[int, ...], dtype: DTypeLike, parts: Parts) -> NDArray[Any]:
    made = np.empty(shape, dtype)
    flat, end = made.reshape(-1), 0
    for numbers in parts():
        start, end = end, end + numbers.size
        flat[start:end] = numbers.ravel()
    return made
