"""How a study chooses its next trial: one model of the whole space, or a bandit over learners with a model for each.

Both are Optuna samplers. Optuna's own samplers are made anew for each trial, seeded by the study's seed and the trial's
number alone, so that a study that was interrupted, even while it chose, goes on as if it had not been.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.study.space import Params, Space

STRATEGIES = ("bandit", "joint")
"""The first is the default: the two do alike (benchmarks/search.py), and it gives any sampler one space a learner."""
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=10),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=10),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, n_startup_trials=10, warn_independent_sampling=False),
    "nsgaii": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "qmc": lambda seed: QMCSampler(seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False),
    "brute": lambda seed: BruteForceSampler(seed=seed),
}
"""Optuna's samplers by name, made from a seed."""
NEEDS_FIXED_SPACE = ("gp", "cmaes", "nsgaii", "qmc")
"""Those that model what every trial has; what only some trials have, as one learner's settings, they draw at random."""
NEEDS_EVERY_TRIAL = ("brute", "cmaes", "nsgaii")
"""Those that keep account of what was tried, or of generations, in the trials themselves."""
PROPOSALS = 20
"""Of learners that a model makes for a trial, where it proposes those of which nothing is searched."""
EXPLORATION = 1.0
"""How far a learner's bound lies above its score, in deviations between the learners' best scores."""
MODELLED = 200
"""Trials of a learner that its model is cut back to when it has twice as many: the better half and the newer half."""


def build(strategy: str, sampler: str, seed: int, space: Space) -> BaseSampler:
    """Return the sampler that chooses a study's trials. Raises UserError where it lacks a package."""
    if sampler == "cmaes" and find_spec("cmaes") is None:
        raise UserError("sampler: cmaes needs the package cmaes; pip install cmaes, or take another, such as tpe")
    if sampler == "qmc" and strategy == "bandit":
        raise UserError("sampler: qmc fills one space evenly, the bandit has one a learner; take strategy: joint")
    if sampler == "brute" and (real := space.real()):
        raise UserError(f"sampler: brute tries every choice, and {real} has no end of them; fix it or give it a list")
    if strategy == "bandit":
        return Bandit(seed, space, sampler)
    return Joint(seed, space.settled(), sampler)


def degenerates(strategy: str, sampler: str, space: Space) -> str | None:
    """Say why a sampler draws mostly at random on this space; None where it does not."""
    if strategy == "joint" and sampler in NEEDS_FIXED_SPACE and len(space.learners) > 1:
        return (
            f"sampler: {sampler} models only what every trial has, and draws each learner's own hyperparameters at "
            "random; with strategy: bandit it models them, and tpe models them under both"
        )
    return None


class Joint(BaseSampler):
    """One of Optuna's samplers over learner and hyperparameters together.

    Of `settled` learners, of which nothing is searched, the default is all there is: they are not chosen again.
    """

    def __init__(self, seed: int, settled: Collection[str] = (), sampler: str = "tpe") -> None:
        self.seed, self.settled, self.sampler = seed, settled, sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        for attempt in range(PROPOSALS):
            found = self._of(trial, *self._again(attempt)).sample_relative(study, trial, search_space)
            if found.get("learner") not in self.settled:
                return found
        return found | {"learner": self._open(trial, search_space["learner"])}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        for attempt in range(PROPOSALS):
            sampler = self._of(trial, param_name, *self._again(attempt))
            found = sampler.sample_independent(study, trial, param_name, param_distribution)
            if param_name != "learner" or found not in self.settled:
                return found
        return self._open(trial, param_distribution)

    def _again(self, attempt: int) -> tuple[int, ...]:
        return (attempt,) if attempt else ()

    def _open(self, trial: FrozenTrial, learners: BaseDistribution) -> Any:
        """Return any learner of which something is searched; there is one."""
        assert isinstance(learners, CategoricalDistribution)
        choices = [learner for learner in learners.choices if learner not in self.settled]
        return choices[seeds.derive(self.seed, "learner", trial.number) % len(choices)]

    def _of(self, trial: FrozenTrial, *names: str | int) -> BaseSampler:
        return _sampler(self.sampler, self.seed, trial.number, *names)


