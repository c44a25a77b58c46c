"""Run a study of 10,000 trials that do nothing, and 500 real ones in one process: does anything grow?

`python benchmarks/load.py` prints both tables, and what checkpoints of long trials cost. Trials that do nothing score a
learner without parameters on two tasks, so that what is measured is the search itself: its sampler, its storage, its
leaderboard, its display.
"""

import argparse
import contextlib
import datetime
import gc
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaopt import checkpoint, plugins
from metaopt.process import on_one_core
from metaopt.study import search
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, Job, TrialResult
from metaopt.terminal import Lines

IDLE: dict[str, Any] = {
    "name": "idle",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"protonet": {"temperature": {"low": 0.1, "high": 10.0}}, "matching": {}},
    "encoder": "identity",
    "executor": "loop",
    "budget": {"tasks": 1},
    "evaluation": {"tasks": 2, "finalists": 1, "report_tasks": 10},
}
"""Without parameters to train, meta-training ends before its first step."""
REAL: dict[str, Any] = IDLE | {
    "name": "real",
    "learners": ["protonet", "maml", "relation"],
    "encoder": {"mlp": {"width": [8, 16], "depth": 1}},
    "executor": "auto",
    "budget": {"tasks": 40},
    "evaluation": {"tasks": 20, "finalists": 2, "report_tasks": 20},
}


def memory() -> float:
    """Return this process's own memory in MiB: what it shares with files is not counted."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024


def handles() -> int:
    """Return how many files, sockets and pipes this process holds open."""
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Notes:
    """What was seen after each trial."""

    seconds: list[float]
    cpu: list[float]
    memory: list[float]
    handles: list[int]


class Measuring(Lines):
    """The usual lines, of each trial, written to nowhere; and what each trial took."""

    def __init__(self) -> None:
        super().__init__(None)
        self.notes = Notes([], [], [], [])

    def started(self, job: Job) -> None:
        super().started(job)
        if not self.notes.seconds:
            self._note()

    def finished(self, result: TrialResult, best: TrialResult | None) -> None:
        super().finished(result, best)
        self._note()

    def _note(self) -> None:
        notes = self.notes
        notes.seconds.append(time.perf_counter())
        notes.cpu.append(time.process_time())
        if len(notes.seconds) % 50 == 1:
            gc.collect()  # what is no longer used is not held
        notes.memory.append(memory())
        notes.handles.append(handles())


def measured(study: dict[str, Any], folder: Path) -> tuple[Notes, dict[str, Any]]:
    """Run a study in this process; return what was seen, and its leaderboard."""
    registry = plugins.load()
    bench = Bench(resolve(study, study["name"], registry), registry, torch.device("cpu"))
    with contextlib.redirect_stderr(io.StringIO()):
        watcher = Measuring()
        board = search.run(bench, folder, watcher)
    return watcher.notes, board


def each(moments: Sequence[float], n: int) -> tuple[float, float]:
    """Return the milliseconds that a trial took: the medians over the first n trials but fifty, and over the last n."""
    took = [1000 * (after - before) for before, after in itertools.pairwise(moments)]
    return statistics.median(took[50 : 50 + n]), statistics.median(took[-n:])


def command(*arguments: str | Path) -> float:
    """Return the seconds that a command of metaopt takes, start and all."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "metaopt", *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - began


def load(folder: Path, trials: int) -> list[tuple[str, str, str]]:
    """Return the rows of the first table: what, at the start, at the end."""
    notes, board = measured(IDLE | {"trials": trials}, folder)
    assert board["trials"]["failed"] == 0, board["failures"]
    assert sum(board["trials"].values()) == trials
    n = min(500, trials // 4)
    wall, cpu = each(notes.seconds, n), each(notes.cpu, n)
    return [
        ("a trial, ms", f"{wall[0]:.1f}", f"{wall[1]:.1f}"),
        ("a trial, CPU ms", f"{cpu[0]:.1f}", f"{cpu[1]:.1f}"),
        ("memory, MiB", f"{notes.memory[50]:.0f}", f"{notes.memory[-1]:.0f}"),
        ("open files", str(notes.handles[50]), str(notes.handles[-1])),
        ("journal, MiB", "–", f"{(folder / 'journal.log').stat().st_size / 2**20:.1f}"),
        ("study show, s", "–", f"{command('study', 'show', folder):.1f}"),
        ("study report, s", "–", f"{command('study', 'report', folder):.1f}"),
        ("study run again, s", "–", f"{command('study', 'run', folder / 'study.yaml', '--output', folder):.1f}"),
    ]


def endurance(folder: Path, trials: int) -> list[tuple[str, str, str]]:
    """Return the rows of the second table: what, after fifty trials, at the end."""
    notes, board = measured(REAL | {"trials": trials}, folder)
    assert board["trials"]["failed"] == 0, board["failures"]
    return [
        ("memory, MiB", f"{notes.memory[50]:.0f}", f"{notes.memory[-1]:.0f}"),
        ("open files", str(notes.handles[50]), str(notes.handles[-1])),
    ]


def checkpoints(folder: Path) -> list[tuple[str, str, str]]:
    """Return the rows of the last table: an encoder, its numbers, what a checkpoint of its meta-training takes."""
    folder.mkdir(parents=True)
    registry, rows = plugins.load(), []
    for name in ("conv4", "resnet12"):
        study = IDLE | {
            "tasks": {"sampler": "glyphs", "n_way": 5, "n_shot": 1, "size": 28},
            "encoder": {name: {}},
            "name": name,
        }
        bench = Bench(resolve(study, name, registry), registry, torch.device("cpu"))
        learner = bench.build(bench.study.space.default("protonet"), 0)
        optimizer = torch.optim.Adam(learner.parameters())
        for parameter in learner.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        average = {key: parameter.detach().clone() for key, parameter in learner.named_parameters()}
        moving = checkpoint.Moving(learner, optimizer, average, torch.Generator(), bench.executor(learner))
        place, took = checkpoint.File(folder / f"{name}.safetensors"), []
        one = checkpoint.Checkpoint(place, {})
        for _ in range(7):
            one.due, began = 0.0, time.perf_counter()
            one.keep(moving, {})
            took.append(time.perf_counter() - began)
        seconds, numbers = statistics.median(took), sum(p.numel() for p in learner.parameters())
        share = seconds / max(checkpoint.EVERY, seconds / checkpoint.COST)
        size = place.path.stat().st_size / 2**20
        rows.append((f"{name}, {numbers:,}", f"{size:.1f} MiB, {1000 * seconds:.0f} ms", f"{share:.2%}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="that do nothing (default: 10,000)")
    parser.add_argument("--real", type=int, default=500, help="real trials (default: 500)")
    options = parser.parse_args()
    on_one_core()
    print(f"{datetime.date.today()}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory(prefix="metaopt-load-") as root:
        print("| encoder, numbers | a checkpoint | share of the time |\n|---|---|---|")
        print("\n".join(f"| {' | '.join(row)} |" for row in checkpoints(Path(root) / "checkpoints")) + "\n", flush=True)
        for title, rows in (
            (f"{options.real} real trials", endurance(Path(root) / "real", options.real) if options.real else []),
            (f"{options.trials:,} trials", load(Path(root) / "idle", options.trials) if options.trials else []),
        ):
            if not rows:
                continue
            print(f"| {title} | at the start | at the end |\n|---|---|---|")
            print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
