"""Which strategy finds the best learner and its hyperparameters in few trials? Ours against Optuna's and SMAC3's.

Surrogate worlds stand in for meta-training: ten learners, each with a best score of its own and four to six conditional
hyperparameters, whose optimum lies near the learner's default; scores carry a noise of 0.8 points, as those on a few
hundred tasks do. A strategy's regret after n trials is by how much the trial that scored best so far is in truth below
the best there is, in points. All strategies see the same worlds. Nothing here is tuned on the worlds it reports:
`bandit`'s constants were chosen on worlds 1000 and up.

    python benchmarks/search.py [--worlds 40] [--json FILE]

SMAC3 joins where it is installed: `make bench-search` runs this in an environment of its own that has it. Its facade
for hyperparameters has its own first trials, which are not the learners' defaults.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Generator
from dataclasses import make_dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from metaopt import tune
from metaopt.learner import Learner
from metaopt.study.space import Params, Space
from metaopt.study.strategy import Bandit, Joint

LEARNERS, NOISE, LOOKS = 10, 0.8, (30, 60, 100)
STEEPNESS = 16.0
"""Mean loss in points for a hyperparameter at the far end of its range."""
NEARNESS = 0.2
"""Deviation of defaults from the optimum, in widths of the range."""

Score = Callable[[Params], float]


class World:
    """A space to search, the true score of everything in it, and the best there is."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        ceilings = 90 - self.rng.exponential(6, LEARNERS)
        self.best = float(ceilings.max())
        self.parts: dict[str, tuple[float, dict[str, Score]]] = {}
        classes: dict[str, type[Learner]] = {}
        for index, ceiling in enumerate(ceilings):
            name = f"learner{index}"
            fields, losses = [], {}
            for number in range(self.rng.integers(4, 7)):
                field = f"h{number}"
                declared, losses[f"{name}.{field}"] = self._hyperparameter(f"{name}.{field}")
                fields.append((field, Any, declared))
            config = make_dataclass("Config", fields, frozen=True)
            cls = type(name, (Learner,), {"name": name, "Config": config, "uses_encoder": False})
            classes[name] = type(name, (cls,), {"trains_on": "nothing"})
            self.parts[name] = float(ceiling), losses
        sections = {name: tune.declared(cls.Config) for name, cls in classes.items()}
        self.space = Space(sections, {}, {}, {}, classes, {})

    def _hyperparameter(self, name: str) -> tuple[Any, Score]:
        """Return a hyperparameter as a Config declares it, and the points it costs."""
        kind = self.rng.choice(["real", "log", "integer", "choice"], p=[0.3, 0.3, 0.2, 0.2])
        best, weight = self.rng.uniform(), self.rng.exponential(STEEPNESS)
        default = float(np.clip(best + self.rng.normal(0, NEARNESS), 0, 1))
        if kind == "choice":
            costs = self.rng.exponential(0.3, 3)
            of = dict(zip("abc", costs - costs.min(), strict=True))
            options = sorted(of, key=of.__getitem__) if self.rng.uniform() < 0.5 else list(of)  # the default is first
            return tune.choice(*options), lambda params: weight * of[params[name]]
        declared = {
            "real": tune.real(0.0, 1.0, default=default),
            "log": tune.real(1e-4, 1.0, log=True, default=10 ** (4 * (default - 1))),
            "integer": tune.integer(0, 10, default=round(10 * default)),
        }[kind]
        return declared, lambda params: weight * min(1.0, 1.5 * abs(_position(kind, params[name]) - best) ** 1.5)

    def truth(self, params: Params) -> float:
        ceiling, losses = self.parts[params["learner"]]
        return ceiling - sum(loss(params) for loss in losses.values())


def _position(kind: str, value: float) -> float:
    """Return where a value lies in its range, from 0 to 1."""
    return {"real": value, "log": 1 + math.log10(value) / 4 if value > 0 else 0.0, "integer": value / 10}[kind]


Trials = Generator[Params, float, None]
"""Yields what to try and is sent its score."""


