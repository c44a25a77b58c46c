"""Jobs are carried out by this process or by workers; a worker that dies is noticed and replaced."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import crew as crew_module
from metaopt.study.crew import LOST, Alone, Crew, Workers
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, Done, Job
from metaopt.train import Budget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")

# A learner that has nothing to learn, and may end its own process or take its time.
LAB = """
import ctypes, os, signal, sys, time
from dataclasses import dataclass
import torch
from torch import nn
from metaopt import tune
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner

class Mortal(Learner):
    name = "mortal"
    kinds = ("regression",)
    uses_encoder = False

    @dataclass(frozen=True)
    class Config:
        fate: str = tune.choice(
            "lives", "is_killed", "ends", "dallies", "faults", "aborts", "hangs", "sleeps", "eats", "eats_bytes",
            "forks", "forks_a_sleeper", "forks_and_faults", "forks_and_joins",
        )

    def __init__(self, spec, encoder, config):
        super().__init__(spec, encoder, config)
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, support_x, support_y, query_x):
        if self.config.fate == "is_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.fate == "ends":
            os._exit(9)
        if self.config.fate == "dallies":
            time.sleep(0.05)
        if self.config.fate == "faults":
            ctypes.string_at(0)
        if self.config.fate == "aborts":
            os.abort()
        while self.config.fate == "hangs":
            pass
        if self.config.fate == "sleeps":
            time.sleep(1000)
        if self.config.fate == "eats":
            self.eaten = [torch.ones(1_000_000) for _ in range(1000)]  # 4 GB
        if self.config.fate == "eats_bytes":
            self.eaten = [bytearray(1_000_000) for _ in range(4000)]
        if self.config.fate.startswith("forks"):
            self.fork()
        return self.bias.expand(len(query_x), 1)

    def fork(self):
        fate = self.config.fate
        if hasattr(self, "forked"):
            return
        self.forked = os.fork()
        if self.forked == 0:
            if fate in ("forks_a_sleeper", "forks_and_faults"):
                time.sleep(1000)
            if fate == "forks_and_joins":
                os._exit(0)
        elif fate == "forks_and_faults":
            ctypes.string_at(0)
        elif fate == "forks_and_joins":
            os.waitpid(self.forked, 0)

@hookimpl
def register_learners():
    return [Mortal]
