"""Kill studies at random moments, fill their disk, freeze their workers; count what was lost and what was doubled.

`python benchmarks/torture.py --kills 200` prints a table. Every fault is real: signals, a small tmpfs that is full, a
worker that is stopped. A study runs in a forked copy of this process, so that torch is imported once.
"""

import argparse
import datetime
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"protonet": {"temperature": None}, "relation": None},
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"lr": None},
    "executor": "loop",
    "trials": 4,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 2, "report_tasks": 20},
}
LONG = STUDY | {"name": "long", "outer": {"lr": None, "tasks_per_step": 2, "averaging": 0.9}}
"""Trials of steps enough to be killed between them."""
TIMES = {"seconds", "cpu_seconds"}
"""Keys of a leaderboard that differ from run to run."""


@dataclass(frozen=True)
class Moment:
    """The nth time that a function of ours is called, or returns, in the study's process or in a worker's."""

    function: str
    """As `Learner.outer_step`: the code's qualified name."""
    event: str = "call"
    nth: int = 1
    worker: bool = False


STUDY_DIES = {
    "before anything": Moment("Ledger.__init__"),
    "while it stores the study": Moment("CheckedJournal.append_logs", "return", 2),
    "while it chooses": Moment("CheckedJournal.append_logs", "call", 15),
    "in meta-training": Moment("Learner.outer_step", nth=3),
    "in evaluation": Moment("predict", nth=4),
    "between scoring and storing": Moment("Ledger.tell", nth=2),
    "between scores and result": Moment("write_scores", "return", 3),
    "between result and state": Moment("Ledger._close", nth=3),
    "after the last trial": Moment("_finalists"),
    "between a finalist's weights and scores": Moment("write_scores", nth=5),
    "before the report": Moment("_report"),
    "before best/": Moment("save"),
    "in the middle of best/": Moment("_write_config"),
    "after best/": Moment("_put", "return"),
    "while it writes the leaderboard": Moment("_sync_folder", nth=12),
}
WORKER_DIES = {
    "in meta-training": Moment("Learner.outer_step", nth=2, worker=True),
    "in evaluation": Moment("predict", nth=2, worker=True),
    "between scoring and storing": Moment("Bench.run", "return", worker=True),
    "while it saves weights": Moment("whole", worker=True),
    "while it scores the winner": Moment("load_file", worker=True),
}
LONG_DIES = {
    "in a step": Moment("Learner.outer_step", nth=7),
    "while it writes the first checkpoint": Moment("_sync_folder", nth=6),
    "while it writes one": Moment("Checkpoint.keep", nth=9),
    "at a rung": Moment("Ledger.report", nth=4),
    "in a finalist": Moment("Learner.outer_step", nth=18),
    "in the second finalist": Moment("Learner.outer_step", nth=23),
    "after best/": Moment("_put", "return"),
}
FULL = {
    "while it stores the study": Moment("CheckedJournal.append_logs", nth=2),
    "while it stores a trial": Moment("CheckedJournal.append_logs", nth=20),
    "while a trial reports": Moment("Ledger.report", nth=2),
    "while it stores scores": Moment("write_scores", nth=2),
    "while it saves weights": Moment("_finalists"),
    "while it stores a finalist's scores": Moment("write_scores", nth=5),
    "while it stores the report's scores": Moment("write_scores", nth=7),
    "while it writes best/": Moment("save"),
    "while it writes the leaderboard": Moment("_put", "return"),
}
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static int calls = 0;
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME && ++calls % 3 == 0) now->tv_sec += calls % 2 ? 90000 : -90000;
    return code;
}
"""


Act = Callable[[], object]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_study() -> None:
    """Kill the study from its worker, which is then without a parent."""
    os.kill(os.getppid(), signal.SIGKILL)


def begin(arguments: list[str | Path], out: Path, moment: Moment | None = None, act: Act = kill) -> int:
    """Fork a process that runs the command line, its output in a file, and return its number.

    At the moment it does `act`, once: a file beside `out` says that it is still to come.
    """
    fuse = out.with_suffix(".fuse")
    fuse.touch()
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.setsid()
        for handled in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handled, signal.default_int_handler if handled == signal.SIGINT else signal.SIG_DFL)
        descriptor = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        logging.getLogger().handlers.clear()  # pytest's, which would keep warnings to itself
        if moment:
            sys.setprofile(_watch(moment, act, fuse, os.getpid()))
        from metaopt.cli import main

        code = main([str(argument) for argument in arguments])
    except BaseException:  # whatever ends this copy of the process is told, and never goes on as the parent
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def _watch(moment: Moment, act: Act, fuse: Path, study: int) -> Callable[..., None]:
    seen = 0

    def watch(frame: Any, event: str, _: object) -> None:
        nonlocal seen
        if event != moment.event or frame.f_code.co_qualname != moment.function:
            return
        ours = any(name in frame.f_code.co_filename for name in ("metaopt", "safetensors"))
        if not ours or (os.getpid() != study) is not moment.worker:
            return
        seen += 1
        if seen >= moment.nth:
            with suppress(FileNotFoundError):
                fuse.unlink()  # whoever removes it is the one
                act()

    return watch


def end(number: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def timeless(board: Any) -> Any:
    """Return a leaderboard without the times in it."""
    if isinstance(board, dict):
        return {key: timeless(value) for key, value in board.items() if key not in TIMES}
    return [timeless(item) for item in board] if isinstance(board, list) else board


def records(folder: Path) -> dict[int, list[str]]:
    """Return, by trial, every result that was ever written of it: one where nothing is lost or doubled.

    Read from the journal's lines as they are, not through Optuna.
    """
    found: dict[int, list[str]] = {}
    try:
        lines = (folder / "journal.log").read_bytes().split(b"\n")[:-1]  # what is after the last newline is torn
    except OSError:
        return {}
    for line in lines:
        entry = json.loads(line)
        if "result" in entry.get("user_attr", {}):
            found.setdefault(entry["trial_id"], []).append(json.dumps(entry["user_attr"]["result"], sort_keys=True))
    return found


def alive(session: int) -> list[int]:
    """Return the processes of a session that still run: a study's own is the session's number."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def gone(session: int, within: float) -> bool:
    """Tell whether all processes of a session end in so many seconds."""
    until = time.monotonic() + within
    while alive(session) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(session)


