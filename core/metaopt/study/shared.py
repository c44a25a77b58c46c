"""One study, worked on by many processes on many machines, which know of each other by the storage alone.

Optuna's storages keep each write whole, and no more: two workers that both count 499 trials would both begin the last
of 500. So whoever takes or closes a trial holds a lock of the storage meanwhile: an advisory lock of PostgreSQL, which
ends with its holder's connection, or the kernel's on a file beside the journal. A trial that is taken carries a claim:
who has it, for which time, and a beat that its holder writes every few seconds. A worker that finds its claim
gone, as one that was frozen or cut off from the network may, drops what it has. Beats are compared, and never clocks.
"""

import base64
import logging
import math
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from metaopt.errors import UserError
from metaopt.study.crew import LOST
from metaopt.study.ledger import ATTEMPTS, Ledger
from metaopt.study.patience import AWAY, LockLostError, UnansweredError
from metaopt.study.storage import first_line, is_journal, open_storage, with_driver
from metaopt.study.trial import INTERRUPTED, TIMEOUT, Bench, Done, Job, TrialResult

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

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
        storage = open_storage(journal.parent, url)
        return Store(storage, _FileLock(journal.with_name(f"{journal.name}.{study}.lock")))
    if not url.startswith(("postgres://", "postgresql://", "postgresql+")):
        raise UserError(
            "--storage: many workers share a PostgreSQL database (postgresql+psycopg://USER@HOST/DATABASE) or a "
            "journal file on a disk that all of them see (/shared/journal.log); give one of these"
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
    return Store(optuna.storages.get_storage(rdb), _DatabaseLock(rdb.engine, study), rdb.engine.dispose)


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


class _DatabaseLock:
    """An advisory lock of PostgreSQL, held by the connection through which all is written while it is held.

    Should that connection end, so does the lock, and a write by another connection is refused here.
    """

    def __init__(self, engine: Engine, study: str) -> None:
        self.engine, self.threads = engine, threading.RLock()
        self.key = {"space": zlib.crc32(b"metaopt") - 2**31, "key": zlib.crc32(study.encode()) - 2**31}
        self.holder: Any = None
        engine.dispose()  # connections of before do not know what follows
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._refuse_others)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.threads:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(:space, :key)"), self.key)
                self.holder = connection.connection.dbapi_connection
            try:
                yield
            finally:
                self.holder = None
                try:
                    with self.engine.connect() as connection:
                        connection.execute(text("SELECT pg_advisory_unlock(:space, :key)"), self.key)
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


@dataclass(frozen=True)
class Claim:
    """That a worker has a trial."""

    by: str
    """Names this very claim."""
    attempts: int
    """Times that the trial was begun, this one included."""
    every: float
    """Seconds between its beats."""
    trial_id: int
    sign: float
    """When this worker gave its last sign of life, on its monotonic clock."""

    def marks(self) -> dict[str, Any]:
        """Return what the storage holds of it."""
        return {"by": self.by, "attempts": self.attempts, "every": self.every}


