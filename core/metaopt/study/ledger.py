"""The study's trials in Optuna's storage: what to try next, what came of it, and what was lost on the way."""

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.pruners import NopPruner
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from metaopt import seeds
from metaopt.checkpoint import File, Place
from metaopt.errors import UserError
from metaopt.files import whole
from metaopt.study import portfolio, strategy, versions
from metaopt.study.crew import LOST
from metaopt.study.leaderboard import front, ranked, values
from metaopt.study.patience import AWAY
from metaopt.study.rungs import Rung
from metaopt.study.space import Params
from metaopt.study.statistics import is_beaten
from metaopt.study.trial import INTERRUPTED, Bench, Done, Job, TrialResult

ATTEMPTS = 3
"""Times that a trial is run whose worker or whole study dies."""
SCORES = "scores"
"""The folder in a run folder that holds the scores of complete trials, task by task."""
CHECKPOINTS = "checkpoints"
"""The folder in a run folder that holds what long trials go on from, while they are not done."""
MAY_CHANGE = (
    "trials",
    "timeout",
    "evaluation.finalists",
    "evaluation.repeats",
    "evaluation.longer",
    "evaluation.report_tasks",
    "evaluation.ensemble",
    "prefer",
    "warm_start",
    "portfolio",
    "isolation",
    "limits",
)
"""Keys of a study file that may differ when a study goes on."""