@contextmanager
def small_disk(folder: Path, size: str = "4m") -> Iterator[Path]:
    """Mount a small tmpfs at a folder. Raises PermissionError where this user may not."""
    folder.mkdir(exist_ok=True)
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True
        ).returncode
    ):
        raise PermissionError("only root may mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Fill a disk but for so many bytes; return the file that fills it."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            if file.write(b"\0" * 65536) < 65536:
                break
    with suppress(OSError):
        os.truncate(filler, filler.stat().st_size - but)
    return filler


class Victims:
    """Studies of one kind, and what one that nothing disturbs comes to."""

    def __init__(self, root: Path, study: dict[str, Any] = STUDY, workers: int = 1) -> None:
        self.root, self.workers = root, workers
        self.file = root / f"{study['name']}.yaml"
        self.file.write_text(yaml.safe_dump(study))
        self.name: str = study["name"]
        self.n_trials: int = study["trials"]
        self.n = 0
        self._command(self.folder("warm"))  # this process imports what takes seconds, for all its copies
        whole, began = self.folder("whole"), time.monotonic()
        assert end(self.begin(whole)) == 0, self.said(whole)
        self.seconds = time.monotonic() - began
        self.board = self.leaderboard(whole)

    def folder(self, name: str = "") -> Path:
        """Return a run folder that is not there yet."""
        self.n += 1
        return self.root / (name or f"run{self.n}")

    def _command(self, folder: Path) -> None:
        from metaopt import cli

        assert cli.main([str(part) for part in self.arguments(folder)]) == 0

    def arguments(self, folder: Path) -> list[str | Path]:
        return ["study", "run", self.file, "--output", folder, "--quiet", "--json", f"--workers={self.workers}"]

    def begin(self, folder: Path, moment: Moment | None = None, act: Act = kill) -> int:
        """Begin a study in a process of its own, or go on with it; return its number."""
        return begin(self.arguments(folder), self._out(folder), moment, act)

    def said(self, folder: Path) -> str:
        """Return what the last study in a folder printed."""
        return self._out(folder).read_text(errors="replace")

    def acted(self, folder: Path) -> bool:
        """Tell whether the moment came."""
        return not self._out(folder).with_suffix(".fuse").exists()

    def _out(self, folder: Path) -> Path:
        return self.root / f"{folder.name}.out"

    def leaderboard(self, folder: Path) -> Any:
        return timeless(json.loads((folder / "leaderboard.json").read_text(encoding="utf-8")))

    def records(self, folder: Path) -> dict[int, list[str]]:
        """Return, by trial, every result that was ever written of it."""
        return records(folder)

    def lost(self, before: dict[int, list[str]], folder: Path) -> int:
        """Return how many trials that were finished before have no result, or another one, at the end.

        Trials that were never run at the end count too.
        """
        after = self.records(folder)
        gone = sum(after.get(trial, [])[:1] != found[:1] for trial, found in before.items() if found)
        return gone + max(0, self.n_trials - sum(map(bool, after.values())))

    def doubled(self, folder: Path) -> int:
        """Return how many trials were counted twice: results written again, or trials more than were asked for."""
        after = self.records(folder)
        return sum(max(0, len(found) - 1) for found in after.values()) + max(0, len(after) - self.n_trials)

    def whole(self, folder: Path) -> list[str]:
        """Return what is wrong with a finished folder; nothing where it is as if nothing had happened."""
        wrong = [f"left over: {path.name}" for path in folder.rglob(".*") if path.name != ".lock"]
        board = self.leaderboard(folder)
        if self.workers == 1 and board != self.board:
            wrong.append("another leaderboard")
        if board["status"] != "finished" or sum(board["trials"].values()) != self.n_trials:
            wrong.append(f"{board['status']}: {board['trials']}")
        if board["failures"] or len(board["finalists"]) != len(self.board["finalists"]):
            wrong.append(f"{len(board['finalists'])} finalists, failures {board['failures']}")
        if not (folder / "best" / "weights.safetensors").exists():
            wrong.append("no best model")
        return wrong


def jumping_clock(folder: Path) -> Path:
    """Return a library that, loaded before others (LD_PRELOAD), has the wall clock jump by a day and back."""
    (folder / "clock.c").write_text(CLOCK)
    library = folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "clock.c", "-ldl"], check=True)
    return library


