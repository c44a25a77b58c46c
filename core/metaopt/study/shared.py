"""One study, worked on by many processes on many machines, which know of each other by the storage alone.

Optuna's storages keep each write whole, and no more: two workers that both count 499 trials would both begin the last
of 500. So whoever takes or closes a trial holds a lock of the storage meanwhile (metaopt.study.stores). A trial that is
taken carries a claim: who has it, for which time, and a beat that its holder writes every few seconds. A worker that
finds its claim gone, as one that was frozen or cut off from the network may, drops what it has. Beats are compared, and
never clocks.
"""

import base64
import logging
import math
import threading
import time
import uuid
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState, create_trial

from metaopt.checkpoint import Place
from metaopt.errors import UserError
from metaopt.study.artifacts import Artifact
from metaopt.study.crew import LOST
from metaopt.study.ledger import ATTEMPTS, Ledger
from metaopt.study.patience import AWAY
from metaopt.study.stores import BEAT, SILENT, Store
from metaopt.study.trial import INTERRUPTED, TIMEOUT, Bench, Done, Job, TrialResult

log = logging.getLogger(__name__)


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
        self.artifacts = store.artifacts
        """Where checkpoints are kept, if anywhere, when it was last asked for."""
        super().__init__(bench, store.storage, folder)

    def _refuse_other_keeper(self) -> None:
        if not self.optuna.user_attrs.get("shared"):
            raise UserError(
                f"the study {self.bench.study.name!r} in this storage was begun by `metaopt study run`, which alone "
                "goes on with it; set another name in the study file"
            )

    def _checkpoint(self, number: int) -> Place | None:
        # Who takes a trial over may be on another machine.
        return Artifact(self.artifacts, f"{self.bench.study.name}-{number:05d}.safetensors") if self.artifacts else None

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
        if told and (kept := self._checkpoint(number)):
            kept.remove()
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
        self.limit, self.artifacts = attrs["study"]["trials"], attrs.get("artifacts", self.store.artifacts)
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
