"""How many trials does a study save that begins by what others found? A cold and a warm one on tasks unlike theirs.

Both have the same tasks, seeds and defaults; the warm one then tries what the portfolio that comes with metaopt has of
other distributions: studies on the sampler at hand are taken out of it. After each trial that scores best so far, its
model is scored on test tasks, for the best of many noisy scores is too good, and the more so the more there are. For
each seed: that test score at the cold study's end, and after how many trials each had it.

    python benchmarks/warm.py [--only digits sentences] [--trials 24] [--seeds 0 1 2] [--json FILE]

`sentences` need CLINC150 (METAOPT_DATA).
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.files import write_json
from metaopt.process import on_one_core
from metaopt.study import portfolio
from metaopt.study.file import resolve
from metaopt.study.ledger import Ledger
from metaopt.study.storage import open_storage
from metaopt.study.trial import Bench

CLASSIFYING = ["protonet", "matching", "r2d2", "simpleshot", "pretrain"]
VECTORS = {"mlp": {"width": [32, 64, 128], "depth": {"low": 1, "high": 3}}}
STUDIES: Mapping[str, dict[str, Any]] = {
    "digits": {"tasks": {"sampler": "sklearn_data", "n_way": 3, "n_shot": 1}, "learners": CLASSIFYING},
    "clouds": {"tasks": {"sampler": "gaussian", "n_way": 10, "n_shot": 2}, "learners": CLASSIFYING[:3]},
    "curves": {
        "tasks": {"sampler": "curves", "n_shot": 10, "train_query": 10},
        "learners": ["maml", "anil", "reptile", "hyperhead", "finetune"],
    },
    "sentences": {
        "tasks": {"sampler": "text", "file": "clinc150/data_full.json", "parts": ["train", "val", "test"],
                  "split": "60/20/20", "duplicates": "skip", "split_seed": 1, "n_way": 5, "n_shot": 1},
        "learners": ["protonet", "simpleshot", "r2d2"],
    },
}  # fmt: skip
TEST_TASKS = 1000
"""On which the model of a trial that is best so far is scored."""
SHARED: dict[str, Any] = {
    "encoder": VECTORS,
    "outer": {"lr": {"low": 3e-4, "high": 3e-2}, "schedule": ["constant", "cosine"]},
    "budget": {"tasks": 400},
    "evaluation": {"tasks": 100, "finalists": 1},
}
KINDS = {"sklearn_data": "digits", "gaussian": "gaussian", "curves": "curves", "text": "text"}
"""How the names of studies in the portfolio begin, by the sampler they are on."""


def unlike(sampler: str, path: Path) -> list[str]:
    """Write to `path` the portfolio that comes with metaopt, without that sampler's studies; return who is left."""
    left = [one for one in portfolio.read(portfolio.SHIPPED) if not one.study.startswith(KINDS[sampler])]
    portfolio.add(path, left)
    return [one.study for one in left]


def best_so_far(raw: Mapping[str, Any], n_trials: int) -> list[float]:
    """Run the trials of a study; return after each what the best so far scores on test tasks, more being better."""
    registry = plugins.load()
    bench = Bench(resolve(raw, raw["name"], registry), registry, torch.device("cpu"))
    bench.check()
    sign, best, came = 1 if bench.objective.direction == "maximize" else -1, -math.inf, [-math.inf]
    with TemporaryDirectory() as folder:
        ledger, weights = Ledger(bench, open_storage(Path(folder)), Path(folder)), Path(folder) / "best.safetensors"
        for _ in range(n_trials):
            job = ledger.ask()
            done = bench.run(replace(job, save_to=weights), partial(ledger.report, job.number))
            ledger.tell(done)
            came.append(came[-1])
            if done.result.mean is not None and sign * done.result.mean > best:
                best = sign * done.result.mean
                again = replace(job, pool="test", purpose="report", n_tasks=TEST_TASKS, weights=weights, reports=False)
                tested = bench.run(again).result.mean
                came[-1] = -math.inf if tested is None else sign * tested
    return came[1:]


def compared(name: str, seed: int, n_trials: int) -> dict[str, Any]:
    """Return after how many trials a cold and a warm study had the score at which the cold one ended."""
    raw = {"name": name, "seed": seed, **SHARED, **STUDIES[name]}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "others.json"
        others = unlike(raw["tasks"]["sampler"], path)
        cold, warm = best_so_far(raw, n_trials), best_so_far({**raw, "warm_start": str(path)}, n_trials)
    goal = cold[-1]
    return {
        "study": name, "seed": seed, "trials": n_trials, "defaults": len(raw["learners"]), "others": others,
        "goal": goal, "cold": _first(cold, goal), "warm": _first(warm, goal), "warm_goal": warm[-1],
    }  # fmt: skip


def _first(best: Sequence[float], goal: float) -> int | None:
    return next((number for number, value in enumerate(best, 1) if value >= goal), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(STUDIES), choices=list(STUDIES), metavar="STUDY")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on_one_core()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows, began = [], time.process_time()
    for name in options.only:
        for seed in options.seeds:
            try:
                rows.append(row := compared(name, seed, options.trials))
            except UserError as error:
                print(f"{name}: left out: {error}")
                break
            warm = "never" if row["warm"] is None else f"after {row['warm']}"
            print(f"{name}, seed {seed}: {abs(row['goal']):.4f} cold after {row['cold']} trials, warm {warm}; "
                  f"warm ends at {abs(row['warm_goal']):.4f}", flush=True)  # fmt: skip
            if options.json:
                write_json(options.json, rows)
    if rows:
        shares = [(row["warm"] or math.inf) / row["trials"] for row in rows]
        half = sum(share <= 0.5 for share in shares)
        print(f"its final score within half of the trials: {half} of {len(rows)}; at a share of them, median "
              f"{median(shares):.2f}; {time.process_time() - began:.0f} CPU seconds")  # fmt: skip


if __name__ == "__main__":
    main()
