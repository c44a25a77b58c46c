"""Workers are started on engines that are there: a Dask scheduler, a Ray head, submitit's local executor."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaopt import cli, launch
from metaopt.study import cluster

STUDY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"protonet": {"temperature": None}, "pixels": None},
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"lr": None},
    "executor": "loop",
    "trials": 6,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 2, "report_tasks": 20},
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are watched by Linux's own means")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("METAOPT_DISABLE_PLUGINS", "tensorboard,mlflow")
    monkeypatch.setenv("METAOPT_STORAGE", "")  # taken back afterwards
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(STUDY))
    assert cli.main(["study", "create", "tiny.yaml", "--storage", "shared.log"]) == 0
    return str(tmp_path / "shared.log")


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with Path("engine.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def until(true: Callable[[], Any], within: float = 60.0) -> None:
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, Path("engine.log").read_text()
        time.sleep(0.1)


def launched(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    command = ["launch", *arguments, "--workers", "2", "--study", "tiny", "--storage", "shared.log", "--json"]
    code = cli.main(command)
    found = json.loads(capsys.readouterr().out)
    assert (code, found["codes"]) == (0, {"0": 2}), found
    [study] = cluster.status("shared.log", "tiny")["studies"]
    assert study["status"] == "to be finished"
    assert study["complete"] + study["pruned"] == 6
    return found


@pytest.mark.slow
def test_a_dask_scheduler_with_two_worker_processes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    here = ["--scheduler-file", "scheduler.json", "--no-dashboard", "--host", "127.0.0.1"]
    with running("distributed.cli.dask_scheduler", *here, "--port", "0"):
        until(Path("scheduler.json").exists)
        with running("distributed.cli.dask_worker", *here, "--nworkers", "2", "--nthreads", "1"):
            address = json.loads(Path("scheduler.json").read_text())["address"]
            launched(capsys, "dask", "--address", address)


@pytest.mark.slow
def test_a_ray_head_with_two_workers(url: str, capsys: pytest.CaptureFixture[str], cluster_port: int) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    head = [
        "start",
        "--head",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        "--block",
    ]
    short = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)  # it holds sockets
    with short as folder, running("ray.scripts.scripts", *head, f"--port={cluster_port}", f"--temp-dir={folder}"):
        until(lambda: b"ray status" in Path("engine.log").read_bytes())
        launched(capsys, "ray", "--address", f"127.0.0.1:{cluster_port}")


@pytest.mark.slow
def test_submitits_local_executor(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit", reason="needs the extra [slurm]")
    launched(capsys, "slurm", "--local")
    assert len(list(Path("runs/slurm").glob("*_result.pkl"))) == 2


@pytest.fixture
def cluster_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_worker_that_fails_is_told_once(url: str, tmp_path: Path) -> None:
    secret = launch.Secret(url)
    ended = [launch.run_worker(secret, ["--study", "another"])]
    codes, said = launch.summed(iter(ended * 3))
    assert codes == {2: 3}
    assert said == [
        "metaopt: the storage holds no study 'another' made by `metaopt study create` (its studies: tiny); "
        "create it first"
    ]


def test_a_url_on_its_way_shows_nothing_of_itself() -> None:
    secret = launch.Secret("postgresql://me:hunter2@x/y")
    assert "hunter2" not in f"{secret!r} {secret} {[secret]}"


def test_without_slurm_its_login_node_is_named(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs the extra [slurm]")
    monkeypatch.setenv("PATH", "")
    assert cli.main(["launch", "slurm", "--workers=1", "--study=tiny", f"--storage={url}"]) == 2
    assert capsys.readouterr().err.startswith("metaopt: there is no Slurm here (no command sbatch)")


def test_a_scheduler_that_is_not_there_is_said_in_a_sentence(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    code = cli.main(["launch", "dask", "--address=nonsense://x", "--workers=1", "--study=tiny", f"--storage={url}"])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("metaopt: --address: no Dask scheduler answers at nonsense://x (")


@pytest.mark.parametrize(("engine", "extra"), [("dask", "dask"), ("ray", "ray"), ("slurm", "slurm")])
def test_an_engine_whose_package_is_missing_names_its_extra(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, engine: str, extra: str
) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    more = ["--address", "tcp://127.0.0.1:1"] if engine == "dask" else []
    assert cli.main(["launch", engine, *more, "--workers=1", "--study=tiny", f"--storage={url}"]) == 2
    assert f"pip install 'metaopt-fewshot[{extra}]'" in capsys.readouterr().err
    assert os.environ["METAOPT_STORAGE"] == ""