class Bandit(BaseSampler):
    """A bandit over learners by upper confidence bounds (Auer, 2002), and for each learner an Optuna study of its own.

    A learner's bound is the mean of its few best scores, plus more the less often it was tried; trials that run count
    as tries. Its own study, in memory, models its hyperparameters from its own trials alone, so that every sampler
    sees a fixed space, and a learner may be added to a study that goes on. Of many trials it keeps the best and the
    newest, so that the ten thousandth is chosen as fast as the hundredth.
    """

    def __init__(self, seed: int, space: Space, sampler: str = "tpe") -> None:
        self.seed, self.space, self.sampler = seed, space, sampler
        self.settled = space.settled()
        self.arms: dict[str, optuna.Study] = {}
        self.at: dict[int, tuple[str, int]] = {}
        """By trial that is not told its learner, and its number in that one's own study."""
        self.told: set[int] = set()
        self.first = 0
        """All trials before it are told."""
        self.tries: Counter[str] = Counter()
        """By learner its trials, those included that its study no longer keeps."""
        self.plan: tuple[int, Params] = (-1, {})
        """The trial that was last chosen, and what it is."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self.plan[0] != trial.number:
            self.plan = trial.number, self._choose(study, trial)
        return self.plan[1][param_name]

    def _choose(self, study: optuna.Study, trial: FrozenTrial) -> Params:
        self._follow(study, trial)
        # Where only one learner is in the study, "learner" is not asked; where the user fixed it, it is set already.
        learner = trial.params.get("learner") or self._learner(study)
        arm = self._arm(study, learner)
        arm.sampler = _of_arm(self.sampler, self.seed, trial.number)
        asked = arm.ask()
        self.at[trial.number] = learner, asked.number
        self.tries[learner] += 1
        return self.space.suggest(asked, learner)

    def _arm(self, study: optuna.Study, learner: str) -> optuna.Study:
        if learner not in self.arms:
            self.arms[learner] = optuna.create_study(directions=study.directions)
        return self.arms[learner]

    def _follow(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Bring the learners' own studies up to date with the study's trials but this one."""
        for one in study.get_trials(deepcopy=False)[self.first :]:
            if one.number in self.told or one.number == trial.number:
                continue
            if one.number not in self.at and not one.state.is_finished() and not self._is_chosen(one):
                continue  # another process is choosing it
            learner = one.params.get("learner", next(iter(self.space.learners)))
            arm = self._arm(study, learner)
            if one.number not in self.at:  # of an earlier run of the study, or a default
                own = {name: distribution for name, distribution in one.distributions.items() if name != "learner"}
                params = {name: one.params[name] for name in own}
                arm.add_trial(create_trial(params=params, distributions=own, state=TrialState.RUNNING))
                self.at[one.number] = learner, len(arm.get_trials(deepcopy=False)) - 1
                self.tries[learner] += 1
            if one.state.is_finished():
                self.told.add(one.number)
                learner, number = self.at.pop(one.number)
                arm = self._arm(study, learner)
                if one.state == TrialState.COMPLETE:
                    arm.tell(number, one.values)
                else:
                    arm.tell(number, state=TrialState.FAIL)
                self._cut_back(study, learner)
        while self.first in self.told:
            self.told.discard(self.first)
            self.first += 1

    def _cut_back(self, study: optuna.Study, learner: str) -> None:
        """Leave out of a learner's own study what is neither among its best nor among its newest trials."""
        trials = self.arms[learner].get_trials(deepcopy=False)
        if self.sampler in NEEDS_EVERY_TRIAL or len(trials) < 2 * MODELLED:
            return
        complete = [one for one in trials if one.state == TrialState.COMPLETE]
        [worth] = _values({learner: _scores(study, complete)}).values()
        best = sorted(range(len(complete)), key=lambda index: (-worth[index], index))[: MODELLED // 2]
        kept = {complete[index].number for index in best} | {one.number for one in complete[-MODELLED // 2 :]}
        left = [one for one in trials if one.number in kept or not one.state.is_finished()]
        del self.arms[learner]
        self._arm(study, learner).add_trials(left)
        moved = {one.number: number for number, one in enumerate(left)}
        self.at |= {of: (learner, moved[number]) for of, (whose, number) in self.at.items() if whose == learner}

    def _is_chosen(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial has all of its hyperparameters."""
        try:
            self.space.suggest(optuna.trial.FixedTrial(trial.params, trial.number))
        except ValueError:
            return False
        return True

    def _learner(self, study: optuna.Study) -> str:
        """Return the learner with the highest bound; the first of equals."""
        complete = (TrialState.COMPLETE,)
        values = _values(
            {
                learner: _scores(study, self._arm(study, learner).get_trials(deepcopy=False, states=complete))
                for learner in self.space.learners
            }
        )
        tries = self.tries
        best = [max(of) for of in values.values() if of]
        spread = float(np.std(best)) if best else 0.0

        def bound(learner: str) -> float:
            if not values[learner]:
                return -math.inf if tries[learner] else math.inf  # it only failed so far, or was never tried
            few = sorted(values[learner])[-math.isqrt(len(values[learner])) :]
            return float(np.mean(few)) + EXPLORATION * spread * math.sqrt(
                math.log(sum(tries.values())) / tries[learner]
            )

        return max((name for name in self.space.learners if name not in self.settled), key=bound)


def _scores(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[list[float]]:
    """Return the values of complete trials, more of each being better."""
    signs = [1 if direction.name == "MAXIMIZE" else -1 for direction in study.directions]
    return [[sign * value for sign, value in zip(signs, one.values, strict=True)] for one in trials]


def _values(scores: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[float]]:
    """Return what each trial is worth: its score, or with several objectives its rank."""
    if any(len(one) > 1 for of in scores.values() for one in of):
        return _ranks(scores)
    return {learner: [one[0] for one in of] for learner, of in scores.items()}


def _ranks(scores: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[float]]:
    """Return for each trial of a study with several objectives minus the share of trials that beat it in all."""
    every = np.array([one for of in scores.values() for one in of])
    return {
        learner: [-float(((every >= one).all(1) & (every > one).any(1)).mean()) for one in np.array(of)]
        for learner, of in scores.items()
    }


def _of_arm(name: str, seed: int, number: int) -> BaseSampler:
    """Return a sampler for one learner's own study: there trials are few, so a model begins at once."""
    seed_of_trial = seeds.derive(seed, "sampler", number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will do without gamma; this needs Optuna 5
        match name:
            case "tpe":  # a third of so few trials is what is good
                return TPESampler(seed=seed_of_trial, n_startup_trials=1, gamma=lambda n: max(1, math.ceil(0.35 * n)))
            case "gp":
                return GPSampler(seed=seed_of_trial, n_startup_trials=2)
    return _sampler(name, seed, number)


def _sampler(name: str, seed: int, number: int, *names: str | int) -> BaseSampler:
    # A low-discrepancy sequence is one only where every trial takes its next point.
    derived = seeds.derive(seed, "qmc") if name == "qmc" else seeds.derive(seed, "sampler", number, *names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](derived % 2**32)
