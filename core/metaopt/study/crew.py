"""Who carries out jobs: this process, or worker processes with one thread each, or a process of its own for each job.

A job in a process of its own may crash, run out of memory, hang or fork: it has failed, and nothing else is harmed.
"""

import faulthandler
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from metaopt.cuda import take_turn
from metaopt.errors import UserError
from metaopt.graph import record
from metaopt.process import on_one_core
from metaopt.study.trial import INTERRUPTED, Bench, Done, Job, TrialResult
from metaopt.supervise import end_with

Hears = Callable[[int, float, tuple[float, ...]], bool]
"""Hears a job's number, its progress and its scores there, task by task; answers whether to prune it."""

LOST = "lost: "
"""Begins the reason of a job whose worker died: it is no fault of the learner until it happens again."""
GRACE = 10.0
"""Seconds that an interrupted job in another process has to notice, before that is ended."""
CHECK = 60.0
"""Seconds that a bench is given to be checked in a process of its own."""
NO_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "Unable to allocate")
"""What failed allocations say: of Python, of torch, of the system, of C++, of numpy."""
LIBRARIES = (
    f"{re.escape(sysconfig.get_path('stdlib'))}/(?!site-packages)|{re.escape(str(Path(torch.__file__).parent))}/"
)
"""Begins the files of Python itself and of torch, in which a learner's fault is not to be looked for."""
FORKED = "it forked and left a copy of its process running; let it start programs by subprocess, or join what it forks"


class Crew(Protocol):
    """Takes jobs while it has idle members, and gives them back done."""

    idle: int
    busy: int

    def start(self, job: Job) -> None:
        """Give a job to an idle member."""
        ...

    def wait(self) -> list[Done]:
        """Return the jobs that are done, after a short wait at most where others are still running."""
        ...

    def close(self) -> None:
        """Send everybody home."""
        ...


class Alone(Crew):
    """This process, one job after another."""

    def __init__(self, bench: Bench, report: Hears, stopped: Callable[[], bool]) -> None:
        self.bench, self.report, self.stopped = bench, report, stopped
        self.idle, self.busy = 1, 0

    def start(self, job: Job) -> None:
        self.job = job
        self.idle, self.busy = 0, 1

    def wait(self) -> list[Done]:
        number, fault = self.job.number, list[Exception]()

        def report(progress: float, scores: tuple[float, ...]) -> bool:
            try:
                return self.report(number, progress, scores)
            except Exception as error:  # the storage's fault, which must not be taken for the trial's
                fault.append(error)
                return True

        done = self.bench.run(self.job, report, self.stopped)
        if fault:
            raise fault[0]
        self.idle, self.busy = 1, 0
        return [done]

    def close(self) -> None:
        pass


