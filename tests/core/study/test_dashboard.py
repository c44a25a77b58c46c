"""What users know from Optuna works on a run folder: its dashboard, its Python, its command."""

import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from metaopt.cli import main

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
STUDY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": ["protonet", "pixels"],
    "encoder": {"conv4": {"width": 8}},
    "trials": 3,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 10},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["study", "run", str(folder / "tiny.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def address(finished: Path) -> Iterator[str]:
    """Start the dashboard on any free port and return its address."""
    pytest.importorskip("optuna_dashboard", reason="the extra [dashboard] is not installed")
    command = [sys.executable, "-m", "metaopt", "study", "dashboard", str(finished), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            [address] = re.findall(r"^(http://127\.0\.0\.1:\d+/) shows the trials of ", line)
            yield address
        finally:
            process.terminate()


def test_the_dashboard_serves_its_page_and_the_studys_trials_to_this_machine_alone(address: str) -> None:
    with urllib.request.urlopen(f"{address}dashboard") as answer:
        assert answer.status == 200
        assert b"<title>" in answer.read()
    with urllib.request.urlopen(f"{address}api/studies") as answer:
        [study] = json.load(answer)["study_summaries"]
    assert study["study_name"] == "tiny"
    with urllib.request.urlopen(f"{address}api/studies/{study['study_id']}") as answer:
        assert [trial["state"] for trial in json.load(answer)["trials"]] == ["Complete"] * 3
    port = int(address.rstrip("/").rpartition(":")[2])
    others = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for host in others - {"127.0.0.1"}:
        if not host.startswith("127."):
            with socket.socket() as probe:
                assert probe.connect_ex((host, port)) != 0, "on no other address"


def test_without_the_extra_a_sentence_says_what_to_install(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna_dashboard" else found(name))
    assert main(["study", "dashboard", str(finished)]) == 2
    assert "pip install 'metaopt-fewshot[dashboard]'" in capsys.readouterr().err


def test_a_folder_without_a_journal_and_a_port_in_use_are_users_mistakes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra [dashboard] is not installed")
    assert main(["study", "dashboard", str(tmp_path)]) == 2
    assert "no journal.log here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["study", "dashboard", str(finished), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "-1", "65536"])
def test_what_is_no_port_is_refused(finished: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["study", "dashboard", str(finished), f"--port={port}"])
    assert "is no port" in capsys.readouterr().err


def test_optuna_loads_the_study_as_the_readme_says(finished: Path) -> None:
    [lines] = re.findall(r"```python\n(backend = .*?)```", README, re.DOTALL)
    names: dict[str, Any] = {"optuna": optuna}
    exec(lines.replace("runs/quickstart", str(finished)).replace('"quickstart"', '"tiny"'), names)
    board = json.loads((finished / "leaderboard.json").read_text())
    assert len(names["study"].trials) == 3
    assert names["study"].best_value == max(entry["search"]["mean"] for entry in board["learners"].values())


def test_optunas_command_lists_the_trials_as_the_readme_says(finished: Path) -> None:
    [line] = re.findall(r"^\$ optuna (trials .*)$", README, re.MULTILINE)
    arguments = shlex.split(line.replace("runs/quickstart", str(finished)).replace("quickstart", "tiny"))
    run = "from optuna.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", run, *arguments, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [trial["state"] for trial in json.loads(done.stdout)] == ["COMPLETE"] * 3