class Ledger:
    """The trials of a study, kept by Optuna. Only the study's own process writes here, so counts are exact."""

    shared = False
    """Whether other processes write, too: see `metaopt.study.shared`."""

    def __init__(self, bench: Bench, storage: BaseStorage, folder: Path) -> None:
        """Open the study in the storage, or create it with every learner's default configuration waiting first.

        Raises UserError where the storage holds a study of that name over another space or other tasks.
        """
        study = bench.study
        self.bench, self.folder = bench, folder
        self.running: dict[int, optuna.Trial] = {}
        self.again: list[optuna.Trial] = []
        """Trials that were begun and are to be run again, from their start and with the same seed."""
        self.unanswered = False
        """Whether the storage was asked for a trial and did not answer."""
        names = optuna.get_all_study_names(storage)
        kept: dict[str, Any] = {
            "storage": storage,
            "study_name": study.name,
            "sampler": strategy.build(study.strategy, study.sampler, study.seed, study.space),
            "pruner": NopPruner(),  # see `report`
        }
        if known := study.name in names:
            self.optuna = optuna.load_study(**kept)
        attrs = self.optuna.user_attrs if known else {}
        self.starts: list[dict[str, Any]] = (
            attrs.get("warm start", [])  # portfolios may have grown since
            if attrs.keys() & {"warm start", "study"}
            else [asdict(start) for start in portfolio.starts(bench)]
        )
        """What is tried after the defaults, of other studies."""
        if not known:
            directions = [objective.direction for objective in (bench.objective, *bench.others)]
            self.optuna = optuna.create_study(directions=directions, **kept)
        described = study.to_dict()
        stored = self.optuna.user_attrs.get("study")
        if stored is None:
            begun = self.optuna.get_trials(deepcopy=False)  # by us, where we were killed before the last line below
            if any(trial.user_attrs.get("origin") not in {"default", "warm start"} for trial in begun):
                raise UserError(f"the storage holds a study named {study.name!r} that metaopt did not make; "
                                "set another name in the study file")  # fmt: skip
            self.optuna.set_user_attr("portfolios", portfolio.digests(study.warm_start))
            self.optuna.set_user_attr("warm start", self.starts)
            for learner in study.space.learners:
                params = study.space.searched(study.space.default(learner))
                self.optuna.enqueue_trial(params, user_attrs={"origin": "default"}, skip_if_exists=True)
            for start in self.starts:
                attrs = {"origin": "warm start", "of": start["study"]}
                self.optuna.enqueue_trial(start["params"], user_attrs=attrs, skip_if_exists=True)
            self.optuna.set_user_attr("versions", versions.used(bench))
            self.optuna.set_user_attr("shared", self.shared)
            self.optuna.set_user_attr("study", described)  # last: with it the study is complete
        else:
            _refuse_changes(stored, described)
            self._refuse_other_keeper()
        self.results = results(self.optuna)
        """Every finished trial."""
        self.ahead = self._ahead(self.results)
        self.leader: tuple[int, NDArray[np.float64] | None] = (-1, None)
        """The number and the scores of the best trial when it was last asked for."""
        self.rungs: dict[int, Rung] = {}
        """By step of their training the trials that reached it."""
        self.estimates: dict[int, float] = {}
        """Of trials that are stopped in their evaluation, what all tasks would have given."""
        self._take_up()

    def ask(self, deadline: float = math.inf) -> Job:
        """Return the next trial as a job. Where the storage went away meanwhile, another call goes on with it."""
        if not self.again:
            self.again.append(self._begin())
        trial = self.again[0]
        params = self.bench.study.space.suggest(trial)
        trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 0) + 1)
        self.running[trial.number] = self.again.pop(0)
        return self.job(trial.number, params, deadline)

    def _begin(self) -> optuna.Trial:
        """Return a new trial, or the one that the storage began for an earlier call and gave no answer."""
        begun = self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if self.unanswered else []
        for frozen in begun:
            if frozen.number not in self.running:
                return optuna.Trial(self.optuna, frozen._trial_id)
        self.unanswered = True
        trial = self.optuna.ask()
        self.unanswered = False
        return trial

    def job(self, number: int, params: Params, deadline: float) -> Job:
        """Return the order for a trial of the search."""
        study = self.bench.study
        return Job(
            number=number,
            params=params,
            seed=seeds.derive(study.seed, "trial", number),
            budget=study.budget,
            pool=study.search_on,
            purpose="search",
            n_tasks=study.evaluation.tasks,
            scoring_seconds=study.evaluation.cpu_seconds or math.inf,
            reports=not self.bench.others,  # of several objectives Optuna keeps no curve, and none is stopped
            deadline=deadline,
            checkpoint=self._checkpoint(number),
        )

    def report(self, number: int, progress: float, scores: Sequence[float]) -> bool:
        """Note a trial's scores so far, task by task, at a share of its meta-training; return whether it is hopeless.

        On the way it is held against the other trials there, at the end against the best trial on the same tasks. Where
        the storage does not answer it goes on.
        """
        try:
            return self._is_hopeless(number, progress, scores)
        except AWAY:
            return False

    def _is_hopeless(self, number: int, progress: float, scores: Sequence[float]) -> bool:
        so_far = self._contributions(scores)
        if not np.isfinite(so_far).all():
            return False  # its end will say why
        if progress < 1.0:
            trial, step = self.running[number], round(100 * progress)
            kept = self.optuna._storage.get_trial(trial._trial_id)
            if step not in kept.intermediate_values:  # of an earlier attempt
                trial.report(float(so_far.mean()), step)
            return not self._exempt(number) and self._is_behind(number, step)
        best = self._best()
        if best is None or self._exempt(number):
            return False
        theirs = self._contributions(best[: len(scores)])
        maximize = self.bench.objective.direction == "maximize"
        if not is_beaten(so_far, theirs, self.bench.study.evaluation.tasks, maximize=maximize):
            return False
        # Tasks differ more than trials do: what the best made of the others corrects for which tasks were seen.
        self.estimates[number] = float(self._contributions(best).mean() + (so_far - theirs).mean())
        return True

    def _is_behind(self, number: int, step: int) -> bool:
        """Tell whether a trial is not among the better third of those that reached this step (successive halving)."""
        rung = self.rungs.setdefault(step, Rung(step))
        maximize = self.bench.objective.direction == "maximize"
        estimate = rung.estimate(number, self.optuna.get_trials(deepcopy=False), maximize=maximize)
        if estimate is not None:
            self.estimates[number] = estimate
        return estimate is not None

    def _exempt(self, number: int) -> bool:
        """Tell whether a trial is never stopped: a learner's default, by which the others are judged."""
        return not self.bench.study.prune or self.running[number].user_attrs.get("origin") == "default"

    def _best(self) -> NDArray[np.float64] | None:
        """Return the scores of the best trial that was scored on all tasks; None where there is none, or no scores."""
        n_tasks = self.bench.study.evaluation.tasks
        best = next((one for one in self.best() if one.tasks == n_tasks), None)
        if best and best.number != self.leader[0]:
            scores = self.scores(best.number)
            complete = scores is not None and len(scores) == n_tasks
            self.leader = best.number, scores if complete else None
        return self.leader[1] if best else None

    def best(self) -> list[TrialResult]:
        """Return the best trials, as many as there are finalists, or more: the first of `leaderboard.ranked`."""
        return ranked(self.bench, self.ahead)

    def _ahead(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """Return those of some trials that may be among the best of these and of later ones."""
        if self.bench.others:
            return front(self.bench, results)
        return ranked(self.bench, results)[: self.bench.study.evaluation.finalists]

    def scores(self, number: int) -> NDArray[np.float64] | None:
        """Return the scores of a complete trial, task by task; None where they were deleted."""
        return read_scores(self.folder / SCORES / f"{number:05d}.npy")

    def _contributions(self, scores: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.bench.objective.contributions(torch.tensor(np.asarray(scores))).numpy()
        return values

    def tell(self, done: Done) -> bool:
        """Store a finished trial; return False where it was lost and waits to be run again.

        Where the storage went away meanwhile, another call stores what is left.
        """
        trial = self.running[done.result.number]
        estimate = self.estimates.get(done.result.number)
        result = replace(done.result, estimate=estimate if done.result.state == "pruned" else None)
        attempts = trial.user_attrs["attempts"]
        if result.reason == INTERRUPTED:
            trial.set_user_attr("attempts", attempts - 1)  # that is no fault of the trial's
        lost = result.reason is not None and result.reason.startswith(LOST) and attempts < ATTEMPTS
        if lost or result.reason == INTERRUPTED:
            self.again.append(self.running.pop(trial.number))
            self.estimates.pop(trial.number, None)
            return False
        if done.per_task:
            write_scores(self.folder / SCORES / f"{result.number:05d}.npy", done.per_task, done.others)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # by an earlier call, of which nothing was heard
            trial.set_user_attr("result", asdict(result))
            self._close(result)
        del self.running[result.number]
        self.estimates.pop(result.number, None)
        if kept := self._checkpoint(result.number):
            kept.remove()
        self.results.append(result)
        self.ahead = self._ahead([*self.ahead, result])
        return True

    def _checkpoint(self, number: int) -> Place | None:
        """Return where a trial's meta-training is kept on its way; None where it is not."""
        return File(self.folder / CHECKPOINTS / f"{number:05d}.safetensors")

    def seconds(self) -> float:
        """Return the wall time in which trials ran, over every time that the study was run."""
        spans = []
        for trial in self.optuna.get_trials(deepcopy=False):
            if trial.datetime_complete and "result" in trial.user_attrs:
                end = trial.datetime_complete.timestamp()
                spans.append((end - trial.user_attrs["result"]["seconds"], end))
        total, until = 0.0, -math.inf
        for start, end in sorted(spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    def _close(self, result: TrialResult) -> None:
        match result.state:
            case "complete":
                self.optuna.tell(result.number, list(values(self.bench, result).values()))
            case "pruned" if result.estimate is not None:
                # Told as pruned, the sampler would take it for worse than every complete trial, however bad those are.
                self.optuna.tell(result.number, result.estimate)
            case "pruned":
                self.optuna.tell(result.number, state=TrialState.PRUNED)
            case "failed":
                self.optuna.tell(result.number, state=TrialState.FAIL)

    def _refuse_other_keeper(self) -> None:
        """Raise UserError where workers on other machines have trials of this study that are still to be done."""
        name, trials = self.bench.study.name, self.optuna.get_trials(deepcopy=False)
        done = sum(trial.state.is_finished() for trial in trials)
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        if self.optuna.user_attrs.get("shared") and (running or done < self.bench.study.trials):
            raise UserError(
                f"the study {name!r} was made by `metaopt study create`, and {done} of its trials are done; go on with "
                "`metaopt worker`, end it with `metaopt study finish`, or set another name in the study file"
            )

    def _take_up(self) -> None:
        """Take up the trials that ran when the study ended. The run folder's lock says that nobody runs them now."""
        for frozen in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "result" in frozen.user_attrs:  # the study died between the two writes
                self._close(TrialResult(**frozen.user_attrs["result"]))
                continue
            trial = optuna.Trial(self.optuna, frozen._trial_id)
            if frozen.user_attrs.get("attempts", 0) < ATTEMPTS:
                self.again.append(trial)
            else:
                self.running[trial.number] = trial
                params = self.bench.study.space.suggest(trial)
                reason = f"{LOST}the study died in it {ATTEMPTS} times"
                seed = seeds.derive(self.bench.study.seed, "trial", trial.number)
                self.tell(Done(TrialResult(trial.number, "failed", params["learner"], params, seed, reason)))


def write_scores(path: Path, per_task: Sequence[float], others: Mapping[str, Sequence[float]] | None = None) -> None:
    """Write scores task by task, each file whole or not at all; those by other objectives beside it."""
    path.parent.mkdir(exist_ok=True)
    for file, scores in {
        path: per_task,
        **{scores_by(path, name): other for name, other in (others or {}).items()},
    }.items():
        array = io.BytesIO()
        np.save(array, np.array(scores, np.float64), allow_pickle=False)
        with whole(file) as temporary:
            temporary.write_bytes(array.getbuffer())  # numpy itself does not say that a disk is full


def scores_by(path: Path, name: str) -> Path:
    """Return the file beside `path` that holds the scores by another objective."""
    return path.with_suffix(f".{name}.npy")


def read_scores(path: Path) -> NDArray[np.float64] | None:
    """Return the scores in a file, (n_tasks,); None where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            scores = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, BadZipFile):
        return None
    return scores if isinstance(scores, np.ndarray) and scores.ndim == 1 and scores.dtype == np.float64 else None


def results(study: optuna.Study) -> list[TrialResult]:
    """Return what the finished trials of a study made by metaopt came to, in order."""
    trials = study.get_trials(deepcopy=False)
    return [TrialResult(**trial.user_attrs["result"]) for trial in trials if "result" in trial.user_attrs]


def _refuse_changes(stored: Mapping[str, Any], described: Params) -> None:
    before, now = _flat(stored), _flat(described)
    for key in ("encoder", "learners"):  # their order too: Optuna takes another order for another choice
        before[key], now[key] = list(stored[key]), list(described[key])
    for key in sorted(before.keys() | now.keys()):
        if not key.startswith(MAY_CHANGE) and before.get(key) != now.get(key):
            raise UserError(
                f"this study was begun with {key} = {before.get(key)}, not {now.get(key)}, and its trials would not "
                f"compare; set it back, or begin another study with --output or another name"
            )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
