"""What a third party does: builds a plugin, installs it beside metaopt in an environment of its own, and uses it.

Beside the good plugin stands one that fails when it is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
THIRD_PARTY = Path(__file__).parent / "third_party"

STUDY = """
name: thirdparty
tasks: {sampler: glyphs, n_way: 3, n_shot: 1, n_query: 5}
learners: [protonet, pixels, nearest]
objective: accuracy
trials: 6
budget: {tasks: 40}
evaluation: {tasks: 20, finalists: 6, report_tasks: 40}
seed: 0
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with no trace of the repository on Python's path, and return what it prints to stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "METAOPT_"))}
    done = subprocess.run(
        command, cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def metaopt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command `metaopt` of a fresh environment that holds the wheels of metaopt and of both plugins."""
    folder = tmp_path_factory.mktemp("third_party")
    wheels, environment = folder / "wheels", folder / "venv"
    for project in (ROOT, THIRD_PARTY / "metaopt-nearest", THIRD_PARTY / "metaopt-broken"):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, project, cwd=folder)
    run(sys.executable, "-m", "venv", environment, cwd=folder)
    install = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(*install, *sorted(wheels.glob("*.whl")), cwd=folder)
    return environment / "bin" / "metaopt"


def study(metaopt: Path, folder: Path, text: str) -> dict[str, Any]:
    """Run a study into `folder`/run and return what it prints, which is what it stores."""
    (folder / "study.yaml").write_text(text)
    printed: dict[str, Any] = json.loads(
        run(metaopt, "study", "run", "study.yaml", "--output", "run", "--json", cwd=folder)
    )
    assert printed == json.loads((folder / "run" / "leaderboard.json").read_text())
    return printed


def test_the_plugins_are_listed_the_broken_one_with_its_reason(metaopt: Path, tmp_path: Path) -> None:
    listed = json.loads(run(metaopt, "plugin", "list", "--json", cwd=tmp_path))["plugins"]
    plugins = {plugin["name"]: plugin for plugin in listed}
    built_in = {"tasks", "encoders", "objectives", "metric", "gradient", "hyper", "memory", "optimizer", "baseline"}
    assert plugins.keys() == built_in | {"nearest", "broken"}
    for name in built_in:
        assert (plugins[name]["distribution"], plugins[name]["status"]) == ("metaopt-fewshot", "ok"), plugins[name]
    nearest, broken = plugins["nearest"], plugins["broken"]
    assert (nearest["distribution"], nearest["version"], nearest["status"]) == ("metaopt-nearest", "1.0.0", "ok")
    assert (nearest["learners"], nearest["error"]) == (["nearest"], None)
    assert (broken["distribution"], broken["version"], broken["status"]) == ("metaopt-broken", "0.0.1", "broken")
    assert "RuntimeError: this plugin fails on purpose (metaopt_broken, line 3)" in broken["error"]


def test_a_study_searches_the_third_partys_learner_beside_the_built_in(metaopt: Path, tmp_path: Path) -> None:
    leaderboard = study(metaopt, tmp_path, STUDY)
    assert sum(leaderboard["trials"].values()) == 6
    assert leaderboard["trials"]["failed"] == 0
    finalists = leaderboard["finalists"]  # as many as there are trials, so that the list shows what was tried
    assert {"protonet", "pixels", "nearest"} == {finalist["learner"] for finalist in finalists}
    [first, *_] = [finalist for finalist in finalists if finalist["learner"] == "nearest"]
    assert 0.01 <= first["params"]["nearest.temperature"] <= 1.0
    assert 0.0 <= first["search"]["mean"] <= 1.0
    assert leaderboard["versions"]["metaopt-nearest"] == "1.0.0"


def test_a_saved_third_party_learner_is_evaluated(metaopt: Path, tmp_path: Path) -> None:
    text = STUDY.replace("[protonet, pixels, nearest]", "[nearest]").replace("trials: 6", "trials: 2")
    leaderboard = study(metaopt, tmp_path, text)
    assert leaderboard["finalists"][0]["learner"] == "nearest"
    scores = json.loads(run(metaopt, "evaluate", "run/best", "--tasks", "50", "--json", cwd=tmp_path))
    assert scores["tasks"] == 50
    assert 1 / 3 < scores["mean"] <= 1.0  # three classes: better than chance