class Workers(Crew):
    """Processes that carry out jobs side by side. One that dies is noticed at once and replaced.

    Where the study says `isolation: process`, each job has a process of its own, within the study's limits.
    """

    def __init__(self, bench: Bench, size: int, report: Hears, stopped: Callable[[], bool]) -> None:
        self.bench, self.report, self.stopped = bench, report, stopped
        self.isolated = bench.study.isolation == "process"
        self.context = _context(bench)
        if self.isolated:  # what this takes seconds to import is imported once, and not in each process
            record(lambda x: (x + x,), [torch.zeros(1)])
        self.stop = self.context.RawValue("b", 0)
        self.patience = math.inf
        """When interrupted jobs are ended, on the monotonic clock."""
        self.jobs: dict[Connection, Job | None] = {}
        self.began: dict[Connection, float] = {}
        self.processes: dict[Connection, Any] = {}
        self.turns: dict[Connection, int] = {}
        """Each worker's number, which another has when it is gone."""
        self.traces = tempfile.TemporaryDirectory(prefix="metaopt-")
        """Where a process writes what it was doing when it crashed or was ended, in a file named by its number."""
        for _ in range(size):
            self._hire()

    @property
    def busy(self) -> int:  # type: ignore[override]
        return sum(job is not None for job in self.jobs.values())

    @property
    def idle(self) -> int:  # type: ignore[override]
        return len(self.jobs) - self.busy

    def start(self, job: Job) -> None:
        link = next(link for link, current in self.jobs.items() if current is None)
        self.jobs[link], self.began[link] = job, time.monotonic()
        with suppress(ConnectionError):  # it died while it was idle, which `wait` will notice
            link.send(job)

    def wait(self) -> list[Done]:
        if self.stopped() and not self.stop.value:
            self.stop.value, self.patience = True, time.monotonic() + GRACE
        finished = []
        for link in multiprocessing.connection.wait([link for link, job in self.jobs.items() if job], timeout=0.2):
            assert isinstance(link, Connection)
            try:
                message = link.recv()
                if isinstance(message, OSError):  # of its disk, which is ours
                    raise message
                if not isinstance(message, Done):
                    link.send(self.report(*message))
                    continue
                finished.append(message)
                self.jobs[link] = None
                if self.isolated:
                    self._dismiss(link)
            except (EOFError, ConnectionError):
                finished.append(self._bury(link))
        finished += [self._bury(link, reason) for link, reason in list(self._overdue())]
        return finished

    def close(self) -> None:
        for link, process in self.processes.items():
            link.close()  # an idle worker sees the end of its line
            process.join(timeout=0 if self.jobs[link] else 5)  # busy only where the study itself failed
            if process.is_alive() or self.isolated:
                _end(process)
        self.traces.cleanup()

    def _hire(self) -> None:
        link, far_end = self.context.Pipe()
        inherited = [*self.jobs, link] if self.context.get_start_method() == "fork" else []
        self.turns[link] = min(set(range(len(self.turns) + 1)) - set(self.turns.values()))
        process = self.context.Process(
            target=_work,
            args=(self.bench, far_end, inherited, self.stop, os.getpid(), Path(self.traces.name), self.turns[link]),
            daemon=True,
        )
        process.start()
        far_end.close()
        self.jobs[link], self.processes[link] = None, process

    def _dismiss(self, link: Connection) -> Any:
        """Part from a worker, and from all that it started, and hire another; return its process."""
        process = self.processes.pop(link)
        del self.jobs[link], self.turns[link]
        link.close()
        if self.isolated or process.is_alive():
            _end(process)
        process.join()
        self._hire()
        return process

    def _overdue(self) -> Iterator[tuple[Connection, str | None]]:
        """Yield the lines of jobs that must end here, and why; None for those whose process has ended by itself."""
        now = time.monotonic()
        for link, job in self.jobs.items():
            if job is None or link.poll():
                continue
            if not self.processes[link].is_alive():  # and a copy of it holds the line open
                yield link, None
            elif now > self.patience:
                yield link, INTERRUPTED
            elif now - self.began[link] > (limit := self._time(job)):
                with suppress(OSError):
                    os.kill(self.processes[link].pid, signal.SIGUSR1)  # asks where it is
                    time.sleep(0.1)
                yield link, f"it took longer than limits.time, {limit:g} s, and was ended{self._place(link)}"

    def _time(self, job: Job) -> float:
        """Return the seconds that a job may take."""
        study = self.bench.study
        limit = study.limits.time or math.inf
        longer = max(1.0, job.n_tasks / study.evaluation.tasks)
        if job.purpose == "finalists":
            longer *= study.evaluation.longer
        if job.final:
            sizes = ((job.budget.tasks, study.budget.tasks), (job.budget.cpu_seconds, study.budget.cpu_seconds))
            longer *= next((max(1.0, final / usual) for final, usual in sizes if final and usual), math.inf)
        return limit * longer

    def _bury(self, link: Connection, reason: str | None = None) -> Done:
        """Replace a worker that died, or that must, and return its job as failed."""
        job, seconds = self.jobs[link], time.monotonic() - self.began[link]
        assert job is not None
        if reason is None:
            self.processes[link].join(timeout=1)  # its line ends a moment before it does
        place = self._place(link)
        process = self._dismiss(link)
        reason = reason or self._cause(process.exitcode) + place
        return Done(
            TrialResult(job.number, "failed", job.params["learner"], job.params, job.seed, reason, seconds=seconds)
        )

    def _place(self, link: Connection) -> str:
        """Say where a process stood when it crashed or was asked, by the innermost frame that is a plugin's or ours."""
        try:
            trace = (Path(self.traces.name) / str(self.processes[link].pid)).read_text(errors="replace")
        except OSError:
            return ""
        for file, line in re.findall(r'File "(.+)", line (\d+) in', trace):  # innermost first
            if not re.match(LIBRARIES, file):
                return f" at {Path(file).name}:{line}"
        return ""

    def _cause(self, code: int) -> str:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if self.isolated and -code not in (signal.SIGKILL, signal.SIGTERM):  # these come from outside
            return f"its process was {how}"
        return f"{LOST}its worker process was {how}"


