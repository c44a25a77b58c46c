"""What halving and racing save: whole studies with them and without, of as many trials, from the same seeds.

    make pruning
    python docs/pruning.py [--study quickstart] [--trials 60] [--seeds 0 1 2] [--output DIR]

CPU seconds are those of the whole command, its finalists and its report included, and depend on what else the machine
does; the tasks that its trials were meta-trained on do not. The score is the winner's on test tasks; both winners of a
seed are scored on the same ones, so the interval of their difference is of pairs. What was run is kept in DIR and not
run again.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna

import running
from metaopt.files import write_json
from metaopt.study.storage import open_storage


def ran(run: Path, study: str, trials: int, seed: int, *, prune: bool) -> dict[str, Any]:
    """Run a study; return what it took and came to."""
    kept = run / "pruning.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    settings = (f"seed={seed}", f"prune={str(prune).lower()}", f"trials={trials}", "timeout=null")
    board, cpu_seconds = running.study(study, run, settings)
    optuna_study = optuna.load_study(study_name=None, storage=open_storage(run))
    found = {
        "cpu_seconds": cpu_seconds,
        "pruned": board["trials"]["pruned"],
        "learner": board["finalists"][0]["learner"],
        "trained_tasks": sum(trial.user_attrs["result"]["trained_tasks"] for trial in optuna_study.trials),
        "per_task": np.load(run / "report.npy").tolist(),
    }
    write_json(kept, found)
    return found


def main() -> None:
    """Run every seed, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="quickstart")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs") / "pruning", metavar="DIR")
    options = parser.parse_args()
    saved: dict[str, list[float]] = {"trained_tasks": [], "cpu_seconds": []}
    for seed in options.seeds:
        without, pruning = (
            ran(options.output / f"{seed}-{prune}", options.study, options.trials, seed, prune=prune)
            for prune in (False, True)
        )
        for what, shares in saved.items():
            shares.append(1 - pruning[what] / without[what])
        scores, other = np.array(without["per_task"]), np.array(pruning["per_task"])
        apart = other - scores
        ci95 = 1.96 * apart.std(ddof=1) / len(apart) ** 0.5
        tasks, seconds = (shares[-1] for shares in saved.values())
        running.say(
            f"seed {seed}: {pruning['pruned']} of {options.trials} trials stopped; "
            f"of {without['trained_tasks']:,} tasks {tasks:.0%} saved, "
            f"of {without['cpu_seconds']:.0f} CPU seconds {seconds:.0%}; "
            f"on test {other.mean():.4f}, {apart.mean():+.4f} ± {ci95:.4f}"
        )
    tasks, seconds = (mean(shares) for shares in saved.values())
    running.say(f"saved on average: {tasks:.0%} of the tasks that trials train on, {seconds:.0%} of all CPU seconds")


if __name__ == "__main__":
    main()
