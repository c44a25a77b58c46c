"""`executor: fastest`: which executor meta-trains each learner soonest here, measured once and kept with the study.

Executors differ in rounding alone. So that a study that goes on, or is repeated from the file in its run folder, stays
the same to the last bit, the names that were found stand in that file and in the storage, by learner.
"""

from contextlib import suppress
from dataclasses import replace

import optuna
import torch
from optuna.storages import BaseStorage

from metaopt.executor import EXECUTORS, FASTEST, Loop, choose, trainable
from metaopt.pace import measured
from metaopt.study.space import section
from metaopt.study.trial import Bench
from metaopt.train import Outer, rehearsed

GAIN = 0.95
"""What is as slow as this share of `auto`'s time, or slower, is not worth another executor: it may be noise."""
SPEND = 0.25
"""CPU seconds to time steps of one kind."""


def settle(bench: Bench, storage: BaseStorage) -> str | None:
    """Put executors by learner in the place of "fastest" and return what to tell of it; None where it is not asked for.

    Where the storage holds the study, what was found when it began holds.
    """
    study = bench.study
    if study.executor != FASTEST:
        return None
    found: object = None
    if study.name in optuna.get_all_study_names(storage):
        kept = optuna.load_study(study_name=study.name, storage=storage).user_attrs
        found = kept.get("study", {}).get("executor")
    if not isinstance(found, dict):
        found = {learner: name for learner in study.space.learners if (name := fastest(bench, learner))}
    for one in (bench, *bench.folds, bench.last):
        one.study = replace(study, executor=found)
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
    with torch.random.fork_rng(devices=[bench.device] if bench.device.type == "cuda" else []):
        step = rehearsed(built, one.sampler, outer, study.seed, bench.device)
        paces = {Loop.name: measured(step, Loop(), 0.0, SPEND)}  # which runs every learner
        seconds = budget.cpu_seconds or paces[Loop.name].seconds(steps)
        for name in (one for one in EXECUTORS if one not in paces):
            with suppress(RuntimeError):  # torch.func cannot run everything
                paces[name] = measured(step, EXECUTORS[name](), seconds, SPEND)
    cost = {
        name: 1 / pace.steps(budget.cpu_seconds) if budget.cpu_seconds else pace.seconds(steps)
        for name, pace in paces.items()
    }
    usual, best = choose("auto", built.spec, bench.device.type).name, min(cost, key=lambda name: cost[name])
    return best if cost[best] < GAIN * cost.get(usual, float("inf")) else usual