"""
STUDY = {
    "name": "s",
    "tasks": {"sampler": "sinusoid", "n_shot": 2, "n_query": 2},
    "learners": ["mortal"],
    "executor": "loop",
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    torch.set_num_threads(1)
    (tmp_path / "acme_mortal.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    lab = metadata.EntryPoint("mortal", "acme_mortal", "metaopt")
    registry = plugins.load([*metadata.entry_points(group="metaopt"), lab])
    yield Bench(resolve(STUDY, "a.yaml", registry), registry, torch.device("cpu"))
    del sys.modules["acme_mortal"]


def never() -> bool:
    return False


def keep(number: int, progress: float, value: float) -> bool:
    return False


def job_of(bench: Bench, number: int, fate: str = "lives", reports: bool = False) -> Job:
    params = bench.study.space.default("mortal") | {"mortal.fate": fate}
    return Job(number, params, number, Budget(tasks=40), "validation", "search", 20, reports)


def carry_out(crew: Crew, jobs: list[Job]) -> dict[int, Done]:
    waiting, done = list(jobs), dict[int, Done]()
    while waiting or crew.busy:
        while waiting and crew.idle:
            crew.start(waiting.pop(0))
        done |= {one.result.number: one for one in crew.wait()}
    return done


def timeless(done: Done) -> tuple[dict[str, Any], tuple[float, ...]]:
    return {k: v for k, v in asdict(done.result).items() if "seconds" not in k}, done.per_task


@pytest.fixture
def workers(bench: Bench) -> Iterator[Callable[..., Workers]]:
    hired: list[Workers] = []

    def hire(size: int = 2, report: Any = keep, stopped: Callable[[], bool] = never) -> Workers:
        hired.append(Workers(bench, size, report, stopped))
        return hired[-1]

    yield hire
    for crew in hired:
        crew.close()


def pids(crew: Workers) -> list[int]:
    return [process.pid for process in crew.processes.values()]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pids: list[int], within: float) -> bool:
    """Tell whether the processes end in so many seconds."""
    deadline = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_workers_give_what_one_process_gives(bench: Bench, workers: Callable[..., Workers]) -> None:
    jobs = [job_of(bench, number) for number in range(5)]
    alone, together = carry_out(Alone(bench, keep, never), jobs), carry_out(workers(2), jobs)
    assert alone.keys() == together.keys() == set(range(5))
    for number in range(5):
        assert alone[number].result.state == "complete"
        assert timeless(alone[number]) == timeless(together[number])


@pytest.mark.parametrize(
    ("tasks", "learner"),
    [
        ({"n_shot": 1, "n_query": 2, "within": 0.5}, "protonet"),
        ({"n_shot": [1, 3], "n_query": 2}, "protonet"),
        ({"n_shot": [1, 3], "n_query": 2, "unequal": True, "within": 1}, "protonet"),
        ({"n_shot": 4, "stream": True, "within": 0.5}, "snail"),
    ],
    ids=["within groups", "a range of shots", "unequal shots", "stream"],
)
def test_one_seed_gives_the_same_tasks_of_classes_on_any_number_of_workers(
    tasks: dict[str, Any], learner: str, tmp_path: Path
) -> None:
    y = np.arange(108) % 18
    x = np.random.default_rng(0).normal(size=(108, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", X=x, y=y, group=y // 6)
    given = {"sampler": "arrays", "file": str(tmp_path / "a.npz"), "split_by": "group", "split": "1/1/1", "n_way": 3}
    raw = {"name": "s", "tasks": {**given, **tasks}, "learners": learner, "encoder": {"mlp": {"width": 8, "depth": 1}}}
    registry = plugins.load()
    classes = Bench(resolve(raw, "s.yaml", registry), registry, torch.device("cpu"))
    classes.check()
    params = classes.study.space.default(learner, "mlp")
    jobs = [Job(n, params, n, Budget(tasks=12), "validation", "search", 20, False) for n in range(4)]
    alone = carry_out(Alone(classes, keep, never), jobs)
    assert len({done.per_task for done in alone.values()}) > 1, "each is trained from its own seed"
    for size in (1, 2):
        crew = Workers(classes, size, keep, never)
        try:
            together = carry_out(crew, jobs)
        finally:
            crew.close()
        assert {n: timeless(done) for n, done in together.items()} == {n: timeless(done) for n, done in alone.items()}


def test_a_job_is_done_in_another_process_and_two_at_once(bench: Bench, workers: Callable[..., Workers]) -> None:
    crew = workers(2)
    assert (crew.idle, crew.busy) == (2, 0)
    assert os.getpid() not in pids(crew)
    assert len(set(pids(crew))) == 2
    for number in range(2):
        crew.start(job_of(bench, number, "dallies"))
    assert (crew.idle, crew.busy) == (0, 2)


@pytest.mark.parametrize(
    ("fate", "how"), [("is_killed", "its worker process was killed by SIGKILL"), ("ends", "was ended with code 9")]
)
def test_a_worker_that_dies_gives_its_job_back_as_lost_and_is_replaced(
    bench: Bench, workers: Callable[..., Workers], fate: str, how: str
) -> None:
    crew = workers(2)
    done = carry_out(crew, [job_of(bench, 0, fate), job_of(bench, 1), job_of(bench, 2)])
    assert [done[number].result.state for number in range(3)] == ["failed", "complete", "complete"]
    assert done[0].result.reason
    assert done[0].result.reason.startswith(LOST)
    assert done[0].result.reason.endswith(how)
    assert (crew.idle, crew.busy) == (2, 0)
    assert all(map(alive, pids(crew)))
    assert sorted(crew.turns.values()) == [0, 1], "whoever replaces it has its number"
    assert carry_out(crew, [job_of(bench, 3), job_of(bench, 4)]).keys() == {3, 4}


def test_a_worker_that_dies_while_it_is_idle_is_replaced_when_it_is_missed(
    bench: Bench, workers: Callable[..., Workers]
) -> None:
    crew = workers(1)
    os.kill(pids(crew)[0], signal.SIGKILL)
    assert gone(pids(crew), within=5)
    done = carry_out(crew, [job_of(bench, 0)])
    assert done[0].result.reason == f"{LOST}its worker process was killed by SIGKILL"
    assert carry_out(crew, [job_of(bench, 0)])[0].result.state == "complete"


@pytest.mark.parametrize("kind", ["alone", "workers"])
def test_rungs_are_heard_with_the_jobs_number_and_their_answer_prunes(
    bench: Bench, workers: Callable[..., Workers], kind: str
) -> None:
    heard = []

    def report(number: int, progress: float, value: float) -> bool:
        heard.append((number, progress))
        return number == 1

    crew: Crew = Alone(bench, report, never) if kind == "alone" else workers(1, report)
    done = carry_out(crew, [job_of(bench, number, reports=True) for number in range(2)])
    assert heard == [(0, 0.25), (0, 0.5), (1, 0.25)]
    assert [done[number].result.state for number in range(2)] == ["complete", "pruned"]


def test_workers_are_interrupted(bench: Bench, workers: Callable[..., Workers]) -> None:
    stop = False
    crew = workers(2, stopped=lambda: stop)
    for number in range(2):
        crew.start(job_of(bench, number, "dallies"))
    assert crew.wait() == []
    stop = True
    began, done = time.monotonic(), []
    while crew.busy:
        done += crew.wait()
    assert [one.result.reason for one in done] == ["interrupted"] * 2
    assert time.monotonic() - began < 2 * 40 * 0.05, "before they would have ended by themselves"


def test_idle_workers_go_home_at_once(bench: Bench, workers: Callable[..., Workers]) -> None:
    crew = workers(3)
    carry_out(crew, [job_of(bench, number) for number in range(3)])
    carry_out(crew, [job_of(bench, 3, "is_killed")])  # the one hired for it inherited the others' lines
    began = time.monotonic()
    crew.close()
    assert gone(pids(crew), within=0)
    assert time.monotonic() - began < 3, "a worker that does not hear its line end is waited for 5 seconds"


PARENT = """
import os, sys, time
import torch
from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import crew as crew_module
from metaopt.study.crew import Workers
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, Job
from metaopt.train import Budget