def check(bench: Bench) -> None:
    """Check a bench, in a process of its own where the study says so. Raises UserError as `bench.check` does."""
    if bench.study.isolation == "none":
        bench.check()
        return
    context = _context(bench)
    link, far_end = context.Pipe()
    process = context.Process(target=_check, args=(bench, far_end), daemon=True)
    process.start()
    far_end.close()
    try:
        said = link.recv() if link.poll(CHECK) else None
    except EOFError:  # a learner crashed it, as it will crash its trials, which will say so
        said = None
    _end(process)
    process.join()
    if said:
        raise UserError(said)


def _check(bench: Bench, link: Connection) -> None:
    _alone()
    try:
        bench.check()
    except UserError as error:
        link.send(str(error))
    else:
        link.send(None)


def _context(bench: Bench) -> Any:
    # A forked worker starts at once and shares the data in memory; CUDA and other systems cannot fork safely.
    method = "fork" if sys.platform == "linux" and bench.device.type == "cpu" else "spawn"
    return multiprocessing.get_context(method)


def _end(process: Any) -> None:
    """End a process and all of its session."""
    with suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _work(
    bench: Bench, link: Connection, inherited: list[Connection], stop: Any, parent: int, traces: Path, turn: int
) -> None:
    """Carry out jobs until the line to the parent ends."""
    for parents_end in inherited:
        parents_end.close()  # as long as anybody holds it, the line does not end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal; the parent decides
    end_with(parent)
    on_one_core()
    take_turn(bench.device, turn)
    isolated, me, forked = bench.study.isolation == "process", os.getpid(), multiprocessing.RawValue("b", 0)
    if isolated:
        _alone()
        trace = (traces / str(me)).open("w")
        faulthandler.enable(trace, all_threads=False)
        if os.name == "posix":
            faulthandler.register(signal.SIGUSR1, trace, all_threads=False)
        os.register_at_fork(after_in_child=link.close)  # what a learner forks must not hold the line

    def stopped() -> bool:
        if os.getpid() != me:  # a copy that a learner forked, and that came back from it
            forked.value = True
            os._exit(1)
        return bool(stop.value) or os.getppid() != parent

    try:
        while True:
            job: Job = link.recv()

            def report(progress: float, scores: tuple[float, ...], number: int = job.number) -> bool:
                link.send((number, progress, scores))
                return bool(link.recv())

            with _limited(bench.study.limits.memory):
                try:
                    done = bench.run(job, report, stopped)
                except OSError as error:
                    link.send(error)
                    continue
            stopped()
            if isolated:
                done = _judged(done, bench, bool(forked.value))
            link.send(done)
    except (EOFError, ConnectionError):
        pass  # the parent went home, or died


def _alone() -> None:
    """Make this process the head of a session, which can be ended as one, and which ends with the study."""
    if os.name == "posix":
        os.setsid()
    end_with(os.getppid())


@contextmanager
def _limited(memory: int | None) -> Iterator[None]:
    """Let so many bytes more be allocated; beyond them allocations fail."""
    if memory is None:
        yield
        return
    import resource

    status = Path("/proc/self/status").read_text(encoding="ascii")
    [now] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")]  # in KiB
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * now + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _judged(done: Done, bench: Bench, forked: bool) -> Done:
    """Return a job as failed where it forked, and with the limit as its reason where that stopped it."""
    reason, memory = done.result.reason, bench.study.limits.memory
    if reason != INTERRUPTED and (forked or _copies()):
        return Done(replace(done.result, state="failed", reason=FORKED))
    if memory and reason and any(sign in reason for sign in NO_MEMORY):
        reason = f"it needs more than limits.memory, {memory / 1e6:g} MB ({reason})"
        return Done(replace(done.result, reason=reason))
    return done


def _copies() -> bool:
    """Tell whether copies of this process run in its session: what it forked, and neither ended nor joined."""
    if sys.platform != "linux":
        return False
    me, own = str(os.getpid()), Path("/proc/self/cmdline").read_bytes()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            running = folder.name != me and session == me and state not in "ZX"
            if running and (folder / "cmdline").read_bytes() == own:
                return True
    return False
