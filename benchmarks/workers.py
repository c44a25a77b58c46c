"""Trials an hour with two workers beside one, on a machine with nothing else to do.

    make bench-workers
    python benchmarks/workers.py [--study quickstart] [--trials 16] [--turns 2]

The same trials each time, as none is stopped: what counts is the wall time from the first one's beginning to the last
one's end. One and two workers take turns. With a number of trials this small the last of them, which one worker runs
while the other has nothing left, costs two workers something; a longer study would lose less.
"""

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import optuna

import running
from metaopt.study.storage import open_storage


def seconds(study: str, trials: int, workers: int) -> float:
    """Run a study; return the wall time in which trials ran."""
    settings = ("learners=[protonet]", f"trials={trials}", "timeout=null", "prune=false", "evaluation.finalists=1",
                "evaluation.report_tasks=100")  # fmt: skip
    with TemporaryDirectory() as folder:
        running.study(study, Path(folder) / "run", settings, "--workers", str(workers))
        kept = optuna.load_study(study_name=None, storage=open_storage(Path(folder) / "run")).trials
    began = min(trial.datetime_start for trial in kept if trial.datetime_start)
    ended = max(trial.datetime_complete for trial in kept if trial.datetime_complete)
    return (ended - began).total_seconds()


def main() -> None:
    """Take turns, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", default="quickstart")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    took: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.turns):
        for workers, times in took.items():
            times.append(seconds(options.study, options.trials, workers))
            running.say(f"{workers} worker{'s' * (workers > 1)}: {options.trials} trials in {times[-1]:.1f} s")
    one, two = (median(times) for times in took.values())
    running.say(f"two workers do {one / two:.2f} times the trials of one in the same time")


if __name__ == "__main__":
    main()