registry = plugins.load()
study = {"tasks": {"sampler": "sinusoid", "n_shot": 2, "n_query": 2}, "learners": "maml", "name": "s"}
bench = Bench(resolve(study, "s", registry), registry, torch.device("cpu"))
crew = Workers(bench, 3, lambda number, progress, value: False, lambda: False)
crew.start(Job(0, bench.study.space.default("maml"), 0, Budget(tasks=10**9), "validation", "search", 5))
print(*(process.pid for process in crew.processes.values()), flush=True)
time.sleep(60)
"""


def test_workers_end_when_their_study_is_killed_busy_or_idle() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        hired = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(hired) == 3
        assert all(map(alive, hired))
        parent.kill()
    assert gone(hired, within=20)


# A process of its own for each job


@pytest.fixture
def isolated(bench: Bench) -> Iterator[Callable[..., Workers]]:
    """Return what hires workers that carry out each job in a process of its own."""
    hired: list[Workers] = []

    def hire(size: int = 1, report: Any = keep, stopped: Callable[[], bool] = never, **limits: Any) -> Workers:
        study = resolve(STUDY | {"isolation": "process", "limits": limits}, "a.yaml", bench.registry)
        hired.append(Workers(Bench(study, bench.registry, bench.device), size, report, stopped))
        return hired[-1]

    yield hire
    for crew in hired:
        crew.close()
        assert gone(pids(crew), within=5)


def children() -> set[int]:
    """Return the processes of every session but this one's that this process or a worker of it has begun."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition(") ")
            if rest.split()[0] not in "ZX" and stat.with_name("cmdline").read_bytes() == OWN:
                found.add(int(name.split()[0]))
    return found - {os.getpid()}


OWN = Path("/proc/self/cmdline").read_bytes() if sys.platform == "linux" else b""


def test_isolated_jobs_give_what_one_process_gives_each_in_a_process_of_its_own(
    bench: Bench, isolated: Callable[..., Workers]
) -> None:
    jobs = [job_of(bench, number) for number in range(4)]
    crew, seen = isolated(2, time="60s", memory="1GB"), set[int]()
    seen |= set(pids(crew))
    together = dict[int, Done]()
    for job in jobs:
        together |= carry_out(crew, [job])
        seen |= set(pids(crew))
    assert len(seen) == 2 + len(jobs)
    for number, done in carry_out(Alone(bench, keep, never), jobs).items():
        assert timeless(done) == timeless(together[number])


DEATHS = {
    "faults": (r"its process was killed by SIGSEGV at acme_mortal\.py:\d+", {}),
    "aborts": (r"its process was killed by SIGABRT at acme_mortal\.py:\d+", {}),
    "ends": (r"its process was ended with code 9", {}),
    "hangs": (r"it took longer than limits\.time, 1 s, and was ended at acme_mortal\.py:\d+", {"time": "1s"}),
    "sleeps": (r"it took longer than limits\.time, 1 s, and was ended at acme_mortal\.py:\d+", {"time": "1s"}),
    "eats": (
        r"it needs more than limits\.memory, 300 MB \(RuntimeError at acme_mortal\.py:\d+: .*can't allocate memory.*\)",
        {"memory": "300MB"},
    ),
    "eats_bytes": (
        r"it needs more than limits\.memory, 300 MB \(MemoryError at acme_mortal\.py:\d+: \)",
        {"memory": "300MB"},
    ),
    "forks": (r"it forked and left a copy of its process running; let it start programs by subprocess, or join .*", {}),
    "forks_a_sleeper": (r"it forked and left a copy of its process running; .*", {}),
    "forks_and_faults": (r"its process was killed by SIGSEGV at acme_mortal\.py:\d+", {}),
}


