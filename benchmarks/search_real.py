"""Does the search pay on real tasks? metaopt, Optuna, random search and each learner's defaults, at equal CPU time.

On the space of a study file, by default Omniglot with five alphabets to learn from. Every contender has the same CPU
seconds, on one thread, and the same tasks to score its trials on; what a trial costs counts, its evaluation included:

- metaopt: every learner's defaults first, halving, racing, the strategy that the study file names;
- Optuna's TPE and random search over the same space, each trial trained to its end and scored on all tasks;
- each learner at its defaults, meta-trained once for the whole time.

Whenever a trial scores best so far its model is kept, and afterwards scored on test tasks, which costs nobody's time. A
trial that does not end in the time does not count. There are no finalists, for anybody.

    python benchmarks/search_real.py [--seeds 0 1 2] [--cpu-seconds 450] [--only CONTENDER …] [--output DIR]

Each contender and seed has a file of its own in DIR, so that several processes can share the work; what is there is
not run again. The table is of all that is there.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from metaopt import plugins, seeds
from metaopt.files import write_json
from metaopt.process import on_one_core
from metaopt.study.file import load
from metaopt.study.ledger import Ledger
from metaopt.study.storage import open_storage
from metaopt.study.trial import Bench, Done, Job
from metaopt.train import Budget

ROOT = Path(__file__).parents[1]
OURS, PLAIN, RANDOM, DEFAULTS = "metaopt", "Optuna's TPE", "random search", "defaults of "
Kept = list[dict[str, Any]]


class Clock:
    """The CPU seconds of a contender: those of this process since it began, and an end to them."""

    def __init__(self, seconds: float) -> None:
        self.began, self.seconds = time.process_time(), seconds

    def spent(self) -> float:
        return time.process_time() - self.began

    def over(self) -> bool:
        return self.spent() >= self.seconds


def by_metaopt(bench: Bench, folder: Path) -> tuple[Callable[[], Job], Callable[..., bool], Callable[[Done], object]]:
    """Return what asks for a trial, hears of one on its way, and is told of it, as `metaopt study run` has them."""
    ledger = Ledger(bench, open_storage(folder), folder)
    return (lambda: replace(ledger.ask(), checkpoint=None)), ledger.report, ledger.tell


def by_optuna(
    bench: Bench, sampler: BaseSampler
) -> tuple[Callable[[], Job], Callable[..., bool], Callable[[Done], object]]:
    """Return the same for one of Optuna's samplers, as a user would have it without metaopt's search."""
    study, asked = bench.study, dict[int, optuna.Trial]()
    search = optuna.create_study(direction=bench.objective.direction, sampler=sampler)

    def ask() -> Job:
        trial = search.ask()
        asked[trial.number] = trial
        seed = seeds.derive(study.seed, "trial", trial.number)
        params = study.space.suggest(trial)
        return Job(trial.number, params, seed, study.budget, study.search_on, "search", study.evaluation.tasks,
                   scoring_seconds=study.evaluation.cpu_seconds or math.inf)  # fmt: skip

    def tell(done: Done) -> None:
        trial, value = asked[done.result.number], done.result.mean
        search.tell(trial, value) if value is not None else search.tell(trial, state=optuna.trial.TrialState.FAIL)

    return ask, lambda *heard: False, tell


def searched(name: str, bench: Bench, seconds: float, folder: Path) -> tuple[Kept, int]:
    """Let a contender search for its CPU seconds; return the trials that were best so far, and how many there were."""
    clock = Clock(seconds)
    samplers = {PLAIN: TPESampler, RANDOM: RandomSampler}
    ask, report, tell = (
        by_metaopt(bench, folder) if name == OURS else by_optuna(bench, samplers[name](seed=bench.study.seed))
    )
    sign = 1 if bench.objective.direction == "maximize" else -1
    best, kept, trials = -math.inf, Kept(), 0
    while not clock.over():
        job = ask()
        job = replace(job, save_to=folder / f"{job.number:05d}.safetensors")
        done = bench.run(job, partial(report, job.number), clock.over)
        if clock.over():
            break
        tell(done)
        trials += 1
        result = done.result
        if result.mean is not None and sign * result.mean > best:
            best = sign * result.mean
            kept.append(_kept(job, done, clock.spent()))
        elif job.save_to:
            job.save_to.unlink(missing_ok=True)
    return kept, trials


def trained(learner: str, bench: Bench, seconds: float, folder: Path) -> tuple[Kept, int]:
    """Meta-train a learner's default pipeline for so many CPU seconds."""
    clock, study = Clock(math.inf), bench.study
    job = Job(0, study.space.default(learner), seeds.derive(study.seed, "trial", 0), Budget(cpu_seconds=seconds),
              study.search_on, "search", study.evaluation.tasks, save_to=folder / "0.safetensors")  # fmt: skip
    done = bench.run(job)
    return [_kept(job, done, clock.spent())] if done.result.mean is not None else [], 1