class Stored(Victims):
    """The same, their trials in PostgreSQL: a database for each run folder."""

    def __init__(self, root: Path, server: Any, study: dict[str, Any] = STUDY, workers: int = 1) -> None:
        self.server = server
        super().__init__(root, study, workers)

    def url(self, folder: Path) -> str:
        """Return the URL of a folder's database."""
        return str(self.server.url.rpartition("/")[0] + f"/{folder.parent.name}_{folder.name}")

    def folder(self, name: str = "") -> Path:
        """Return a run folder that is not there yet, and make its database."""
        folder = super().folder(name)
        self.server.sql(f"CREATE DATABASE {folder.parent.name}_{folder.name}")
        return folder

    def arguments(self, folder: Path) -> list[str | Path]:
        return [*super().arguments(folder), "--storage", self.url(folder)]

    def records(self, folder: Path) -> dict[int, list[str]]:
        """Return each trial's result; a trial without one, which was begun and not finished, has none."""
        import psycopg

        results = "SELECT value_json FROM trial_user_attributes AS a WHERE a.trial_id = t.trial_id AND key = 'result'"
        with psycopg.connect(self.url(folder).replace("+psycopg", "")) as connection:
            if not connection.execute("SELECT to_regclass('trials')").fetchone()[0]:
                return {}
            found = connection.execute(f"SELECT number, ({results}) FROM trials AS t WHERE state != 'WAITING'")
            return {number: [result] if result else [] for number, result in found}


def stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Return what changes when a study writes anything."""
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            found.append((str(path), path.stat().st_mtime_ns, path.stat().st_size))
    return sorted(found)


def recovered(folder: Path, process: int, before: list[tuple[str, int, int]]) -> float:
    """Wait until a study writes again, or has ended; return the seconds."""
    began = time.monotonic()
    while stamp(folder) == before and alive(process):
        time.sleep(0.005)
    return time.monotonic() - began


def until(true: Callable[[], bool], within: float = 20.0) -> None:
    """Wait until something is true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within, "it did not come to that"
        time.sleep(0.005)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wake(session: int) -> None:
    """Let all processes of a session go on."""
    for number in alive(session):
        os.kill(number, signal.SIGCONT)


def signalled(number: int, times: int = 1) -> None:
    """Send this process a signal, as a terminal does to it and to its workers."""
    for _ in range(times):
        os.killpg(os.getpid(), number)


def rendezvous(n: int) -> Act:
    """Return what waits until n processes, forked later, have come to it."""
    arrived = multiprocessing.get_context("fork").Barrier(n)
    return lambda: arrived.wait(20)


@dataclass
class Row:
    """What came of one kind of fault."""

    fault: str
    times: int = 0
    lost: int = 0
    doubled: int = 0
    otherwise: int = 0
    """Studies that did not end as they would have."""
    orphans: int = 0
    seconds: list[float] = field(default_factory=list)
    """From the fault, or from the next start, until the study writes again."""

    def cells(self) -> list[str]:
        seconds = sorted(self.seconds) or [0.0]
        return [
            self.fault,
            *map(str, (self.times, self.lost, self.doubled, self.orphans, self.otherwise)),
            f"{seconds[len(seconds) // 2]:.2f}",
            f"{seconds[-1]:.2f}",
        ]


HEAD = ["fault", "times", "lost", "doubled", "orphans", "other end", "s to recover, median", "most"]


def settle(victims: Victims, folder: Path, row: Row, before: dict[int, list[str]]) -> None:
    """Go on with a study to its end, and note what became of what was finished before."""
    written = stamp(folder)
    process = victims.begin(folder)
    row.seconds.append(recovered(folder, process, written))
    code = end(process)
    judge(victims, folder, row, before, code)


def judge(victims: Victims, folder: Path, row: Row, before: dict[int, list[str]], code: int) -> None:
    wrong = victims.whole(folder) if code == 0 else [f"exit code {code}: {victims.said(folder)}"]
    if wrong:
        row.otherwise += 1
        print(f"{row.fault}: {folder.name}: {'; '.join(wrong)}", file=sys.stderr)
    row.lost += victims.lost(before, folder)
    row.doubled += victims.doubled(folder)
    if not wrong:
        shutil.rmtree(folder)


def study_killed(victims: Victims, row: Row, draw: random.Random, kills: int = 1) -> None:
    """Kill a study at a random moment, so many times in a row, and go on with it.

    A trial in which a study dies three times is given up, so more than two kills in a row may end otherwise.
    """
    folder, before = victims.folder(), dict[int, list[str]]()
    for _ in range(kills):
        process = victims.begin(folder)
        time.sleep(draw.uniform(0.0, 1.1 * victims.seconds))
        if alive(process):  # or ended and not asked after, so that its number is still its own
            os.kill(process, signal.SIGKILL)
            row.times += 1
        end(process)
        row.orphans += not gone(process, within=1)
        before |= records(folder)
    settle(victims, folder, row, before)


def long_killed(victims: Victims, row: Row, draw: random.Random) -> None:
    """Kill a study of long trials, which writes a checkpoint at each outer step."""
    with checkpoints_at_each_step():
        study_killed(victims, row, draw)


def worker_killed(victims: Victims, row: Row, draw: random.Random) -> None:
    folder = victims.folder()
    process = victims.begin(folder)
    time.sleep(draw.uniform(0.1, 1.0) * victims.seconds)
    workers = [number for number in alive(process) if number != process]
    before, written = records(folder), stamp(folder)
    with suppress(ProcessLookupError, IndexError):  # of a study that has just ended
        os.kill(draw.choice(workers), signal.SIGKILL)
        row.times += 1
        row.seconds.append(recovered(folder, process, written))
    judge(victims, folder, row, before, end(process))