class Shared(Ledger):
    """The trials of a study that many processes work on."""

    shared = True

    def __init__(self, bench: Bench, store: Store, folder: Path, *, beat: float = BEAT) -> None:
        """Open the study in the storage, or create it. UserError where another is there, or one of `study run`."""
        self.store, self.beat = store, beat
        self.claims: dict[int, Claim] = {}
        """What this process has."""
        self.gone: set[int] = set()
        """Trials of this process that others have taken, since it was silent for too long."""
        self.guard = threading.Lock()
        """Of these two, which a thread that gives signs of life changes as well."""
        self.beats = 0
        self.signs: dict[int, tuple[Any, float]] = {}
        """By running trial its last sign of life and when this process first saw it, on its monotonic clock."""
        self.looked = -math.inf
        self.taken: Claim | None = None
        """A trial that this process took, and did not choose yet when the storage went away."""
        self.has_begun = False
        """Whether the study's time is known to run."""
        self.limit = bench.study.trials
        """Trials in all, when it was last asked for: `study create` may change it."""
        super().__init__(bench, store.storage, folder)

    def _refuse_other_keeper(self) -> None:
        if not self.optuna.user_attrs.get("shared"):
            raise UserError(
                f"the study {self.bench.study.name!r} in this storage was begun by `metaopt study run`, which alone "
                "goes on with it; set another name in the study file"
            )

    def _checkpoint(self, number: int) -> None:
        """Keep none: who takes a trial over may be on another machine."""

    def _take_up(self) -> None:
        pass  # others may run them now: see `_orphan`

    @property
    def over(self) -> bool:
        """Whether every trial is done."""
        trials = self.optuna.get_trials(deepcopy=False)
        return not _running(trials) and not self._is_open(trials)

    def claim(self) -> Job | None:
        """Take a trial and return it as a job; None where there is none to take now."""
        if self.taken is None:
            trials = self.refresh()
            orphaned = any(map(self._is_orphan, _running(trials)))
            if not self._is_open(trials) and not orphaned:
                return None
            with self.store.alone():
                self.taken = (self._orphan() if orphaned else None) or self._fresh(trials)
        if self.taken is None:
            return None
        claim = self.taken
        trial = optuna.Trial(self.optuna, claim.trial_id)
        params, deadline = self.bench.study.space.suggest(trial), self._deadline()
        # From here on it counts as had, and signs of life are given for it: nothing after this may need the storage.
        self.running[trial.number], self.claims[trial.number], self.taken = trial, claim, None
        return self.job(trial.number, params, deadline)

    def refresh(self) -> list[FrozenTrial]:
        """Read what others have done; return every trial."""
        known = {result.number for result in self.results}
        trials = self.optuna.get_trials(deepcopy=False)
        new = [
            TrialResult(**trial.user_attrs["result"])
            for trial in trials
            if trial.state.is_finished() and trial.number not in known and "result" in trial.user_attrs
        ]
        self.results += new
        self.ahead = self._ahead([*self.ahead, *new])
        return trials

    def _is_hopeless(self, number: int, progress: float, scores: Sequence[float]) -> bool:
        if progress == 1.0:
            self.refresh()
        return super()._is_hopeless(number, progress, scores)

    def tell(self, done: Done) -> bool:
        """Store a finished trial; return False where it is to be run again, or where somebody else has it by now."""
        number = done.result.number
        claim = self.claims[number]
        # Nobody takes over from a worker that gave a sign of life a moment ago, so that only one that did not needs
        # the lock, for which all others wait.
        silent = time.monotonic() - claim.sign > SILENT / 2 * claim.every
        with self.store.alone() if silent else nullcontext():
            told = self._tell(claim, done)
        del self.running[number]
        self.estimates.pop(number, None)
        with self.guard:
            del self.claims[number]
            self.gone.discard(number)
        return told

    def _tell(self, claim: Claim, done: Done) -> bool:
        storage, number = self.store.storage, done.result.number
        estimate = self.estimates.get(number) if done.result.state == "pruned" else None
        result = replace(done.result, estimate=estimate)
        trial = storage.get_trial(claim.trial_id)
        if trial.user_attrs["claim"]["by"] != claim.by:
            return False
        if trial.state != TrialState.RUNNING:  # by an earlier call, of which the storage gave no answer
            return True
        lost = result.reason is not None and result.reason.startswith(LOST) and claim.attempts < ATTEMPTS
        if result.reason == INTERRUPTED or lost:
            self._release(claim, claim.attempts - (0 if lost else 1))
            return False
        try:
            if done.per_task:
                self._keep(claim, done)
            storage.set_trial_user_attr(claim.trial_id, "result", asdict(result))
            self._close(result)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False  # another worker was faster after all
        return True

    def scores(self, number: int) -> NDArray[np.float64] | None:
        """Return the scores of a complete trial, task by task."""
        return kept_scores(self.optuna.get_trials(deepcopy=False)[number]).get("")

    def watch(self) -> None:
        """Look for signs of life of the trials that run."""
        now = time.monotonic()
        try:
            running = _running(self.optuna.get_trials(deepcopy=False))
        except AWAY:
            self.looked = -math.inf
            raise
        if now - self.looked > 2 * self.beat + 1:
            self.signs = {}  # this process was not looking, so it cannot tell who was silent
        self.looked = now
        signs = {trial.number: (_claim(trial).get("by"), trial.user_attrs.get("beat")) for trial in running}
        self.signs = {
            number: self.signs[number] if self.signs.get(number, (None,))[0] == sign else (sign, now)
            for number, sign in signs.items()
        }

    def live(self) -> None:
        """Give a sign of life for each trial that this process has, and find out which it has no longer."""
        self.beats, now = self.beats + 1, time.monotonic()
        for number, claim in list(self.claims.items()):
            trial = self.store.storage.get_trial(claim.trial_id)
            mine = trial.state == TrialState.RUNNING and _claim(trial).get("by") == claim.by
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                if mine:
                    self.store.storage.set_trial_user_attr(claim.trial_id, "beat", [claim.by, self.beats])
            with self.guard:
                if self.claims.get(number) is not claim:
                    continue  # it was told meanwhile
                if mine:
                    self.claims[number] = replace(claim, sign=now)
                else:
                    self.gone.add(number)

    def _is_open(self, trials: Sequence[FrozenTrial]) -> bool:
        """Tell whether trials are still to be begun."""
        attrs = self.optuna.user_attrs
        self.limit = attrs["study"]["trials"]
        begun = sum(trial.state != TrialState.WAITING for trial in trials)
        return begun < self.limit and not is_expired(attrs)

    def _deadline(self) -> float:
        """Return when the study's time is up, on this process's monotonic clock."""
        attrs = self.optuna.user_attrs
        timeout = attrs["study"].get("timeout")
        return time.monotonic() + attrs["began"] + timeout - time.time() if timeout else math.inf

    def _fresh(self, trials: Sequence[FrozenTrial]) -> Claim | None:
        """Begin a trial, one of those that waited first, as they were before the lock was held. It is held."""
        storage, study_id = self.store.storage, self.optuna._study_id
        if not self._is_open(trials):
            return None
        if not self.has_begun and "began" not in self.optuna.user_attrs:
            self.optuna.set_user_attr("began", time.time())
        self.has_begun = True
        for trial in trials:
            if trial.state == TrialState.WAITING and trial.number < self.limit:
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                        return self._claim(trial._trial_id, 1)
        with suppress(KeyError):  # trials are numbered without a gap
            storage.get_trial_id_from_study_id_trial_number(study_id, self.limit - 1)
            return None
        claim = self._new(0, 1)
        begun = create_trial(state=TrialState.RUNNING, user_attrs={"claim": claim.marks()})
        return replace(claim, trial_id=storage.create_new_trial(study_id, begun))

    def _orphan(self) -> Claim | None:
        """Take over a trial whose worker died, or gave it back. The lock is held."""
        for trial in _running(self.optuna.get_trials(deepcopy=False)):
            if not self._is_orphan(trial):
                continue
            if "result" in trial.user_attrs:  # its worker died between the two writes
                self._close(TrialResult(**trial.user_attrs["result"]))
                continue
            attempts = _claim(trial).get("attempts", 0)
            if attempts < ATTEMPTS and not is_expired(self.optuna.user_attrs):
                return self._claim(trial._trial_id, attempts + 1)
            reason = f"{LOST}its worker died {ATTEMPTS} times" if attempts >= ATTEMPTS else TIMEOUT
            params = self.bench.study.space.suggest(optuna.Trial(self.optuna, trial._trial_id))
            state = "failed" if attempts >= ATTEMPTS else "pruned"
            job = self.job(trial.number, params, math.inf)
            result = TrialResult(trial.number, state, params["learner"], params, job.seed, reason)  # type: ignore[arg-type]
            self.store.storage.set_trial_user_attr(trial._trial_id, "result", asdict(result))
            self._close(result)
        return None

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        """Tell whether nobody has a running trial: it was given back, or its worker has been silent for too long.

        While the lock is held a trial without a claim is one whose worker died over it.
        """
        claim = _claim(trial)
        if not claim.get("by"):
            return True
        if trial.number in self.claims:
            return False
        sign, since = self.signs.get(trial.number, (None, math.inf))
        unchanged: bool = sign == (claim["by"], trial.user_attrs.get("beat"))
        return unchanged and self.looked - since > SILENT * claim["every"]

    def _new(self, trial_id: int, attempts: int) -> Claim:
        return Claim(uuid.uuid4().hex, attempts, self.beat, trial_id, time.monotonic())

    def _claim(self, trial_id: int, attempts: int) -> Claim:
        claim = self._new(trial_id, attempts)
        self.store.storage.set_trial_user_attr(trial_id, "claim", claim.marks())
        return claim

    def _release(self, claim: Claim, attempts: int) -> None:
        free = replace(claim, by="", attempts=attempts)
        self.store.storage.set_trial_user_attr(claim.trial_id, "claim", free.marks())

    def _keep(self, claim: Claim, done: Done) -> None:
        """Keep scores task by task with the trial: a worker's own disk is no place for them."""
        packed = {name: _packed(scores) for name, scores in {"": done.per_task, **done.others}.items()}
        self.store.storage.set_trial_user_attr(claim.trial_id, "scores", packed)


def is_expired(attrs: dict[str, Any]) -> bool:
    """Tell from a study's attributes whether its time is up, which began with its first trial."""
    timeout = attrs["study"].get("timeout")
    return bool(timeout) and time.time() > attrs.get("began", math.inf) + timeout


def kept_scores(trial: FrozenTrial) -> dict[str, NDArray[np.float64]]:
    """Return a trial's scores task by task, (n_tasks,), by the study's first objective under "", by others by name."""
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.float64)
        for name, packed in trial.user_attrs.get("scores", {}).items()
    }


def _packed(scores: Sequence[float]) -> str:
    return base64.b64encode(zlib.compress(np.array(scores, np.float64).tobytes())).decode()


def _running(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.RUNNING]


def _claim(trial: FrozenTrial) -> dict[str, Any]:
    claim: dict[str, Any] = trial.user_attrs.get("claim", {})
    return claim
