"""Where trials are kept: Optuna's journal file with its gaps closed, or any storage that Optuna opens by URL."""

import json
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation

from metaopt.errors import UserError, of_disk

try:
    import fcntl
except ImportError:  # Windows, where Optuna's own lock serves
    fcntl = None  # type: ignore[assignment]

JOURNAL = "journal.log"
WHILE_A_TRIAL_RUNS = {
    JournalOperation.CREATE_TRIAL,
    JournalOperation.SET_TRIAL_PARAM,
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
    JournalOperation.SET_TRIAL_STATE_VALUES,
    JournalOperation.SET_TRIAL_USER_ATTR,
    JournalOperation.SET_TRIAL_SYSTEM_ATTR,
}
"""Lines of one trial, for all of which its result speaks."""


class MendingLock:
    """A lock on the journal that dies with its holder and mends the file before anything is written.

    Optuna's own locks are files: one that a killed process leaves stalls the next writer for 30 seconds. And a writer
    killed in the middle of a line would leave a torn one, on which the next line would be stuck, and every later
    reading would fail. So the lock is the kernel's, and its holder first cuts the journal back to its last whole line.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal

    def acquire(self) -> bool:
        """Wait for the lock, then mend the journal."""
        file = self.journal.open("rb+")
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_torn_line(file)
        self.file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        self.file.close()


class CheckedJournal(JournalFileBackend):
    """Optuna's journal file, each line with its checksum at its end: a flipped bit is noticed and not believed.

    Lines without one are read too, such as those that optuna-dashboard writes; Optuna reads those with one. The disk is
    waited for at a result, with which all before it is on it too, and not at each of the seven lines of a trial: what a
    machine that dies may lose is what a trial chose that was not done yet.
    """

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Write lines."""
        lines = b"".join(_line(log | {"crc": _crc(_line(log)[:-1])}) + b"\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(lines)
            file.flush()
            if any(log["op_code"] not in WHILE_A_TRIAL_RUNS or "result" in log.get("user_attr", {}) for log in logs):
                os.fsync(file.fileno())


def _line(log: Mapping[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode()


def _crc(beginning: bytes) -> str:
    return f"{zlib.crc32(beginning):08x}"


def _refuse_damage(journal: Path) -> None:
    """Raise ValueError where a whole line is not as it was written. What a killed writer began is no whole line."""
    with journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            beginning, sign, end = line.rpartition(b',"crc":"')
            if line.endswith(b"\n") and sign and end != f'{_crc(beginning)}"}}\n'.encode():
                raise ValueError(f"line {number} is not as it was written")


def _cut_torn_line(file: IO[bytes]) -> None:
    whole = end = file.seek(0, os.SEEK_END)
    while whole and (file.seek(whole - 1), file.read(1))[1] != b"\n":
        whole -= 1
    if whole < end:
        file.truncate(whole)


def is_journal(url: str) -> bool:
    """Tell whether what `--storage` was given is the path of a journal file, and no URL."""
    return "://" not in url and url.endswith(".log")


def is_proxy(url: str) -> bool:
    """Tell whether what `--storage` was given is the address of a `metaopt proxy`."""
    return url.startswith("grpc://")


def with_driver(url: str) -> str:
    """Return a URL of PostgreSQL with the driver that the extra [postgres] brings, where it names none."""
    scheme, sign, rest = url.partition("://")
    without = scheme in {"postgres", "postgresql"} and find_spec("psycopg2") is None and find_spec("psycopg")
    return f"postgresql+psycopg{sign}{rest}" if without else url


def first_line(error: BaseException, url: str) -> str:
    """Return what a storage's error says first, without the storage's URL and its password."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    reason = reason.replace(url, "it")
    with suppress(ValueError):
        if password := urlsplit(url).password:
            reason = reason.replace(password, "***").replace(unquote(password), "***")
    return reason


def open_storage(folder: Path, url: str | None = None) -> BaseStorage:
    """Return the storage at `url`, or the journal file in `folder`. Raises UserError where it cannot be opened.

    A `url` that is the path of a file `….log` is that of a journal, as workers on several machines share one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url and is_proxy(url):
        from metaopt.study import proxy

        return proxy.Client.at(url)
    if url and not is_journal(url):
        try:
            storage = optuna.storages.get_storage(with_driver(url))
            if engine := getattr(getattr(storage, "_backend", None), "engine", None):
                weakref.finalize(storage, engine.dispose)  # ends its connections, which drivers complain of otherwise
            return storage
        except Exception as error:  # SQLAlchemy's and its drivers' errors have no common kind
            reason = first_line(error, url)
            raise UserError(
                f"--storage: cannot open that storage ({reason}); give a URL such as sqlite:///study.db"
            ) from None
    journal = Path(url) if url else folder / JOURNAL
    try:
        backend = CheckedJournal(str(journal), cast(Any, MendingLock(journal)) if fcntl else None)
        _refuse_damage(journal)
        return JournalStorage(backend)
    except Exception as error:  # Optuna's reader raises what a damaged journal makes it
        if of_disk(error):
            raise
        raise UserError(
            f"{journal}: cannot be read as a journal ({error}); restore it, or give another --output"
        ) from None
