"""`executor: fastest`: which executor meta-trains each learner soonest here, measured once and kept with the study.

Executors differ in rounding alone. So that a study that goes on, or is repeated from the file in its run folder, stays
the same to the last bit, the names that were found stand in that file, by learner.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from metaopt.executor import EXECUTORS, FASTEST, Loop, choose, trainable
from metaopt.pace import Pace, measured
from metaopt.study.space import section
from metaopt.study.trial import Bench
from metaopt.train import Outer, rehearsed

GAIN = 0.95
"""What is as slow as this share of `auto`'s time, or slower, is not worth another executor: it may be noise."""
SPEND = 0.25
"""CPU seconds to time steps of one kind."""


def settle(bench: Bench, kept: object) -> str | None:
    """Put executors by learner in the place of "fastest" and return what to tell of it; None where it is not asked for.

    `kept` is the key of the study file of before: what was found then holds.
    """
    if bench.study.executor != FASTEST:
        return None
    found = dict(kept) if isinstance(kept, Mapping) else {
        learner: name for learner in bench.study.space.learners if (name := fastest(bench, learner))
    }  # fmt: skip
    for one in (bench, *bench.folds, bench.last):
        one.study = replace(bench.study, executor=found)
    return "executors: " + ", ".join(f"{learner} {name}" for learner, name in found.items())


def fastest(bench: Bench, learner: str) -> str | None:
    """Return the executor under which a trial of this learner's defaults takes least; None where none is used."""
    study, cls = bench.study, bench.study.space.learner_classes[learner]
    if cls.trains_on != "tasks" or not cls.batchable or bench.spec.kind == "control":
        return None
    params, one = study.space.default(learner), bench.folds[0]
    built, outer = one.build(params, study.seed), Outer(**section(params, "outer"))
    if not trainable(built):
        return None
    budget, steps = study.budget, (study.budget.tasks or 0) / outer.tasks_per_step
    paces: dict[str, Pace] = {}
    with torch.random.fork_rng(devices=[bench.device] if bench.device.type == "cuda" else []):
        step = rehearsed(built, one.sampler, outer, study.seed, bench.device)
        seconds = budget.cpu_seconds or measured(step, Loop(), 0.0, SPEND).seconds(steps)
        for name, executor in EXECUTORS.items():
            try:
                paces[name] = measured(step, executor(), seconds, SPEND)
            except RuntimeError:  # torch.func cannot run everything
                continue
    cost = {
        name: 1 / pace.steps(budget.cpu_seconds) if budget.cpu_seconds else pace.seconds(steps)
        for name, pace in paces.items()
    }
    usual, best = choose("auto", built.spec).name, min(cost, key=lambda name: cost[name])
    return best if cost[best] < GAIN * cost.get(usual, float("inf")) else usual
