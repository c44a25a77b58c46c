"""The study's trials in Optuna's storage: what to try next, what came of it, and what was lost on the way."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.files import whole
from metaopt.study.crew import LOST
from metaopt.study.space import Params
from metaopt.study.trial import Bench, Done, Job, TrialResult

ATTEMPTS = 3
"""Times that a trial is run whose worker or whole study dies."""
MAY_CHANGE = ("trials", "timeout", "evaluation", "name")
"""Keys of a study file that may differ when a study goes on."""


class Ledger:
    """The trials of a study, kept by Optuna. Only the study's own process writes here, so counts are exact."""

    def __init__(self, bench: Bench, storage: BaseStorage, folder: Path) -> None:
        """Open the study in the storage, or create it with every learner's default configuration waiting first.

        Raises UserError where the storage holds a study of that name over another space or other tasks.
        """
        study = bench.study
        self.bench, self.folder = bench, folder
        self.running: dict[int, optuna.Trial] = {}
        names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=study.name,
            direction=bench.objective.direction,
            load_if_exists=True,
            sampler=SeededTPE(study.seed),
            pruner=MedianPruner(n_startup_trials=max(4, len(study.space.learners)), n_min_trials=2),
        )
        described = study.to_dict()
        stored = self.optuna.user_attrs.get("study")
        if stored is None:
            if study.name in names and self.optuna.get_trials(deepcopy=False):
                raise UserError(f"the storage holds a study named {study.name!r} that metaopt did not make; "
                                "set another name in the study file")  # fmt: skip
            for learner in study.space.learners:
                params = study.space.searched(study.space.default(learner))
                self.optuna.enqueue_trial(params, user_attrs={"origin": "default"}, skip_if_exists=True)
            self.optuna.set_user_attr("versions", versions(bench))
            self.optuna.set_user_attr("study", described)  # last: with it the study is complete
        else:
            _refuse_changes(stored, described)
            self._requeue_lost()
        self.results = results(self.optuna)
        """Every finished trial in order of its end, lost ones left out."""

    def ask(self, deadline: float = math.inf) -> Job:
        """Return the next trial as a job."""
        study = self.bench.study
        trial = self.optuna.ask()
        self.running[trial.number] = trial
        params = study.space.suggest(trial)
        return Job(
            number=trial.number,
            params=params,
            seed=trial.user_attrs.get("seed", seeds.derive(study.seed, "trial", trial.number)),
            budget=study.budget,
            pool=study.search_on,
            purpose="search",
            n_tasks=study.evaluation.tasks,
            prunable=trial.user_attrs.get("origin") != "default",
            deadline=deadline,
        )

    def report(self, number: int, progress: float, value: float) -> bool:
        """Note a trial's score at a share of its budget; return whether it is hopeless."""
        trial = self.running[number]
        if not math.isfinite(value):
            return False  # its end will say why
        trial.report(value, round(100 * progress))
        return trial.should_prune()

    def tell(self, done: Done) -> bool:
        """Store a finished trial; return False where it was lost and waits to be run again."""
        result, trial = done.result, self.running.pop(done.result.number)
        lost = result.reason is not None and (result.reason == "interrupted" or result.reason.startswith(LOST))
        if lost and self._again(self._frozen(trial.number), result.seed, counts=result.reason != "interrupted"):
            self.optuna.tell(trial, state=TrialState.FAIL)  # without a result: it does not count
            return False
        trial.set_user_attr("result", asdict(result))
        if done.per_task:
            scores = self.folder / "scores"
            scores.mkdir(exist_ok=True)
            with whole(scores / f"{result.number:05d}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, np.array(done.per_task), allow_pickle=False)
        self._close(trial.number, result)
        self.results.append(result)
        return True

    def seconds(self) -> float:
        """Return the wall time in which trials ran, over every time that the study was run."""
        spans = [(trial.datetime_start, trial.datetime_complete) for trial in self.optuna.get_trials(deepcopy=False)]
        total, until = 0.0, None
        for start, end in sorted((start, end) for start, end in spans if start and end):
            since = max(start, until) if until else start
            total += max(0.0, (end - since).total_seconds())
            until = max(until, end) if until else end
        return total

    def _frozen(self, number: int) -> FrozenTrial:
        return self.optuna.get_trials(deepcopy=False)[number]

    def _close(self, number: int, result: TrialResult) -> None:
        match result.state:
            case "complete":
                self.optuna.tell(number, result.mean)
            case "pruned":
                self.optuna.tell(number, state=TrialState.PRUNED)
            case "failed":
                self.optuna.tell(number, state=TrialState.FAIL)

    def _requeue_lost(self) -> None:
        """Put trials back that were running when the study died. The run folder's lock says that nobody runs them."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "result" in trial.user_attrs:  # the study died between the two writes
                self._close(trial.number, TrialResult(**trial.user_attrs["result"]))
                continue
            seed = trial.user_attrs.get("seed", seeds.derive(self.bench.study.seed, "trial", trial.number))
            self._again(trial, seed, counts=True)
            self.optuna.tell(trial.number, state=TrialState.FAIL)

    def _again(self, trial: FrozenTrial, seed: int, *, counts: bool) -> bool:
        """Queue a lost trial again with its seed, unless it was lost too often."""
        attempt = trial.user_attrs.get("attempt", 1)
        if counts and attempt >= ATTEMPTS:
            return False
        known = {key: trial.user_attrs[key] for key in ("origin",) if key in trial.user_attrs}
        attrs = known | {"seed": seed, "again": trial.number, "attempt": attempt + counts}
        self.optuna.enqueue_trial(trial.params, user_attrs=attrs)
        return True


class SeededTPE(BaseSampler):
    """Optuna's TPE, its random numbers made from the study's seed and the trial's number alone.

    So a study that was interrupted goes on as if it had not been, and worker numbers do not matter.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sampler = TPESampler(seed=0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler = TPESampler(seed=seeds.derive(self.seed, "sampler", trial.number) % 2**32, n_startup_trials=10)
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.sampler.after_trial(study, trial, state, values)


def results(study: optuna.Study) -> list[TrialResult]:
    """Return every finished trial of a study made by metaopt, in order, lost ones left out."""
    trials = study.get_trials(deepcopy=False)
    return [TrialResult(**trial.user_attrs["result"]) for trial in trials if "result" in trial.user_attrs]


def versions(bench: Bench) -> dict[str, str]:
    """Return the versions of what a result depends on, by distribution."""
    plugins = {plugin.distribution: plugin.version for plugin in bench.registry.plugins if plugin.status == "ok"}
    return {name: metadata.version(name) for name in ("numpy", "optuna", "torch")} | plugins


def _refuse_changes(stored: Mapping[str, Any], described: Params) -> None:
    before, now = _flat(stored), _flat(described)
    for key in sorted(before.keys() | now.keys()):
        if key.split(".")[0] not in MAY_CHANGE and before.get(key) != now.get(key):
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
