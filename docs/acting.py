"""What docs/navigation.py and docs/slope.py share: learners that act, by the number of policy gradient steps before."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt import seeds
from metaopt.executor import Loop
from metaopt.files import write_json
from metaopt.process import on_one_core
from metaopt.task import Pool, TaskSampler
from metaopt.train import Budget, Outer, acted, meta_train
from metaopt_control.actor import Actor

CPU = torch.device("cpu")
FOLDER = Path(__file__).parent / "results"
VALIDATION_TASKS = 64


@dataclass(frozen=True)
class Contestant:
    """A learner, what it is trained with, and whether it adapts."""

    cls: type[Actor]
    config: Mapping[str, Any] = field(default_factory=dict)
    adapts: bool = True
    sampler: TaskSampler | None = None
    """Whose train tasks it is trained on, where those are others."""
    n_shot: int | None = None
    """Episodes to learn from in training, where they are not as many as at meta-test for one step."""


@dataclass(frozen=True)
class Setting:
    """Where learners act: each step at meta-test is on `each` fresh episodes, at the best of `rates`."""

    sampler: TaskSampler
    each: int
    steps: int
    rates: tuple[float, ...]
    n_tasks: int
    """To meta-train on."""
    n_test: int = 200
    outer: Outer = field(default_factory=lambda: Outer(lr=3e-3, schedule="linear", tasks_per_step=20))

    def at_rate(self, learner: Actor, rate: float) -> Actor:
        """Return the learner, its parameters shared, that takes all steps at this rate."""
        other = learner.with_spec(self.sampler.spec(1, self.steps * self.each, self.each))
        other.config = replace(learner.config, inner_lr=rate, test_steps=self.steps)
        assert isinstance(other, Actor)
        return other

    def returns(self, learner: Actor, pool: Pool, n_tasks: int) -> Tensor:
        """Return what an episode earns in each task, the same ones for all, by the steps before: (n_tasks, n_steps)."""
        draw = seeds.generator(0, "evaluate", pool)
        outcomes = acted(learner, self.sampler, pool, n_tasks, draw=draw, device=CPU)
        return torch.cat([outcome.predictions for outcome in outcomes]).unflatten(1, (-1, self.each)).mean(2)

    def run(self, contestant: Contestant, seed: int) -> tuple[Actor, Tensor, dict[str, Any]]:
        """Return a contestant after meta-training, at its best rate, what it earns in test tasks, and its costs."""
        config = tuple(sorted(contestant.config.items()))
        sampler, n_shot = contestant.sampler or self.sampler, contestant.n_shot or self.each
        learner, seconds = trained(self, contestant.cls, config, sampler, n_shot, seed)
        if not contestant.adapts:
            return learner, self.returns(learner, "test", self.n_test)[:, :1], {"cpu_seconds": seconds, "rate": None}

        def on_validation(rate: float) -> float:
            return float(self.returns(self.at_rate(learner, rate), "validation", VALIDATION_TASKS)[:, 1:].mean())

        rate = max(self.rates, key=on_validation)
        learner = self.at_rate(learner, rate)
        return learner, self.returns(learner, "test", self.n_test), {"cpu_seconds": seconds, "rate": rate}


@cache  # as one that adapts and one that does not may be the same one
def trained(
    setting: Setting,
    cls: type[Actor],
    config: tuple[tuple[str, Any], ...],
    sampler: TaskSampler,
    n_shot: int,
    seed: int,
) -> tuple[Actor, float]:
    """Return a learner after meta-training, and the CPU seconds that it took."""
    started = time.process_time()
    spec = sampler.spec(1, n_shot, setting.each)
    torch.manual_seed(seeds.derive(seed, "weights"))
    learner = cls(spec, nn.Identity(), cls.Config(**dict(config)))
    meta_train(learner, sampler, setting.outer, Budget(tasks=setting.n_tasks), Loop(), seed=seed, device=CPU)
    return learner, time.process_time() - started


def measured(
    name: str,
    setting: Setting,
    contestants: Mapping[str, Contestant],
    more: Callable[[Mapping[str, Tensor]], Mapping[str, Mapping[str, Any]]] = lambda found: {},
) -> dict[str, Actor]:
    """Run all contestants from every seed and write docs/results/NAME.json; return those of the first seed.

    `more` adds to their rows, given what all earn in the same test tasks: (n_seeds, n_tasks, n_steps).
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    on_one_core()
    learners: dict[str, Actor] = {}
    found: dict[str, Tensor] = {}
    rows: dict[str, dict[str, Any]] = {}
    for contestant_name, contestant in contestants.items():
        runs = [setting.run(contestant, seed) for seed in range(options.seeds)]
        learners[contestant_name] = runs[0][0]
        found[contestant_name] = by_seed = torch.stack([earned for _, earned, _ in runs])
        rows[contestant_name] = {
            "tasks": setting.n_tasks,
            "cpu_seconds": round(sum(costs["cpu_seconds"] for *_, costs in runs) / len(runs)),
            "rate": [costs["rate"] for *_, costs in runs if costs["rate"]],
            "returns": {str(steps): _interval(earned) for steps, earned in enumerate(by_seed.mean(0).T)},
            "by_seed": by_seed.mean(1).tolist(),
        }
        sys.stdout.write(f"{contestant_name}: {rows[contestant_name]}\n")
        sys.stdout.flush()
    for row, added in more(found).items():
        rows[row].update(added)
    write_json(FOLDER / f"{name}.json", rows)
    return learners


def _interval(of_tasks: Tensor) -> dict[str, float]:
    return {"mean": float(of_tasks.mean()), "ci95": 1.96 * float(of_tasks.std()) / math.sqrt(len(of_tasks))}
