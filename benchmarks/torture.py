"""Kill studies at random moments, fill their disk, freeze their workers; count what was lost and what was doubled.

`python benchmarks/torture.py --kills 200` prints a table. Every fault is real: signals, a small tmpfs that is full, a
worker that is stopped. A study runs in a forked copy of this process, so that torch is imported once.
"""

import argparse
import datetime
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
from contextlib import contextmanager, suppress
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
    """Kill a study that writes a checkpoint at each outer step, as if each took half a minute."""
    from metaopt import checkpoint

    every, cost = checkpoint.EVERY, checkpoint.COST
    checkpoint.EVERY, checkpoint.COST = -1.0, math.inf
    try:
        study_killed(victims, row, draw)
    finally:
        checkpoint.EVERY, checkpoint.COST = every, cost


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
        said = victims.said(folder)
        filler.unlink()
        if code not in {0, 2} or (code == 2 and len(said.splitlines()) != 1):
            row.otherwise += 1
            print(f"{row.fault}: exit code {code}: {said}", file=sys.stderr)
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


def torture(root: Path, kills: int, seed: int) -> list[Row]:
    """Provoke every fault; `kills` is the least number of processes that are killed in all."""
    draw = random.Random(seed)
    (root / "alone").mkdir()
    (root / "two").mkdir()
    (root / "long").mkdir()
    alone, two = Victims(root / "alone"), Victims(root / "two", workers=2)
    long = Victims(root / "long", STUDY | {"name": "long", "budget": {"tasks": 80}})
    n = -(-kills // 5)  # of each kind of kill
    plan: list[tuple[str, int, Callable[[Row], None]]] = [
        ("study killed, one process", n, lambda row: study_killed(alone, row, draw)),
        ("study killed with two workers", n, lambda row: study_killed(two, row, draw)),
        ("study killed twice in a row", n, lambda row: study_killed(alone, row, draw, 2)),
        ("study killed in long trials", n // 2, lambda row: long_killed(long, row, draw)),
        ("worker killed", 2 * n, lambda row: worker_killed(two, row, draw)),
        ("worker frozen and woken", n // 2, lambda row: worker_frozen(two, row, draw)),
        ("Ctrl-C or SIGTERM", n // 2, lambda row: interrupted(two, row, draw)),
        ("disk full", n // 2, lambda row: disk_filled(alone, row, draw)),
        ("a bit of the journal flipped", n // 2, lambda row: journal_spoilt(alone, row, draw)),
    ]
    rows = []
    for fault, times, provoke in plan:
        rows.append(row := Row(fault))
        try:
            while row.times < times:
                provoke(row)
        except PermissionError as error:
            row.fault += f" (left out: {error})"
        print(" | ".join(row.cells()), file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill, at least (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["METAOPT_DISABLE_PLUGINS"] = "tensorboard,mlflow"
    import torch

    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="metaopt-torture-", dir=memory if os.access(memory, os.W_OK) else None
    ) as root:
        rows = torture(Path(root), options.kills, options.seed)
    killed = sum(row.times for row in rows if "killed" in row.fault)
    table = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    print(f"{datetime.date.today()}, {killed} processes killed, seed {options.seed}\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in table))
    return 1 if any(row.lost or row.doubled or row.orphans or row.otherwise for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
