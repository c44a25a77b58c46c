"""Kill studies at random moments, fill their disk, freeze their workers; count what was lost and what was doubled.

`python benchmarks/torture.py --kills 200` prints a table. Every fault is real: signals, a small tmpfs that is full, a
worker that is stopped. A study runs in a forked copy of this process, so that torch is imported once.
"""

import argparse
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
        if moment:
            sys.setprofile(_watch(moment, act, fuse, os.getpid()))
        from metaopt.cli import main

        code = main([str(argument) for argument in arguments])
    except BaseException:
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
        if "metaopt" not in frame.f_code.co_filename or (os.getpid() != study) is not moment.worker:
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
        from metaopt.study import model  # noqa: F401

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

    def lost(self, before: dict[int, list[str]], folder: Path) -> int:
        """Return how many trials that were finished before have no result, or another one, at the end.

        Trials that were never run at the end count too.
        """
        after = records(folder)
        gone = sum(after.get(trial, [])[:1] != found[:1] for trial, found in before.items())
        return gone + max(0, self.n_trials - len(after))

    def doubled(self, folder: Path) -> int:
        """Return how many trials were counted twice: results written again, or trials more than were asked for."""
        after = records(folder)
        return sum(len(found) - 1 for found in after.values()) + max(0, len(after) - self.n_trials)

    def whole(self, folder: Path) -> list[str]:
        """Return what is wrong with a finished folder; nothing where it is as if nothing had happened."""
        wrong = [f"left over: {path.name}" for path in folder.rglob(".*") if path.name != ".lock"]
        board = self.leaderboard(folder)
        if self.workers == 1 and board != self.board:
            wrong.append("another leaderboard")
        if board["status"] != "finished" or sum(board["trials"].values()) != self.n_trials:
            wrong.append(f"{board['status']}: {board['trials']}")
        if not (folder / "best" / "weights.safetensors").exists():
            wrong.append("no best model")
        return wrong


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