def _kept(job: Job, done: Done, spent: float) -> dict[str, Any]:
    return {"cpu_seconds": spent, "trial": job.number, "learner": done.result.learner, "params": job.params,
            "seed": job.seed, "search": done.result.mean, "weights": str(job.save_to)}  # fmt: skip


def run(name: str, bench: Bench, seconds: float, n_tasks: int) -> dict[str, Any]:
    """Run a contender and score on test tasks what it would have answered with, over its time."""
    with TemporaryDirectory() as path:
        learner = name.removeprefix(DEFAULTS)
        if learner == name:
            kept, trials = searched(name, bench, seconds, Path(path))
        else:
            kept, trials = trained(learner, bench, seconds, Path(path))
        for one in kept:
            job = Job(one["trial"], one["params"], one.pop("seed"), Budget(tasks=1), "test", "report", n_tasks,
                      weights=Path(one.pop("weights")))  # fmt: skip
            one["test"] = bench.run(job).result.mean
    return {
        "contender": name, "seed": bench.study.seed, "cpu_seconds": seconds, "study": bench.study.name,
        "direction": bench.objective.direction, "trials": trials, "best": kept,
    }  # fmt: skip


def answers(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the benchmark is for, seed by seed."""
    of = {(one["contender"], one["seed"]): one for one in found if one["best"]}
    for seed in sorted({seed for name, seed in of if name == OURS}):
        ours, sign = of[OURS, seed], 1 if of[OURS, seed]["direction"] == "maximize" else -1
        if plain := of.get((PLAIN, seed)):
            goal, took = plain["best"][-1]["test"], plain["best"][-1]["cpu_seconds"]
            first = next((one["cpu_seconds"] for one in ours["best"] if sign * one["test"] >= sign * goal), None)
            says = "not reached" if first is None else f"after {first:.0f} s, {took / first:.1f} times as fast"
            yield f"seed {seed}: {PLAIN} came to its final {goal:.4f} after {took:.0f} s; metaopt: {says}"
        for name in sorted(name for name, other in of if name.startswith(DEFAULTS) and other == seed):
            alone = of[name, seed]["best"][-1]["test"]
            ahead = sign * (ours["best"][-1]["test"] - alone)
            yield f"seed {seed}: {name} for the whole time {alone:.4f}; the search is ahead by {ahead:+.4f}"


def table(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each contender: test scores at shares of the time, mean over seeds."""
    shares = (0.1, 0.25, 0.5, 1.0)
    yield (
        f"{'test score, mean over seeds, at':<32}" + "".join(f"{share:>9.0%}" for share in shares) + "   trials  seeds"
    )
    for name in dict.fromkeys(one["contender"] for one in found):
        own = [one for one in found if one["contender"] == name]
        cells = []
        for share in shares:
            reached = [
                [best["test"] for best in one["best"] if best["cpu_seconds"] <= share * one["cpu_seconds"] or
                 (share == 1.0 and name.startswith(DEFAULTS))]
                for one in own
            ]  # fmt: skip
            cells.append(f"{mean(scores[-1] for scores in reached):9.4f}" if all(reached) else f"{'–':>9}")
        trials = mean(one["trials"] for one in own)
        yield f"{name:<32}{''.join(cells)}   {trials:6.1f}  {len(own):5}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "omniglot-minimal.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the study file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cpu-seconds", type=float, default=450)
    parser.add_argument("--test-tasks", type=int, default=600)
    parser.add_argument("--only", nargs="+", metavar="CONTENDER", help="such as metaopt or 'defaults of maml'")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "search_real", metavar="DIR")
    parser.add_argument("--json", type=Path, help="write everything that is in DIR into one file")
    options = parser.parse_args()
    on_one_core()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    registry = plugins.load()
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        study = load(options.study, registry, [*options.set, f"seed={seed}"])
        bench = Bench(study, registry, torch.device("cpu"))
        bench.check()
        contenders = [OURS, PLAIN, RANDOM, *(DEFAULTS + learner for learner in study.space.learners)]
        for name in options.only or contenders:
            path = options.output / f"{name.replace(' ', '-').replace(chr(39), '')}-{seed}.json"
            if path.exists():
                continue
            found = run(name, bench, options.cpu_seconds, options.test_tasks)
            write_json(path, found)
            last = found["best"][-1] if found["best"] else {"learner": "nothing", "search": math.nan, "test": math.nan}
            print(f"seed {seed}, {name}: {found['trials']} trials, {last['learner']} {last['search']:.4f} in the "
                  f"search, {last['test']:.4f} on test", flush=True)  # fmt: skip
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.output.glob("*.json"))]
    print("\n".join(["", *table(found), "", *answers(found)]))
    if options.json:
        write_json(options.json, {"cpu_seconds": options.cpu_seconds, "runs": found})


if __name__ == "__main__":
    main()