def worker_frozen(victims: Victims, row: Row, draw: random.Random) -> None:
    folder = victims.folder()
    process = victims.begin(folder)
    time.sleep(draw.uniform(0.1, 1.0) * victims.seconds)
    workers = [number for number in alive(process) if number != process]
    before = records(folder)
    with suppress(ProcessLookupError, IndexError):
        frozen = draw.choice(workers)
        os.kill(frozen, signal.SIGSTOP)
        row.times += 1
        time.sleep(0.3)
        written = stamp(folder)
        os.kill(frozen, signal.SIGCONT)
        row.seconds.append(recovered(folder, process, written))
    judge(victims, folder, row, before, end(process))


def interrupted(victims: Victims, row: Row, draw: random.Random) -> None:
    folder = victims.folder()
    process = victims.begin(folder)
    until((folder / "journal.log").exists)  # from there on it listens
    time.sleep(draw.uniform(0.0, 0.8) * victims.seconds)
    with suppress(ProcessLookupError):
        os.killpg(process, draw.choice([signal.SIGINT, signal.SIGTERM]))
        row.times += 1
    end(process)
    row.orphans += not gone(process, within=1)
    settle(victims, folder, row, records(folder))


def disk_filled(victims: Victims, row: Row, draw: random.Random) -> None:
    with small_disk(victims.root / "disk") as disk:
        folder = disk / f"run{row.times}"
        process = victims.begin(folder)
        time.sleep(draw.uniform(0.0, 1.0) * victims.seconds)
        filler = fill(disk, but=draw.choice([0, 10, 100, 1000]))
        row.times += 1
        code = end(process)
        filler.unlink()
        refused_in_a_sentence(victims, folder, row, code)
        settle(victims, folder, row, records(folder))


def chosen_moment(victims: Victims, row: Row, moment: Moment) -> None:
    """Kill a study or its worker at a moment of its own, and go on with the study."""
    folder, act = victims.folder(), kill
    process = victims.begin(folder, moment, act)
    if moment.worker:
        until(lambda: victims.acted(folder) or not alive(process))
        before, written = victims.records(folder), stamp(folder)
        row.seconds.append(recovered(folder, process, written))
        row.times += victims.acted(folder)
        judge(victims, folder, row, before, end(process))
        return
    row.times += end(process) == -signal.SIGKILL
    row.orphans += not gone(process, within=1)
    settle(victims, folder, row, victims.records(folder))


def long_moment(victims: Victims, row: Row, moment: Moment) -> None:
    """Do the same to a study that writes a checkpoint at each outer step."""
    with checkpoints_at_each_step():
        chosen_moment(victims, row, moment)


@contextmanager
def checkpoints_at_each_step() -> Iterator[None]:
    """Write a checkpoint at each outer step, as if each took half a minute."""
    from metaopt import checkpoint

    every, cost = checkpoint.EVERY, checkpoint.COST
    checkpoint.EVERY, checkpoint.COST = -1.0, math.inf
    try:
        yield
    finally:
        checkpoint.EVERY, checkpoint.COST = every, cost


def interrupted_twice(victims: Victims, row: Row, draw: random.Random) -> None:
    folder = victims.folder()
    nth = draw.randrange(1, victims.n_trials)
    process = victims.begin(folder, Moment("Ledger.tell", nth=nth), lambda: signalled(signal.SIGINT, 2))
    row.times += 1
    end(process)
    row.orphans += not gone(process, within=1)
    settle(victims, folder, row, victims.records(folder))


