"""Start workers on an engine that is there: a Dask cluster, a Ray cluster, a Slurm array.

All an engine does is to run `metaopt worker` somewhere: whatever it does to its processes costs nothing but time.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from metaopt.errors import UserError

STORAGE = "METAOPT_STORAGE"
"""The environment variable that holds the URL of the storage."""
Ended = tuple[int, str]
"""A worker's exit code and the last that it said."""


class Secret:
    """A storage's URL on its way to another machine, which no engine's log or dashboard shows."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __repr__(self) -> str:
        return "***"


def run_worker(secret: Secret | None, arguments: Sequence[str]) -> Ended:
    """Run a worker to its end where the engine put this. Without a secret the storage is in the environment."""
    environment = os.environ | ({STORAGE: secret.url} if secret else {})
    command = [sys.executable, "-m", "metaopt", "worker", *arguments]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    return done.returncode, done.stderr[-2000:].strip()


def on_dask(url: str, arguments: Sequence[str], workers: int, address: str) -> Iterator[Ended]:
    """Run workers as tasks of the Dask cluster at the scheduler's address."""
    _needs("distributed", "dask")
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--address: no Dask scheduler answers at {address} ({error}); give it as tcp://HOST:8786"
        ) from None
    with client:
        tasks = [client.submit(run_worker, Secret(url), list(arguments), pure=False) for _ in range(workers)]
        for task in as_completed(tasks):
            failed = task.exception()
            yield (1, f"{type(failed).__name__}: {failed}") if failed else task.result()


def on_ray(url: str, arguments: Sequence[str], workers: int, address: str, gpus: float) -> Iterator[Ended]:
    """Run workers as tasks of the Ray cluster at an address, each with a share of a GPU."""
    _needs("ray", "ray")
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--address: no Ray cluster answers at {address} ({reason}); start one by `ray start`"
        ) from None
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(run_worker)
        left = [task.remote(Secret(url), list(arguments)) for _ in range(workers)]
        while left:
            [first], left = ray.wait(left, num_returns=1)
            try:
                yield ray.get(first)
            except ray.exceptions.RayError as error:
                yield 1, str(error).partition("\n")[0]
    finally:
        ray.shutdown()


def on_slurm(
    url: str, arguments: Sequence[str], workers: int, logs: Path, *, minutes: int, partition: str | None, gpus: int,
    cluster: str | None = None,
) -> Iterator[Ended]:  # fmt: skip
    """Run workers as a Slurm array. The storage goes to them by the environment, which Slurm passes on."""
    _needs("submitit", "slurm")
    import submitit

    os.environ[STORAGE] = url
    if cluster is None and shutil.which("sbatch") is None:
        raise UserError("there is no Slurm here (no command sbatch); give this on its login node, or try it by --local")
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    executor.update_parameters(name="metaopt", timeout_min=minutes, cpus_per_task=1, nodes=1, tasks_per_node=1)
    if gpus:
        executor.update_parameters(gpus_per_node=gpus)
    if executor.cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=workers)
        if partition:
            executor.update_parameters(slurm_partition=partition)
    jobs = executor.map_array(run_worker, [None] * workers, [list(arguments)] * workers)
    for job in submitit.helpers.as_completed(jobs):
        failed = job.exception()
        yield (1, str(failed).strip().rpartition("\n")[2]) if failed else job.result()


def summed(ended: Iterator[Ended]) -> tuple[dict[int, int], list[str]]:
    """Wait for workers; return how many ended with which code, and what those said that failed, each once."""
    codes, said = Counter[int](), dict[str, None]()
    for code, last in ended:
        codes[code] += 1
        if code:
            said[last.rpartition("\n")[2]] = None
    return dict(codes), list(said)


def _needs(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UserError(f"launch {extra} needs the package {module}; pip install 'metaopt-fewshot[{extra}]'")
