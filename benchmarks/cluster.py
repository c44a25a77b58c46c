"""Many workers on one storage: exactly as many trials as were asked for, whoever is killed; and how fast it goes.

`python benchmarks/cluster.py` starts a PostgreSQL server of its own on loopback (Debian: `apt-get install postgresql`)
and prints what docs/cluster.md shows. Trials do next to nothing, so that what is measured is the storage and the
workers' way with it. A worker is a forked copy of this process, so that torch is imported once; it does what
`metaopt worker` does.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

IDLE = '''"""A learner that learns nothing, in the time it is told to."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from metaopt import hookimpl, tune
from metaopt.learner import Learner


class Idle(Learner):
    """Guess."""

    name = "idle"

    @dataclass(frozen=True)
    class Config:
        a: float = tune.real(0.0, 1.0, default=0.5)
        b: float = tune.real(1e-4, 1.0, log=True, default=0.1)
        seconds: float = tune.real(0.0, 3600.0, default=0.0)

    def __init__(self, spec, encoder, config):
        super().__init__(spec, encoder, config)
        self.answer = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, support_x, support_y, query_x):
        return torch.randn(len(query_x), self.spec.n_way) * 0 + self.answer

    def outer_step(self, batch, executor, update):
        time.sleep(self.config.seconds)
        return torch.tensor(0.0)


@hookimpl
def register_learners():
    return [Idle]


@hookimpl
def trial_finished(result, study, folder):
    if log := os.environ.get("METAOPT_CLUSTER_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{result.number}\\n")
