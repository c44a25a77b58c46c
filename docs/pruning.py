"""What halving and racing save: whole studies with them and without, of as many trials, from the same seeds.

    make bench-pruning
    python benchmarks/pruning.py [--study quickstart] [--trials 60] [--seeds 0 1 2] [--output DIR]

CPU seconds are those of the whole command, its finalists and its report included. The score is the winner's on test
tasks; both winners of a seed are scored on the same ones, so the interval of their difference is of pairs. What was
run is kept in DIR and not run again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean
from subprocess import DEVNULL, Popen
from typing import Any

import numpy as np

from metaopt.files import write_json


def ran(run: Path, study: str, trials: int, seed: int, *, prune: bool) -> dict[str, Any]:
    """Run a study; return what it took and came to."""
    kept = run / "pruning.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    settings = (f"seed={seed}", f"prune={str(prune).lower()}", f"trials={trials}", "timeout=null")
    options = [part for setting in settings for part in ("--set", setting)]
    metaopt = [sys.executable, "-m", "metaopt", "study", "run", study, *options, "--output", str(run), "--quiet"]
    process = Popen(metaopt, stdout=DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the study in {run} did not come to its end")
    board = json.loads((run / "leaderboard.json").read_text(encoding="utf-8"))
    found = {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "pruned": board["trials"]["pruned"],
        "learner": board["finalists"][0]["learner"],
        "per_task": np.load(run / "report.npy").tolist(),
    }
    write_json(kept, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", default="quickstart")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("build") / "pruning", metavar="DIR")
    options = parser.parse_args()
    print(f"{options.study}, {options.trials} trials\nseed   CPU s without      with  saved  pruned  test without      "
          "with           difference")  # fmt: skip
    saved = []
    for seed in options.seeds:
        without, pruning = (
            ran(options.output / f"{seed}-{prune}", options.study, options.trials, seed, prune=prune)
            for prune in (False, True)
        )
        saved.append(1 - pruning["cpu_seconds"] / without["cpu_seconds"])
        scores, other = np.array(without["per_task"]), np.array(pruning["per_task"])
        apart = other - scores
        print(f"{seed:4}  {without['cpu_seconds']:14.0f}  {pruning['cpu_seconds']:8.0f}  {saved[-1]:5.0%}  "
              f"{pruning['pruned']:6}  {scores.mean():12.4f}  {other.mean():8.4f}  {apart.mean():+9.4f} ± "
              f"{1.96 * apart.std(ddof=1) / len(apart) ** 0.5:.4f}", flush=True)  # fmt: skip
    print(f"saved on average: {mean(saved):.0%}")


if __name__ == "__main__":
    main()
