"""The three commands of the cluster page, and workers that are killed, stopped, or whose database goes away."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import cluster
from metaopt import cli, supervise

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
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

Metaopt = Callable[..., tuple[int, str]]
Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def metaopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Metaopt:
    """Run a command here, in a folder that holds the study file; return its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAOPT_DISABLE_PLUGINS", "tensorboard,mlflow")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(arguments)
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def journal(metaopt: Metaopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the study in a journal file, and name that in the environment."""

    def create(*changes: str) -> None:
        monkeypatch.setenv("METAOPT_STORAGE", str(tmp_path / "shared.log"))
        assert metaopt("study", "create", "tiny.yaml", *(f"--set={change}" for change in changes))[0] == 0

    return create


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Begin a command in the folder of the test, which ends it if it has not ended."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "metaopt", *arguments]
        begun.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def until(true: Callable[[], Any], within: float = 60.0) -> Any:
    end = time.monotonic() + within
    while not (found := true()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("url", [pytest.param("journal", marks=pytest.mark.slow), "postgres"], indirect=True)
def test_the_commands_of_the_page_make_a_study_work_on_it_and_end_it(
    url: str, metaopt: Metaopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_STORAGE", url)
    block = re.search(r"<!-- commands -->\n```console\n(.*?)```", PAGE, re.DOTALL)
    assert block
    commands = [shlex.split(line[2:], comments=True)[1:] for line in block[1].splitlines() if line.startswith("$ ")]
    assert [command[0] for command in commands] == ["study", "worker", "study", "study"]
    stand_in = {"study.yaml": "tiny.yaml", "mine": "tiny", "8": "2"}
    said = []
    for command in commands:
        code, printed = metaopt(*(stand_in.get(part, part) for part in command))
        assert code == 0, printed
        said.append(printed)
    created, _, status, finished = said
    assert created.startswith("study tiny: 6 trials; on as many machines as there are")
    assert re.match(r"tiny: \d trials complete, \d pruned, 0 failed, 0 running, 0 of 6 left; to be finished", status)
    assert "written to runs/tiny" in finished
    assert (tmp_path / "runs" / "tiny" / "best" / "weights.safetensors").exists()
    assert metaopt("study", "audit", "runs/tiny")[0] == 0, "the report follows from what is stored"
    assert "; finished\n" in metaopt("study", "status", "--study", "tiny")[1]
    with monkeypatch.context() as elsewhere:
        elsewhere.delenv("METAOPT_STORAGE")
        for what in ("audit", "report"):
            code, printed = metaopt("study", what, "runs/tiny")
            assert (code, printed.endswith("no journal.log here; give the study's storage with --storage\n")) == (
                2,
                True,
            )
    assert metaopt("study", "finish", "--study", "tiny", "--output", "elsewhere", "--json")[0] == 0


def test_a_worker_that_is_killed_is_replaced_and_its_trial_run_again(
    begin: Begin, journal: Callable[..., None], metaopt: Metaopt, tmp_path: Path
) -> None:
    journal("budget.tasks=4000")
    process = begin("worker", "--study", "tiny", "--beat", "0.3")
    [first] = until(lambda: workers_of(process))
    until(lambda: "running: trial" in metaopt("study", "status", "--study", "tiny")[1])
    os.kill(first, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "a worker was killed by signal 9; another starts in" in said
    assert said.count("every trial of tiny is done") == 1
    assert " 0 failed, 0 running, 0 of 6 left" in metaopt("study", "status")[1]


def test_a_worker_that_is_stopped_puts_its_trial_back_and_leaves_no_process(
    begin: Begin, journal: Callable[..., None], metaopt: Metaopt, tmp_path: Path
) -> None:
    journal("budget.tasks=100000000")
    process = begin("worker", "--study", "tiny", "--quiet")
    until(lambda: "running: trial" in metaopt("study", "status", "--study", "tiny")[1])
    children = workers_of(process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, said
    assert all(not Path(f"/proc/{child}").exists() for child in children)
    [study] = json.loads(metaopt("study", "status", "--json")[1])["studies"]
    assert [trial["attempt"] for trial in study["running"]] == [0]


def test_workers_wait_for_a_database_that_goes_away_and_lose_nothing(
    begin: Begin, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_STORAGE", postgres.url)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY | {"name": "away", "budget": {"tasks": 2000}}))
    assert cli.main(["study", "create", str(tmp_path / "tiny.yaml")]) == 0
    process = begin("worker", "--study", "away", "--beat", "1")
    until(lambda: any(state == "COMPLETE" for state, _ in cluster.finished(postgres.url, "away")))
    postgres.stop("immediate")
    time.sleep(1)
    postgres.start()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(cluster.finished(postgres.url, "away")) == 6
    assert {state for state, _ in cluster.finished(postgres.url, "away")} <= {"COMPLETE", "PRUNED"}


def test_a_worker_whose_database_is_away_when_it_first_starts_waits_for_it(
    begin: Begin, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_STORAGE", postgres.url)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY | {"name": "late"}))
    assert cli.main(["study", "create", str(tmp_path / "tiny.yaml")]) == 0
    postgres.stop("fast")
    process = begin("worker", "--study", "late", "--quiet")
    assert process.stderr
    try:
        waits = process.stderr.readline()
    finally:
        postgres.start()
    assert re.match(r"the storage does not answer \(.*onnection.*\); again in \d\.\d s$", waits), waits
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "the storage answers again" in said
    assert len(cluster.finished(postgres.url, "late")) == 6


def test_a_database_that_is_not_there_is_a_users_mistake_and_not_waited_for(
    begin: Begin, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_STORAGE", postgres.url.rpartition("/")[0] + "/nowhere")
    process = begin("worker", "--study", "tiny")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("metaopt: --storage: cannot open that storage (")
    assert said.endswith("; see that the database is there and answers, as by psql\n")
    assert said.count("\n") == 1


def test_a_worker_that_is_frozen_past_its_heartbeat_and_woken_drops_what_it_has(
    begin: Begin, journal: Callable[..., None], metaopt: Metaopt, tmp_path: Path
) -> None:
    journal("budget.tasks=4000")

    def running() -> list[dict[str, Any]]:
        [study] = json.loads(metaopt("study", "status", "--json")[1])["studies"]
        found: list[dict[str, Any]] = study["running"]
        return found

    frozen = begin("worker", "--study", "tiny", "--quiet", "--beat", "0.3")
    until(running)
    [process] = workers_of(frozen)

    def frozen_with() -> list[dict[str, Any]]:
        os.kill(process, signal.SIGSTOP)
        found = [] if any(map(is_locked, tmp_path.glob("shared.log*"))) else running()
        if not found:  # it was between two trials, or in one of the moments in which others wait for it
            os.kill(process, signal.SIGCONT)
        return found

    [held] = until(frozen_with)
    other = begin("worker", "--study", "tiny", "--quiet", "--beat", "0.3")
    try:
        until(lambda: held["trial"] in begun_again(tmp_path / "shared.log"))
    finally:
        os.kill(process, signal.SIGCONT)
    for one in (other, frozen):
        _, said = one.communicate(timeout=120)
        assert one.returncode == 0, said
    assert " 0 failed, 0 running, 0 of 6 left" in metaopt("study", "status")[1]
    trials = every_result(tmp_path / "shared.log")
    assert sorted(map(len, trials.values())) == [1] * 6, "each has one result"


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def begun_again(journal: Path) -> set[int]:
    """Return the numbers of the trials in a journal's only study that a second worker has begun."""
    claims = [json.loads(line) for line in journal.read_text().splitlines() if '"attempts"' in line]
    return {entry["trial_id"] for entry in claims if '"attempts": 2' in json.dumps(entry)}


def every_result(journal: Path) -> dict[int, list[Any]]:
    """Return by trial every result that was ever written to a journal."""
    found: dict[int, list[Any]] = {}
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        if "result" in entry.get("user_attr", {}):
            found.setdefault(entry["trial_id"], []).append(entry["user_attr"]["result"])
    return found


@pytest.mark.parametrize("url", ["journal", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True)
def test_workers_that_are_killed_at_random_make_exactly_as_many_trials(url: str, tmp_path: Path) -> None:
    lab(
        tmp_path,
        "row = cluster.run(root, sys.argv[2], workers=4, trials=30, beat=0.5, seconds=0.1, kill_every=1.0)\n"
        "assert row.exact and row.killed, row\n",
        url,
    )


def test_a_trial_that_hangs_ends_by_its_own_limit_and_the_worker_goes_on(tmp_path: Path) -> None:
    lab(
        tmp_path,
        "cluster.STUDY |= {'isolation': 'process', 'limits': {'time': '1s'}}\n"
        "row = cluster.run(root, sys.argv[2], workers=2, trials=3, beat=0.5, seconds=3600.0)\n"
        "assert row.exact and (row.failed, row.begun_again) == (3, 0), row\n",
        str(tmp_path / "shared.log"),
    )


def lab(folder: Path, code: str, url: str) -> None:
    """Run code of the benchmark in a process of its own, where its learner is installed."""
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nimport cluster\nfrom pathlib import Path\n"
        f"root = Path(sys.argv[1])\ncluster.prepare(root)\n{code}"
    )
    command = [sys.executable, "-c", code, folder, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=folder)
    assert done.returncode == 0, done.stderr


# Mistakes


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command here, as a worker that is watched, and return the sentence that refuses it."""

    def run(*arguments: str) -> str:
        monkeypatch.setenv(supervise.SUPERVISED, str(os.getppid()))
        monkeypatch.setattr(supervise, "end_with", lambda parent: None)
        capsys.readouterr()
        assert cli.main(list(arguments)) == 2
        said = capsys.readouterr().err
        assert said.startswith("metaopt: ")
        assert said.count("\n") == 1
        return said.removeprefix("metaopt: ").strip()

    return run


def test_without_a_storage_a_worker_says_what_to_give(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METAOPT_STORAGE", raising=False)
    assert refused("worker", "--study", "tiny").startswith(
        "--storage: give the storage that workers share, as postgres"
    )


def test_a_study_that_is_not_there_is_named_beside_those_that_are(
    journal: Callable[..., None], refused: Callable[..., str]
) -> None:
    journal()
    said = refused("worker", "--study", "tyni")
    assert said.startswith("the storage holds no study 'tyni' made by `metaopt study create` (its studies: tiny)")
    assert refused("study", "status", "--study", "tyni") == said


def test_finish_says_what_is_still_to_be_done(journal: Callable[..., None], refused: Callable[..., str]) -> None:
    journal()
    said = refused("study", "finish", "--study", "tiny")
    assert said.startswith("of the study 'tiny' 0 of 6 trials are done and 0 run; start workers (`metaopt worker`)")


def test_a_machine_without_the_data_says_so_in_a_sentence(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.chdir(tmp_path)
    (here := tmp_path / "here").mkdir()
    np.savez(here / "data.npz", X=np.random.default_rng(0).normal(size=(120, 4)), y=np.repeat(np.arange(12), 10))
    monkeypatch.setenv("METAOPT_DATA", str(here))
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump(STUDY | {"name": "own", "tasks": {"sampler": "arrays", "file": "data.npz", "n_way": 2,
                                                         "n_shot": 1, "n_query": 3}})
    )  # fmt: skip
    assert cli.main(["study", "create", "own.yaml", "--storage", "own.log"]) == 0
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "elsewhere"))
    said = refused("worker", "--storage", "own.log", "--study", "own")
    assert said.startswith("study own: ")
    assert "METAOPT_DATA" in said


def test_a_password_is_in_no_message_and_no_command_line(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg", reason="needs the extra [postgres]")
    monkeypatch.setenv("METAOPT_STORAGE", "postgresql://me:hunter2@127.0.0.1:1/x")
    process = begin("worker", "--study", "tiny", "--workers", "2")
    assert process.stderr
    said = "".join(process.stderr.readline() for _ in range(3))
    assert said.count("the storage does not answer (") == 3, said
    seen = {Path(f"/proc/{number}/cmdline").read_text() for number in (process.pid, *workers_of(process))}
    process.terminate()
    said += process.communicate()[1]
    assert process.returncode == cli.INTERRUPTED
    assert "hunter2" not in said + "".join(seen)
    assert any("--study" in line for line in seen)
    assert cli.main(["worker", "--study", "s", "--storage", "postgresql://me:hunter2@127.0.0.1:1/x"]) == 2
    assert "hunter2" not in capsys.readouterr().err


# Places


def test_a_place_whose_worker_dies_at_once_is_left_empty_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(supervise, "FAILURES", 2)
    place = supervise._Place([])
    place.end()
    place.command, place.failures, place.process = [sys.executable, "-c", "raise SystemExit(70)"], 0, None
    until(place.done, 20)
    assert (place.code, place.failures) == (70, 3)


def test_a_users_mistake_is_not_tried_again() -> None:
    place = supervise._Place(["study", "show", "/no/such/folder"])
    until(place.done, 60)
    assert (place.code, place.failures) == (2, 1)
