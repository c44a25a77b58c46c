"""What is tried next follows from the study's seed and its trials alone, and goes where it pays."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import optuna
import pytest

from metaopt import tune
from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.study import strategy as strategies
from metaopt.study.space import Params, Space
from metaopt.study.strategy import SAMPLERS, STRATEGIES, Bandit, build, degenerates


class Alone(Learner):
    uses_encoder = False
    trains_on = "nothing"


class Sharp(Alone):
    name = "sharp"

    @dataclass(frozen=True)
    class Config:
        x: float = tune.real(0.0, 1.0, default=0.3)
        y: float = tune.real(1e-4, 1.0, log=True, default=1e-3)


class Flat(Alone):
    name = "flat"

    @dataclass(frozen=True)
    class Config:
        x: float = tune.real(0.0, 1.0, default=0.5)
        depth: int = tune.integer(1, 4, default=2)


class Countable(Alone):
    name = "countable"

    @dataclass(frozen=True)
    class Config:
        depth: int = tune.integer(1, 3, default=2)
        wide: bool = tune.choice(False, True)


class Settled(Alone):
    name = "settled"


def space_of(*classes: type[Learner]) -> Space:
    sections = {cls.name: tune.declared(cls.Config) for cls in classes}
    return Space(sections, {}, {}, {}, {cls.name: cls for cls in classes}, {})


SPACE = space_of(Sharp, Flat, Settled)


def score(params: Params) -> float:
    """Sharp can come to 90 and begins at 78; Flat stays between 75 and 76; Settled has 80."""
    match params["learner"]:
        case "sharp":
            return 90 - 40 * abs(params["sharp.x"] - 0.6) - 5 * abs(math.log10(params["sharp.y"]) + 3)
        case "flat":
            return 75 + float(params["flat.x"])
    return 80.0


def search(strategy: str, sampler: str, n: int, seed: int = 0, *, fresh: bool = False) -> list[Params]:
    """Return what so many trials try, the defaults first; with `fresh` by a sampler made anew for each trial."""
    study, found = optuna.create_study(direction="maximize", sampler=build(strategy, sampler, seed, SPACE)), []
    for learner in SPACE.learners:
        study.enqueue_trial(SPACE.searched(SPACE.default(learner)))
    for _ in range(n):
        if fresh:
            study.sampler = build(strategy, sampler, seed, SPACE)
        trial = study.ask()
        found.append(SPACE.suggest(trial))
        study.tell(trial, score(found[-1]))
    return found


NAMES = [name for name in SAMPLERS if name not in {"cmaes", "qmc", "brute"}]  # see below


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sampler", NAMES)
def test_every_sampler_serves_both_strategies_and_a_search_that_dies_after_each_trial_goes_on_as_it_was(
    strategy: str, sampler: str
) -> None:
    once = search(strategy, sampler, 9)
    assert search(strategy, sampler, 9, fresh=True) == once
    assert [params["learner"] for params in once[:3]] == ["sharp", "flat", "settled"]
    assert all(params["learner"] != "settled" for params in once[3:]), "of it one trial tells all"


def test_quasi_random_points_are_of_one_sequence_and_need_one_space() -> None:
    assert search("joint", "qmc", 9) == search("joint", "qmc", 9, fresh=True)
    with pytest.raises(UserError, match="take strategy: joint"):
        build("bandit", "qmc", 0, SPACE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_brute_force_tries_everything_once_and_refuses_what_has_no_end(strategy: str) -> None:
    countable = space_of(Countable)
    study = optuna.create_study(direction="maximize", sampler=build(strategy, "brute", 0, countable))
    tried = []
    for _ in range(6):
        trial = study.ask()
        tried.append(tuple(countable.suggest(trial).values()))
        study.tell(trial, 0.0)
    assert len(set(tried)) == 6
    with pytest.raises(UserError, match=r"brute tries every choice, and sharp\.x has no end"):
        build(strategy, "brute", 0, SPACE)


def test_the_seed_makes_the_search() -> None:
    assert search("bandit", "tpe", 12, seed=1) != search("bandit", "tpe", 12, seed=2)


def test_the_bandit_tries_most_what_can_be_good_and_tunes_it() -> None:
    tried = search("bandit", "tpe", 40)
    counts = Counter(params["learner"] for params in tried)
    assert counts["sharp"] > 30 > counts["flat"] >= 1
    assert max(map(score, tried)) > 86 > score(tried[0])


def test_the_bandit_counts_trials_that_run_as_tries() -> None:
    study = optuna.create_study(direction="maximize", sampler=Bandit(0, space_of(Sharp, Flat)))
    space = space_of(Sharp, Flat)
    asked = [space.suggest(study.ask()) for _ in range(2)]
    assert {params["learner"] for params in asked} == {"sharp", "flat"}, "each is tried before one is tried twice"


def test_the_bandit_leaves_learners_that_only_fail() -> None:
    space = space_of(Sharp, Flat)
    study = optuna.create_study(direction="maximize", sampler=Bandit(0, space))
    tried = []
    for _ in range(12):
        trial = study.ask()
        tried.append(space.suggest(trial))
        if tried[-1]["learner"] == "sharp":
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, score(tried[-1]))
    assert [params["learner"] for params in tried].count("sharp") == 1


def test_of_one_learner_the_bandit_searches_the_hyperparameters() -> None:
    space = space_of(Sharp)
    study = optuna.create_study(direction="maximize", sampler=Bandit(0, space))
    best = -math.inf
    for _ in range(30):
        trial = study.ask()
        params = space.suggest(trial)
        assert params["learner"] == "sharp"
        study.tell(trial, score(params))
        best = max(best, score(params))
    assert best > 85


def test_with_several_objectives_the_bandit_favours_what_fewer_trials_beat_in_all() -> None:
    space = space_of(Sharp, Flat)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=Bandit(0, space))
    counts: Counter[Any] = Counter()
    for _ in range(30):
        trial = study.ask()
        params = space.suggest(trial)
        counts[params["learner"]] += 1
        cost = 1.0 if params["learner"] == "sharp" else 2.0  # and flat is beaten in both
        study.tell(trial, [score(params), cost])
    assert counts["sharp"] > counts["flat"] >= 1


def test_a_sampler_that_would_draw_at_random_is_named_with_what_would_not() -> None:
    said = degenerates("joint", "gp", SPACE)
    assert said is not None
    assert "strategy: bandit" in said
    assert degenerates("joint", "tpe", SPACE) is degenerates("bandit", "gp", SPACE) is None
    assert degenerates("joint", "gp", space_of(Sharp)) is None


def test_a_sampler_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.study.strategy.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cmaes"):
        build("joint", "cmaes", 0, SPACE)


# Of many trials


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_learner_of_many_trials_is_modelled_by_its_best_and_its_newest(
    monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setattr(strategies, "MODELLED", 10)
    bandit = build("bandit", sampler, 0, SPACE)
    assert isinstance(bandit, Bandit)
    study = optuna.create_study(direction="maximize", sampler=bandit)
    for learner in SPACE.learners:
        study.enqueue_trial(SPACE.searched(SPACE.default(learner)))
    for _ in range(80):
        trial = study.ask()
        study.tell(trial, score(SPACE.suggest(trial)))
    SPACE.suggest(study.ask())
    kept = [one.value for one in bandit.arms["sharp"].get_trials() if one.state.is_finished()]
    assert len(kept) < 20 < bandit.tries["sharp"]
    tried = [one.value for one in study.trials[:80] if one.params["learner"] == "sharp"]
    assert max(kept) == max(tried)
    assert kept[-5:] == tried[-5:]
    assert sum(bandit.tries.values()) == 81


def test_brute_force_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "MODELLED", 1)
    test_brute_force_tries_everything_once_and_refuses_what_has_no_end("bandit")


def test_a_search_of_many_trials_that_is_begun_anew_each_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "MODELLED", 6)
    assert search("bandit", "tpe", 50) == search("bandit", "tpe", 50, fresh=True)


def test_trials_that_run_while_a_learner_is_cut_back_are_told_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "MODELLED", 6)
    bandit = build("bandit", "random", 0, SPACE)
    assert isinstance(bandit, Bandit)
    study = optuna.create_study(direction="maximize", sampler=bandit)
    running = [study.ask() for _ in range(3)]
    params = [SPACE.suggest(trial) for trial in running]
    for _ in range(40):
        trial = study.ask()
        study.tell(trial, score(SPACE.suggest(trial)))
    for trial, value in zip(running, (1000.0, 2000.0, 3000.0), strict=True):
        study.tell(trial, value)
    SPACE.suggest(study.ask())
    for chosen, value in zip(params, (1000.0, 2000.0, 3000.0), strict=True):
        [same] = [one for one in bandit.arms[chosen["learner"]].get_trials() if one.value == value]
        assert all(chosen[name] == set_to for name, set_to in same.params.items())
