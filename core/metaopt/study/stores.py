"""Storages that many processes share, and the lock of a study in each.

Optuna's storages keep each write whole, and no more, so whoever takes or closes a trial holds a lock meanwhile: an
advisory lock of PostgreSQL, which ends with its holder's connection, the kernel's on a file beside the journal, or that
of a proxy (metaopt.study.proxy).
"""

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from metaopt.errors import UserError
from metaopt.study.patience import LockLostError, UnansweredError
from metaopt.study.storage import first_line, is_journal, is_proxy, open_storage, with_driver

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT = 10.0
"""Seconds between a worker's signs of life."""
SILENT = 6
"""Beats that a worker misses before it is taken for dead."""
NOT_YET = ("the database system is", "terminating connection", "too many clients", "connection slots are reserved")
"""What PostgreSQL says that refuses a connection only for now: it starts, stops, is mended, or is full."""
LOCK_SECONDS = 30
"""To wait for the storage's lock before that counts as a storage that is away."""


@dataclass(frozen=True)
class Store:
    """A storage that many processes share."""

    storage: BaseStorage
    alone: Callable[[], AbstractContextManager[None]]
    """Holds the lock of one study."""
    close: Callable[[], None] = lambda: None
    artifacts: str | None = None
    """A folder for checkpoints of long trials, where no other place is given for them."""


def open_store(url: str, study: str, *, new: bool = False) -> Store:
    """Open a storage that many processes share; with `new` a journal file may be begun.

    Raises UserError where it cannot be opened, or is none of that kind.
    """
    if is_journal(url):
        journal = Path(url)
        if not journal.parent.is_dir():
            raise UserError(f"--storage: there is no folder {journal.parent}; make it, or give another path")
        if not new and not journal.exists():
            raise UserError(f"--storage: there is no file {journal}; `metaopt study create` makes it")
        if not fcntl:
            raise UserError("--storage: a journal file cannot be shared on this system; give a PostgreSQL database")
        journals = open_storage(journal.parent, url)
        artifacts = str(journal.resolve().with_suffix(".artifacts"))
        return Store(journals, _FileLock(journal.with_name(f"{journal.name}.{study}.lock")), artifacts=artifacts)
    if is_proxy(url):
        from metaopt.study import proxy

        client = proxy.Client.at(url)
        return Store(client, partial(client.alone, study), client.close)
    storage, lock, close = open_database(url)
    return Store(storage, partial(lock, study), close)


def open_database(url: str) -> tuple[BaseStorage, "DatabaseLock", Callable[[], None]]:
    """Return a database as a storage, its lock, and what ends its connections. UserError where it cannot be opened."""
    if not url.startswith(("postgres://", "postgresql://", "postgresql+")):
        raise UserError(
            "--storage: many workers share a PostgreSQL database (postgresql+psycopg://USER@HOST/DATABASE), a journal "
            "file on a disk that all of them see (/shared/journal.log), or what `metaopt proxy` answers for "
            "(grpc://HOST:PORT); give one of these"
        )
    if find_spec("psycopg") is None and find_spec("psycopg2") is None:
        raise UserError("--storage: PostgreSQL needs a driver; pip install 'metaopt-fewshot[postgres]'")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for attempt in range(4):
        try:
            # Tables are made and checked by connections that nest, of which the lasting one is not to be.
            RDBStorage(with_driver(url), engine_kwargs={"connect_args": {"connect_timeout": 10}}).engine.dispose()
            rdb = RDBStorage(
                with_driver(url),
                engine_kwargs=_engine_settings(),
                skip_table_creation=True,
                skip_compatibility_check=True,
            )
            break
        except Exception as error:  # SQLAlchemy's and its drivers' errors have no common kind
            cause = error.__cause__ or error
            made = any(isinstance(one, IntegrityError | ProgrammingError) for one in (error, cause))
            if made and attempt < 3:
                time.sleep(0.5 * (attempt + 1))  # another process is making the tables at this moment
                continue
            raise _mistake(error)(
                f"--storage: cannot open that storage ({first_line(cause, url)}); see that the database is there and "
                "answers, as by psql"
            ) from None
    return optuna.storages.get_storage(rdb), DatabaseLock(rdb.engine), rdb.engine.dispose


def _mistake(error: BaseException) -> type[UserError]:
    """Return the kind of an error at opening: what a server refuses is a mistake, one that is silent may be back."""
    said, kinds = str(error.__cause__ or error), (error, error.__cause__)
    refused = "FATAL" in said and not any(sign in said for sign in NOT_YET)
    silent = any(isinstance(one, OperationalError) for one in kinds)
    return UnansweredError if silent and not refused else UserError


def _engine_settings() -> dict[str, Any]:
    """Return SQLAlchemy's settings: one lasting connection a process, and a server that soon notices who is gone."""
    server = {
        "lock_timeout": LOCK_SECONDS * 1000,  # ms
        "tcp_keepalives_idle": 15,  # s
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
    }
    options = " ".join(f"-c {name}={value}" for name, value in server.items())
    return {
        "pool_size": 1,  # and no more, so that what holds the lock is what writes
        "max_overflow": 0,
        "pool_timeout": LOCK_SECONDS,
        "pool_pre_ping": True,
        "connect_args": {"connect_timeout": 10, "options": options, "application_name": "metaopt"},
    }


class _FileLock:
    """The kernel's lock on a file beside the journal; it ends with its holder."""

    def __init__(self, path: Path) -> None:
        self.path, self.threads = path, threading.RLock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.threads, self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class DatabaseLock:
    """Advisory locks of PostgreSQL, held by the connection through which all is written while one is held.

    Should that connection end, so does the lock, and a write by another connection is refused here.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.threads = engine, threading.RLock()
        self.holder: Any = None
        engine.dispose()  # connections of before do not know what follows
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._refuse_others)

    @contextmanager
    def __call__(self, study: str) -> Iterator[None]:
        """Hold the lock of the study of that name."""
        key = {"space": zlib.crc32(b"metaopt") - 2**31, "key": zlib.crc32(study.encode()) - 2**31}
        with self.threads:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(:space, :key)"), key)
                self.holder = connection.connection.dbapi_connection
            try:
                yield
            finally:
                self.holder = None
                try:
                    with self.engine.connect() as connection:
                        connection.execute(text("SELECT pg_advisory_unlock(:space, :key)"), key)
                except SQLAlchemyError:
                    self.engine.dispose()  # which ends the lock, too

    def _refuse_others(self, connection: Any, record: object, proxy: object) -> None:
        if self.holder is not None and connection is not self.holder:
            raise LockLostError("the connection to the database was lost while a trial was taken or closed")

    def _connected(self, connection: Any, record: object) -> None:
        """Let the server end the session, and with it the lock, of a process that is frozen."""
        for setting in ("idle_in_transaction_session_timeout", "idle_session_timeout"):
            with suppress(Exception), connection.cursor() as cursor:  # the latter is new in PostgreSQL 14
                cursor.execute(f"SET {setting} = '{round(SILENT * BEAT)}s'")
            with suppress(Exception):
                connection.commit()