def disk_full_at(victims: Victims, row: Row, moment: Moment) -> None:
    """Fill the disk at a moment, such as while a checkpoint is written: a sentence, and it goes on with room."""
    with small_disk(victims.root / "disk") as disk, checkpoints_at_each_step():
        folder = disk / "run"
        code = end(victims.begin(folder, moment, lambda: fill(disk)))
        row.times += victims.acted(folder)
        refused_in_a_sentence(victims, folder, row, code)
        (disk / "filler").unlink(missing_ok=True)
        settle(victims, folder, row, victims.records(folder))


def report_on_a_full_disk(victims: Victims, row: Row, draw: random.Random) -> None:
    """Write a report to a disk with little room: the old one stays whole, and none is half-written."""
    with small_disk(victims.root / "disk", size="32m") as disk:
        folder, out = Path(shutil.copytree(victims.root / "whole", disk / "run")), victims.root / "report.out"
        (folder / "report.html").write_text("the old one")
        filler = fill(disk, but=draw.choice([0, 1, 100, 5000]))
        row.times += 1
        code = end(begin(["study", "report", folder], out))
        row.otherwise += code != 2 or (folder / "report.html").read_text() != "the old one"
        row.otherwise += bool(list(folder.glob(".*.tmp")))
        filler.unlink()
        began = time.monotonic()
        row.otherwise += end(begin(["study", "report", folder], out)) != 0
        row.seconds.append(time.monotonic() - began)


def read_only(victims: Victims, row: Row, draw: random.Random) -> None:
    """Go on with a study that was killed on a disk that cannot be written any more: a sentence, until it can."""
    with small_disk(victims.root / "disk") as disk:
        folder = disk / "run"
        end(victims.begin(folder, draw.choice([*STUDY_DIES.values()][1:])))
        remount(disk, "ro")
        code = end(victims.begin(folder))
        remount(disk, "rw")
        row.times += 1
        refused_in_a_sentence(victims, folder, row, code or 70)
        settle(victims, folder, row, victims.records(folder))


def remount(disk: Path, how: str) -> None:
    """Let a disk be read only ("ro"), or written again ("rw")."""
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def refused_in_a_sentence(victims: Victims, folder: Path, row: Row, code: int) -> None:
    said = victims.said(folder)
    if code not in {0, 2} or (code == 2 and len(said.splitlines()) != 1):
        row.otherwise += 1
        print(f"{row.fault}: exit code {code}: {said}", file=sys.stderr)


def database_stopped(victims: Stored, row: Row, draw: random.Random) -> None:
    """Stop a study's database, as one that is stopped or as one that crashes, and start it again: the study goes on."""
    folder = victims.folder()
    process = victims.begin(folder)
    time.sleep(draw.uniform(0.0, 0.9) * victims.seconds)
    before = victims.records(folder)
    victims.server.stop(draw.choice(["fast", "immediate"]))
    row.times += 1
    time.sleep(draw.uniform(0.0, 1.0))
    written = stamp(folder)
    victims.server.start()
    row.seconds.append(recovered(folder, process, written))
    code = end(process)
    if code == 2 and "cannot open that storage" in victims.said(folder) and not folder.exists():
        # It was about to begin: a URL that does not answer then may be a mistake.
        refused_in_a_sentence(victims, folder, row, code)
        settle(victims, folder, row, before)
    else:
        judge(victims, folder, row, before, code)


def two_users(victims: Victims, row: Row) -> None:
    """Start a study twice at once: one is refused in a sentence, the other runs it."""
    folder, meet = victims.folder(), rendezvous(2)
    outs = [victims.root / f"user{number}.out" for number in range(2)]
    both = [begin(victims.arguments(folder), out, Moment("owned"), meet) for out in outs]
    codes = [end(one) for one in both]
    row.times += 1
    said = outs[codes.index(2)].read_text() if 2 in codes else ""
    refused = sorted(codes) == [0, 2] and len(said.splitlines()) == 1
    if not refused:
        print(f"{row.fault}: exit codes {codes}: {said}", file=sys.stderr)
    row.otherwise += not refused
    judge(victims, folder, row, {}, 0)