def by_optuna(make: Callable[[int, Space], BaseSampler], *, defaults: bool) -> Callable[[World, int], Trials]:
    def trials(world: World, seed: int) -> Trials:
        search = optuna.create_study(direction="maximize", sampler=make(seed, world.space))
        for learner in world.space.learners if defaults else ():
            search.enqueue_trial(world.space.searched(world.space.default(learner)))
        while True:
            trial = search.ask()
            params = world.space.suggest(trial)
            search.tell(trial, (yield params))

    return trials


def by_smac(world: World, seed: int) -> Trials:
    """SMAC3's facade for hyperparameters, with its own initial design."""
    import ConfigSpace
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory import TrialValue

    space = ConfigSpace.ConfigurationSpace(seed=seed)
    learner = ConfigSpace.Categorical("learner", list(world.space.learners))
    space.add(learner)
    for name, section in world.space.learners.items():
        for field, parameter in section.items():
            full = f"{name}.{field}"
            match parameter:
                case tune.Choice(options):
                    one: Any = ConfigSpace.Categorical(full, list(options))
                case tune.Integer():
                    one = ConfigSpace.Integer(full, (parameter.low, parameter.high), log=parameter.log)
                case _:
                    one = ConfigSpace.Float(full, (parameter.low, parameter.high), log=parameter.log)
            space.add(one)
            space.add(ConfigSpace.EqualsCondition(one, learner, name))
    with TemporaryDirectory() as folder:
        scenario = Scenario(
            space, deterministic=True, n_trials=max(LOOKS) + 1, seed=seed, output_directory=Path(folder)
        )
        smac = HyperparameterOptimizationFacade(scenario, lambda config, seed: 0.0, overwrite=True, logging_level=False)
        while True:
            info = smac.ask()
            score = yield dict(info.config)
            smac.tell(info, TrialValue(cost=-score))


STRATEGIES: dict[str, Callable[[World, int], Trials]] = {
    "random search": by_optuna(lambda seed, space: RandomSampler(seed=seed), defaults=False),
    "Optuna's TPE": by_optuna(lambda seed, space: TPESampler(seed=seed), defaults=False),
    "Optuna's TPE, defaults first": by_optuna(lambda seed, space: TPESampler(seed=seed), defaults=True),
    "metaopt joint": by_optuna(lambda seed, space: Joint(seed, space.settled()), defaults=True),
    "metaopt bandit": by_optuna(Bandit, defaults=True),
}
if find_spec("smac"):
    STRATEGIES["SMAC3"] = by_smac


def regrets(strategy: Callable[[World, int], Trials], seed: int) -> list[float]:
    """Return the regret at each look, in points."""
    world, noise = World(seed), np.random.default_rng(seed + 10**6)
    trials, best, found = strategy(world, seed), (-math.inf, -math.inf), []
    params = next(trials)
    for number in range(1, max(LOOKS) + 1):
        truth = world.truth(params)
        score = truth + NOISE * noise.normal()
        best = max(best, (score, truth))
        if number in LOOKS:
            found.append(world.best - best[1])
        params = trials.send(score)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="the first world's seed")
    parser.add_argument("--only", nargs="*", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="STRATEGY")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = []
    print(f"regret in points after {', '.join(map(str, LOOKS))} trials, mean ± standard error, {options.worlds} worlds")
    for name in options.only:
        started = time.process_time()
        found = np.array([regrets(STRATEGIES[name], options.first + world) for world in range(options.worlds)])
        row = {
            "strategy": name,
            "regret": dict(zip(map(str, LOOKS), found.mean(0).tolist(), strict=True)),
            "error": dict(zip(map(str, LOOKS), (found.std(0, ddof=1) / len(found) ** 0.5).tolist(), strict=True)),
            "cpu_ms_a_trial": 1000 * (time.process_time() - started) / max(LOOKS) / options.worlds,
        }
        table.append(row)
        cells = "  ".join(f"{row['regret'][str(n)]:5.2f} ± {row['error'][str(n)]:.2f}" for n in LOOKS)
        print(f"{name:<30} {cells}  {row['cpu_ms_a_trial']:7.1f} ms a trial", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"worlds": options.worlds, "strategies": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