@pytest.mark.parametrize(("fate", "limits", "reason"), [(fate, limits, why) for fate, (why, limits) in DEATHS.items()])
def test_a_learner_that_harms_its_process_is_a_failed_trial_with_the_reason(
    bench: Bench, isolated: Callable[..., Workers], fate: str, limits: dict[str, str], reason: str
) -> None:
    before = children()
    crew = isolated(2, **limits)
    done = carry_out(crew, [job_of(bench, 0, fate), job_of(bench, 1), job_of(bench, 2)])
    assert [done[number].result.state for number in range(3)] == ["failed", "complete", "complete"]
    assert re.fullmatch(reason, str(done[0].result.reason))
    assert done[0].per_task == ()
    assert (crew.idle, crew.busy) == (2, 0)
    assert gone(list(children() - before - set(pids(crew))), within=5), "nothing of it is left"


def test_a_learner_that_joins_what_it_forks_does_no_harm(bench: Bench, isolated: Callable[..., Workers]) -> None:
    done = carry_out(isolated(1), [job_of(bench, 0, "forks_and_joins"), job_of(bench, 1)])
    assert [done[number].result.reason for number in range(2)] == [None, None]


def test_an_isolated_worker_that_somebody_kills_is_lost_and_may_be_tried_again(
    bench: Bench, isolated: Callable[..., Workers]
) -> None:
    done = carry_out(isolated(1), [job_of(bench, 0, "is_killed")])
    assert done[0].result.reason == f"{LOST}its worker process was killed by SIGKILL"


def test_a_job_scored_on_more_tasks_has_more_time(bench: Bench, isolated: Callable[..., Workers]) -> None:
    crew, job = isolated(1, time="10s"), job_of(bench, 0)
    tasks = crew.bench.study.evaluation.tasks
    assert crew._time(replace(job, n_tasks=tasks)) == crew._time(replace(job, n_tasks=1)) == 10.0
    assert crew._time(replace(job, n_tasks=5 * tasks)) == 50.0


def test_a_finalist_that_is_meta_trained_longer_has_more_time(bench: Bench, isolated: Callable[..., Workers]) -> None:
    crew, job = isolated(1, time="10s"), job_of(bench, 0)
    longer = replace(crew.bench.study, evaluation=replace(crew.bench.study.evaluation, longer=4))
    crew.bench.study = longer
    assert crew._time(replace(job, n_tasks=1)) == 10.0
    assert crew._time(replace(job, n_tasks=1, purpose="finalists")) == 40.0


def test_a_hanging_job_is_ended_when_the_study_is_interrupted(
    bench: Bench, isolated: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "GRACE", 0.5)
    stop = False
    crew = isolated(2, stopped=lambda: stop)
    for number, fate in enumerate(("hangs", "dallies")):
        crew.start(job_of(bench, number, fate))
    crew.wait()
    stop, done = True, []
    while crew.busy:
        done += crew.wait()
    assert [one.result.reason for one in done] == ["interrupted"] * 2


HEIR = PARENT.replace('"name": "s"}', '"name": "s", "isolation": "process"}').replace(
    "Workers(bench, 3", "Workers(bench, 2"
)


def test_isolated_workers_end_when_their_study_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HEIR], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        hired = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(hired) == 2
        assert all(map(alive, hired))
        parent.kill()
    assert gone(hired, within=5)


@pytest.mark.parametrize("fate", ["lives", "faults"])
def test_a_bench_is_checked_in_a_process_of_its_own(bench: Bench, fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = resolve(STUDY | {"isolation": "process"}, "a.yaml", bench.registry)
    fragile, me = Bench(study, bench.registry, bench.device), os.getpid()

    def check(self: Bench) -> None:
        assert os.getpid() != me
        if fate == "faults":
            os._exit(139)
        raise UserError("too few classes")

    monkeypatch.setattr(Bench, "check", check)
    if fate == "faults":
        crew_module.check(fragile)  # its trials will say why
    else:
        with pytest.raises(UserError, match="too few classes"):
            crew_module.check(fragile)