def clock_jumps(victims: Victims, row: Row) -> None:
    """Run a study while the wall clock jumps by a day and back."""
    folder = victims.folder()
    command = [sys.executable, "-m", "metaopt", *map(str, victims.arguments(folder)), "--timeout=600s"]
    environment = os.environ | {"LD_PRELOAD": str(jumping_clock(victims.root))}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    row.times += 1
    board = victims.leaderboard(folder) if ran.returncode == 0 else {}
    if board.get("finalists") != victims.board["finalists"]:
        row.otherwise += 1
        print(f"{row.fault}: exit code {ran.returncode}: {ran.stderr}", file=sys.stderr)
    row.lost += victims.lost({}, folder)
    row.doubled += victims.doubled(folder)


def frozen_past_its_heartbeat(victims: Victims, row: Row) -> None:
    """Freeze one of two workers that share a study until the other has taken its trial over, and wake it then."""
    from metaopt import cli, supervise

    folder = victims.folder()
    folder.mkdir()
    journal = folder / "journal.log"
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        assert cli.main(["study", "create", str(victims.file), "--storage", str(journal), "--json"]) == 0
    arguments: list[str | Path] = ["worker", "--study", victims.name, "--storage", journal, "--quiet", "--beat", "0.2"]
    outs = [victims.root / f"{folder.name}-{which}.out" for which in ("frozen", "other")]
    os.environ[supervise.SUPERVISED] = str(os.getpid())
    try:
        frozen = begin(arguments, outs[0], Moment("Learner.outer_step"), freeze)
        until(lambda: not outs[0].with_suffix(".fuse").exists())
        began = time.monotonic()
        other = end(begin(arguments, outs[1]))
    finally:
        del os.environ[supervise.SUPERVISED]
    row.seconds.append(time.monotonic() - began)
    row.times += 1
    wake(frozen)
    codes = [other, end(frozen)]
    if codes != [0, 0]:
        row.otherwise += 1
        print(f"{row.fault}: exit codes {codes}: {''.join(out.read_text() for out in outs)}", file=sys.stderr)
    row.lost += victims.lost({}, folder)
    row.doubled += victims.doubled(folder)


def journal_cut(victims: Victims, row: Row, draw: random.Random) -> None:
    """Cut a finished study's journal short anywhere: the study goes on from there to the same end."""
    folder = Path(shutil.copytree(victims.root / "whole", victims.folder()))
    (folder / "leaderboard.json").unlink()
    journal = (folder / "journal.log").read_bytes()
    (folder / "journal.log").write_bytes(journal[: draw.randrange(len(journal))])
    row.times += 1
    settle(victims, folder, row, records(folder))


def journal_spoilt(victims: Victims, row: Row, draw: random.Random) -> None:
    """Flip a bit of a finished study's journal: it is noticed, or it changes nothing; restored, the study goes on."""
    folder = Path(shutil.copytree(victims.root / "whole", victims.folder()))
    (folder / "leaderboard.json").unlink()
    before, journal = records(folder), (folder / "journal.log").read_bytes()
    spoilt = bytearray(journal)
    spoilt[draw.randrange(len(journal))] ^= 1 << draw.randrange(8)
    (folder / "journal.log").write_bytes(spoilt)
    row.times += 1
    if (code := end(victims.begin(folder))) == 0:
        judge(victims, folder, row, before, code)
        return
    (folder / "journal.log").write_bytes(journal)
    settle(victims, folder, row, before)