'''
STUDY: dict[str, Any] = {
    "name": "cluster",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"idle": {"a": None, "b": None, "seconds": 0.0}},
    "encoder": {"identity": {}},
    "executor": "loop",
    "prune": False,
    "budget": {"tasks": 4},
    "evaluation": {"tasks": 4, "finalists": 1, "report_tasks": 4},
}


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Postgres:
    """A PostgreSQL server on loopback, in a folder that is gone with it. As root it runs as nobody, as it must."""

    def __init__(self, where: str = "/tmp") -> None:
        found = shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default="")
        if not found:
            raise FileNotFoundError("no PostgreSQL here (Debian: apt-get install postgresql)")
        self.programs = Path(found).resolve().parent
        self.folder = Path(tempfile.mkdtemp(prefix="metaopt-postgres-", dir=where))
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.port = free_port()
        self._run("initdb", "-A", "trust", "-U", "metaopt", "-D", self.folder / "data")
        self.start()

    @property
    def url(self) -> str:
        """The URL of the database that every server has."""
        return f"postgresql+psycopg://metaopt@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
        self._run("pg_ctl", "-D", self.folder / "data", "-o", options, "-l", self.folder / "log", "-w", "start")

    def stop(self, how: str = "fast") -> None:
        """Stop it: `fast` ends every connection, `immediate` is a crash."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", how, "-w", "stop")

    def sql(self, command: str) -> None:
        """Carry out a statement."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(command)

    def empty(self) -> None:
        """Remove every study."""
        self.sql("DO $$ BEGIN IF to_regclass('studies') IS NOT NULL THEN TRUNCATE studies CASCADE; END IF; END $$")

    def cpu_seconds(self) -> float:
        """Return the CPU time of the server and of all its processes, those that ended included."""
        master = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(stat.parent.name) == master:
                    ticks += sum(map(int, fields[11:15]))  # of children that it has waited for, too
                elif int(fields[1]) == master:
                    ticks += sum(map(int, fields[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self.programs / program, *arguments]
        subprocess.run(command, user=self.user, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60)


def prepare(folder: Path) -> None:
    """Install the learner for this process and for its copies, and import what takes seconds."""
    (folder / "metaopt_idle.py").write_text(IDLE)
    info = folder / "metaopt_idle-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: metaopt-idle\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metaopt]\nidle = metaopt_idle\n")
    sys.path.insert(0, str(folder))
    locked(folder, str(folder / "warm.log"), trials=2)


def begin(arguments: list[str], out: Path) -> int:
    """Fork a process that runs the command line, its output in a file, and return its number."""
    parent = os.getpid()
    if number := os.fork():
        return number
    code = 70
    try:
        from metaopt import cli, supervise

        descriptor = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.environ[supervise.SUPERVISED] = str(parent)
        random.seed()
        code = cli.main(arguments)
    except BaseException:  # whatever ends this copy of the process is told, and never goes on as the parent
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


@dataclass(frozen=True)
class Row:
    """What came of one study."""

    storage: str
    workers: int
    trials: int
    """That were asked for."""
    done: int
    """That the storage holds, finished."""
    doubled: int
    """Told more than once, or more than were asked for."""
    failed: int
    begun_again: int
    """Times that a trial was taken over from a worker that died."""
    killed: int
    restarts: int
    seconds: float
    started_again: int
    """Workers that found no database when they began, and were started again, as `metaopt worker` does."""

    @property
    def exact(self) -> bool:
        """Whether the storage holds as many trials as were asked for, none twice."""
        return self.done == self.trials and not self.doubled

    @property
    def per_second(self) -> float:
        return self.done / self.seconds


def run(
    root: Path,
    url: str,
    *,
    workers: int,
    trials: int,
    beat: float,
    seconds: float = 0.0,
    kill_every: float | None = None,
    restart: Iterator[None] | None = None,
    restart_at: tuple[float, ...] = (),
    seed: int = 0,
    by: str | None = None,
) -> Row:
    """Run a study with so many workers to its end; kill one of them every few seconds, and put another in its place.

    `restart` takes the database away and brings it back, when so large a share of the trials is done. With `by`, the
    address of a proxy, workers go through that.
    """
    from metaopt import cli
    from metaopt.study import cluster

    file, out, told = (root / name for name in ("cluster.yaml", f"{workers}.out", f"told-{time.time_ns()}"))
    study = STUDY | {"learners": {"idle": {"a": None, "b": None, "seconds": seconds}}, "trials": trials}
    study["name"] = name = f"cluster-{time.time_ns()}"
    file.write_text(yaml.safe_dump(study))
    os.environ |= {"METAOPT_STORAGE": url, "METAOPT_CLUSTER_LOG": str(told)}
    told.touch()
    assert cli.main(["study", "create", str(file), "--json"]) == 0
    os.environ["METAOPT_STORAGE"] = by or url
    arguments = ["worker", "--study", name, "--quiet", "--beat", str(beat)]
    draw, began, killed, restarts, started_again = random.Random(seed), time.monotonic(), 0, 0, 0
    crowd = [begin(arguments, out) for _ in range(workers)]
    due, left = began + (kill_every or 0), list(restart_at)
    while crowd:
        time.sleep(0.02)
        for number in list(crowd):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                crowd.remove(number)
                if os.waitstatus_to_exitcode(status):  # it was started while the database was away
                    crowd.append(begin(arguments, out))
                    started_again += 1
                    assert started_again < 10 * workers, out.read_text()[-2000:]
        if kill_every and crowd and time.monotonic() > due:
            due = time.monotonic() + draw.uniform(0.5, 1.5) * kill_every
            number = draw.choice(crowd)
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            crowd.remove(number)
            crowd.append(begin(arguments, out))
            killed += 1
        if restart and left and len(told.read_text().split()) >= left[0] * trials:
            left.pop(0)
            next(restart)
            restarts += 1
    took = time.monotonic() - began
    [now] = cluster.status(url, name)["studies"]
    told_of = Counter(told.read_text().split())
    kept = finished(url, name)
    kind = "by a proxy" if by else "PostgreSQL" if "://" in url else "journal file"
    return Row(
        storage=kind,
        workers=workers,
        trials=trials,
        done=sum(state != "RUNNING" for state, _ in kept),
        doubled=sum(times - 1 for times in told_of.values()) + max(0, len(kept) - trials),
        failed=now["failed"],
        begun_again=sum(attempts - 1 for _, attempts in kept),
        killed=killed,
        restarts=restarts,
        seconds=took,
        started_again=started_again,
    )


def finished(url: str, name: str) -> list[tuple[str, int]]:
    """Return the state of every trial in the storage and how many times it was begun."""
    import optuna

    from metaopt.study.stores import open_store

    store = open_store(url, name)
    trials = optuna.load_study(study_name=name, storage=store.storage).trials
    store.close()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    return [(trial.state.name, trial.user_attrs.get("claim", {}).get("attempts", 1)) for trial in trials]


def locked(root: Path, url: str, trials: int = 200) -> float:
    """Return the median seconds for which a trial holds the storage's lock."""
    import torch

    from metaopt import plugins
    from metaopt.study import file, shared, stores
    from metaopt.study.trial import Bench

    registry = plugins.load()
    study = file.resolve(STUDY | {"name": f"locked-{time.time_ns()}", "trials": trials}, "the study", registry)
    bench, store, held = Bench(study, registry, torch.device("cpu")), stores.open_store(url, study.name, new=True), []

    @contextmanager
    def timed() -> Iterator[None]:
        with store.alone():
            began = time.perf_counter()
            yield
            held.append(time.perf_counter() - began)

    ledger = shared.Shared(bench, replace(store, alone=timed), root)
    while job := ledger.claim():
        ledger.tell(bench.run(job))
    store.close()
    return statistics.median(held)


@contextmanager
def server() -> Iterator[Postgres]:
    """Yield a server, gone afterwards."""
    postgres = Postgres()
    try:
        yield postgres
    finally:
        postgres.close()


def taken_away(postgres: Postgres) -> Iterator[None]:
    """Take the database away and bring it back, in turn as one that is stopped and as one that crashes."""
    while True:
        for how in ("fast", "immediate"):
            postgres.stop(how)
            time.sleep(2)
            postgres.start()
            yield


class Proxy:
    """A `metaopt proxy` before a database, a process of its own."""

    def __init__(self, url: str) -> None:
        self.port = free_port()
        self.environment = os.environ | {"METAOPT_STORAGE": url}
        self.start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "metaopt", "proxy", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        said = self.process.stderr.readline()
        assert said.startswith("workers find the storage"), said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def killed(self) -> Iterator[None]:
        """Kill it, and start another in its place, each time."""
        while True:
            self.kill()
            time.sleep(2)
            self.start()
            yield


def shown(rows: list[Row]) -> str:
    """Return the rows as a table."""
    head = ["storage", "workers", "trials", "done", "doubled", "failed", "killed", "begun again", "restarts", "seconds"]
    cells = [
        [
            row.storage,
            *map(str, (row.workers, row.trials, row.done, row.doubled, row.failed, row.killed, row.begun_again)),
            str(row.restarts),
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return table(head, cells)


def table(head: list[str], cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *cells)
    ]
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--part", choices=["faults", "proxy", "large", "speed", "all"], default="all")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64], help="of the part speed")
    options.add_argument("--trials", type=int, default=20, help="a worker, at least 100 in all, of the part speed")
    options.add_argument("--json", type=Path, help="write the figures there")
    chosen = options.parse_args()
    os.environ["METAOPT_DISABLE_PLUGINS"] = "tensorboard,mlflow"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="metaopt-cluster-") as temporary, server() as postgres:
        root = Path(temporary)
        prepare(root)
        locked(root, postgres.url, trials=2)
        os.chdir(root)
        if chosen.part in {"faults", "all"}:
            rows = []
            for each in faults(root, postgres):
                rows.append(each)
                print(shown([each]), flush=True)
            print(shown(rows), flush=True)
            found["faults"] = [asdict(row) for row in rows]
        if chosen.part in {"proxy", "all"}:
            proxy = Proxy(postgres.url)
            row = run(
                root, postgres.url, workers=16, trials=500, beat=2.0, seconds=0.2, kill_every=2.0,
                restart=proxy.killed(), restart_at=(0.33, 0.67), by=proxy.url,
            )  # fmt: skip
            proxy.kill()
            print(shown([row]), flush=True)
            found["proxy"] = asdict(row)
        if chosen.part in {"large", "all"}:
            row = run(root, postgres.url, workers=64, trials=2000, beat=10.0, kill_every=10.0)
            print(shown([row]), flush=True)
            found["large"] = asdict(row)
        if chosen.part in {"speed", "all"}:
            found["speed"] = speed(root, postgres, chosen.workers, chosen.trials)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


def faults(root: Path, postgres: Postgres) -> Iterator[Row]:
    """Run two studies whose workers are killed, one of them with its database taken away twice."""
    yield run(root, str(root / "journal.log"), workers=4, trials=500, beat=1.0, kill_every=2.0)
    yield run(
        root, postgres.url, workers=16, trials=500, beat=2.0, seconds=0.2, kill_every=2.0,
        restart=taken_away(postgres), restart_at=(0.33, 0.67),
    )  # fmt: skip


def speed(root: Path, postgres: Postgres, crowds: list[int], each: int) -> list[dict[str, Any]]:
    """Measure trials a second by workers, and what a trial costs the database, a worker and everybody else."""
    figures = []
    for workers, trials in ((workers, max(100, each * workers)) for workers in crowds):
        for name, url in (("PostgreSQL", postgres.url), ("journal file", str(root / f"speed-{workers}.log"))):
            before, ours = postgres.cpu_seconds(), os.times()
            row = run(root, url, workers=workers, trials=trials, beat=10.0)
            now = os.times()
            own = now.children_user + now.children_system - ours.children_user - ours.children_system
            figures.append(
                asdict(row) | {
                    "per_second": row.per_second,
                    "database_ms": 1e3 * (postgres.cpu_seconds() - before) / trials if name == "PostgreSQL" else 0.0,
                    "worker_ms": 1e3 * own / trials,
                }
            )  # fmt: skip
    held = {"PostgreSQL": locked(root, postgres.url), "journal file": locked(root, str(root / "locked.log"))}
    head = ["storage", "workers", "trials", "trials a second", "database, CPU ms", "workers, CPU ms"]
    cells = [
        [one["storage"], str(one["workers"]), str(one["trials"]), f"{one['per_second']:.1f}",
         f"{one['database_ms']:.1f}", f"{one['worker_ms']:.1f}"]
        for one in figures
    ]  # fmt: skip
    print(table(head, cells))
    for name, seconds in held.items():
        print(
            f"{name}: a trial holds the lock for {1e3 * seconds:.1f} ms, so {1 / seconds:.0f} trials a second at most"
        )
    return [*figures, {"locked": held}]


if __name__ == "__main__":
    main()
