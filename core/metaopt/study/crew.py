"""Who carries out jobs: this process, or worker processes with one thread each."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from metaopt.study.trial import Bench, Done, Job, TrialResult

Hears = Callable[[int, float, tuple[float, ...]], bool]
"""Hears a job's number, its progress and its scores there, task by task; answers whether to prune it."""

LOST = "lost: "
"""Begins the reason of a job whose worker died: it is no fault of the learner until it happens again."""


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
        number = self.job.number
        done = self.bench.run(self.job, lambda progress, scores: self.report(number, progress, scores), self.stopped)
        self.idle, self.busy = 1, 0
        return [done]

    def close(self) -> None:
        pass


class Workers(Crew):
    """Processes that carry out jobs side by side. One that dies is noticed at once and replaced."""

    def __init__(self, bench: Bench, size: int, report: Hears, stopped: Callable[[], bool]) -> None:
        self.bench, self.report, self.stopped = bench, report, stopped
        # A forked worker starts at once and shares the data in memory; CUDA and other systems cannot fork safely.
        method = "fork" if sys.platform == "linux" and bench.device.type == "cpu" else "spawn"
        self.context: Any = multiprocessing.get_context(method)
        self.stop = self.context.RawValue("b", 0)
        self.jobs: dict[Connection, Job | None] = {}
        self.processes: dict[Connection, Any] = {}
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
        self.jobs[link] = job
        with suppress(ConnectionError):  # it died while it was idle, which `wait` will notice
            link.send(job)

    def wait(self) -> list[Done]:
        self.stop.value = self.stopped()
        finished = []
        for link in multiprocessing.connection.wait([link for link, job in self.jobs.items() if job], timeout=0.2):
            assert isinstance(link, Connection)
            try:
                message = link.recv()
                if isinstance(message, Done):
                    self.jobs[link] = None
                    finished.append(message)
                else:
                    link.send(self.report(*message))
            except (EOFError, ConnectionError):
                finished.append(self._bury(link))
        return finished

    def close(self) -> None:
        for link, process in self.processes.items():
            link.close()  # an idle worker sees the end of its line
            process.join(timeout=5)
            if process.is_alive():
                process.kill()

    def _hire(self) -> None:
        link, far_end = self.context.Pipe()
        inherited = [*self.jobs, link] if self.context.get_start_method() == "fork" else []
        process = self.context.Process(
            target=_work, args=(self.bench, far_end, inherited, self.stop, os.getpid()), daemon=True
        )
        process.start()
        far_end.close()
        self.jobs[link], self.processes[link] = None, process

    def _bury(self, link: Connection) -> Done:
        """Replace a dead worker and return its job as lost."""
        job, process = self.jobs.pop(link), self.processes.pop(link)
        assert job is not None
        link.close()
        process.join()
        self._hire()
        code = process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        reason = f"{LOST}its worker process was {how}"
        return Done(TrialResult(job.number, "failed", job.params["learner"], job.params, job.seed, reason))


def _work(bench: Bench, link: Connection, inherited: list[Connection], stop: Any, parent: int) -> None:
    """Carry out jobs until the line to the parent ends."""
    for parents_end in inherited:
        parents_end.close()  # as long as anybody holds it, the line does not end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal; the parent decides
    torch.set_num_threads(1)

    def stopped() -> bool:
        return bool(stop.value) or os.getppid() != parent

    try:
        while True:
            job: Job = link.recv()

            def report(progress: float, scores: tuple[float, ...], number: int = job.number) -> bool:
                link.send((number, progress, scores))
                return bool(link.recv())

            link.send(bench.run(job, report, stopped))
    except (EOFError, ConnectionError):
        pass  # the parent went home, or died