def plan(root: Path, kills: int, draw: random.Random, server: Any) -> list[tuple[str, int, Callable[[Row], None]]]:
    """Return every fault, how many times it is provoked, and what provokes it."""
    for name in ("alone", "two", "long", "stored"):
        (root / name).mkdir()
    alone, two = Victims(root / "alone"), Victims(root / "two", workers=2)
    long = Victims(root / "long", LONG)
    n = -(-kills // 6)  # of each kind of kill
    few = max(1, n // 2)
    dies, worker_dies, long_dies = (
        itertools.cycle(moments.values()) for moments in (STUDY_DIES, WORKER_DIES, LONG_DIES)
    )
    full = itertools.cycle([Moment("Checkpoint.keep", nth=nth) for nth in (1, 3, 5, 7)])
    found: list[tuple[str, int, Callable[[Row], None]]] = [
        ("study killed, one process", n, lambda row: study_killed(alone, row, draw)),
        ("study killed with two workers", n, lambda row: study_killed(two, row, draw)),
        ("study killed twice in a row", n, lambda row: study_killed(alone, row, draw, 2)),
        ("study killed in long trials", few, lambda row: long_killed(long, row, draw)),
        ("study killed where it hurts", n, lambda row: chosen_moment(alone, row, next(dies))),
        ("study killed at its checkpoints", few, lambda row: long_moment(long, row, next(long_dies))),
        ("worker killed", n, lambda row: worker_killed(two, row, draw)),
        ("worker killed where it hurts", few, lambda row: chosen_moment(two, row, next(worker_dies))),
        ("worker frozen and woken", few, lambda row: worker_frozen(two, row, draw)),
        ("worker frozen past its heartbeat", max(1, few // 4), lambda row: frozen_past_its_heartbeat(alone, row)),
        ("Ctrl-C or SIGTERM", few, lambda row: interrupted(two, row, draw)),
        ("Ctrl-C twice", few, lambda row: interrupted_twice(two, row, draw)),
        ("disk full", few, lambda row: disk_filled(alone, row, draw)),
        ("disk full at a checkpoint", max(1, few // 4), lambda row: disk_full_at(long, row, next(full))),
        ("disk full at a report", max(1, few // 8), lambda row: report_on_a_full_disk(alone, row, draw)),
        ("disk read-only", few, lambda row: read_only(alone, row, draw)),
        ("two users at once", max(1, few // 2), lambda row: two_users(alone, row)),
        ("wall clock jumps", max(1, few // 8), lambda row: clock_jumps(alone, row)),
        ("journal cut short", few, lambda row: journal_cut(alone, row, draw)),
        ("a bit of the journal flipped", few, lambda row: journal_spoilt(alone, row, draw)),
    ]
    if server is None:
        return [*found, ("database stopped (left out: no PostgreSQL here)", 0, lambda row: None)]
    stored = Stored(root / "stored", server)
    return [*found, ("database stopped", max(1, few // 2), lambda row: database_stopped(stored, row, draw))]


def torture(root: Path, kills: int, seed: int, server: Any, only: str) -> list[Row]:
    """Provoke every fault whose name holds `only`; `kills` is the least number of processes that are killed in all."""
    rows = []
    for fault, times, provoke in plan(root, kills, random.Random(seed), server):
        if only not in fault:
            continue
        rows.append(row := Row(fault))
        try:
            while row.times < times:
                provoke(row)
        except PermissionError as error:
            row.fault += f" (left out: {error})"
        print(" | ".join(row.cells()), file=sys.stderr, flush=True)
    return rows


@contextmanager
def database() -> Iterator[Any]:
    """Yield a PostgreSQL server of our own in memory; None where there is none, or no driver for it."""
    sys.path.insert(0, str(Path(__file__).parent))
    from cluster import Postgres

    try:
        import psycopg  # noqa: F401 - is it there?

        server = Postgres("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    except (ImportError, FileNotFoundError):
        yield None
        return
    try:
        yield server
    finally:
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill, at least (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose names hold this text")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    os.environ["METAOPT_DISABLE_PLUGINS"] = "tensorboard,mlflow"
    import torch

    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    with (
        database() as server,
        tempfile.TemporaryDirectory(
            prefix="metaopt-torture-", dir=memory if os.access(memory, os.W_OK) else None
        ) as root,
    ):
        rows = torture(Path(root), options.kills, options.seed, server, options.only)
    killed = sum(row.times for row in rows if "killed" in row.fault)
    found = {
        "date": str(datetime.date.today()),
        "killed": killed,
        "seed": options.seed,
        "rows": [dict(zip(HEAD, row.cells(), strict=True)) for row in rows],
    }
    table = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    print(f"{found['date']}, {killed} processes killed, seed {options.seed}\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in table))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.lost or row.doubled or row.orphans or row.otherwise for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
