"""A study over learners that act has what every study has: halving, racing, finalists, report, audit, resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import metaopt
from metaopt import cli
from metaopt.errors import UserError

STUDY: dict[str, Any] = {
    "name": "plane",
    "tasks": {"sampler": "navigation", "n_shot": 6, "n_query": 4, "horizon": 10},
    "learners": {"maml_rl": {"width": 16}, "randomised": {"width": 16}, "rl2": {"hidden": 16}},
    "trials": 4,
    "budget": {"tasks": 80},
    "evaluation": {"tasks": 70, "finalists": 2, "report_tasks": 70},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAOPT_DISABLE_PLUGINS", "tensorboard,mlflow")
    (tmp_path / "plane.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def test_a_study_of_environments_runs_resumes_and_can_be_scored_reported_and_audited(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "run", "plane.yaml", "--quiet"]) == 0
    assert cli.main(["study", "run", "plane.yaml", "--quiet", "--trials", "5"]) == 0
    board = json.loads((folder / "runs/plane/leaderboard.json").read_text())
    assert board["objective"] == "return_after"
    assert sum(board["trials"].values()) == 5
    assert board["finalists"][0]["report"]["mean"] < 0
    assert cli.main(["evaluate", "runs/plane/best", "--tasks", "40", "--shot", "8"]) == 0
    assert "40 fresh 8-episode test tasks" in capsys.readouterr().out
    assert cli.main(["study", "audit", "runs/plane"]) == 0
    assert "scores the same again on the first 64 tasks of its report" in capsys.readouterr().out
    assert cli.main(["study", "report", "runs/plane"]) == 0
    assert "this study is one of control" in capsys.readouterr().out
    assert "acts in a new environment" in (folder / "runs/plane/best/MODEL.md").read_text()
    with pytest.raises(UserError, match="is a policy, which acts and predicts nothing"):
        metaopt.load("runs/plane")


def test_an_environment_has_no_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "preview", "plane.yaml", "--output", "a.png"]) == 2
    assert capsys.readouterr().err == "metaopt: --output: environments have no picture; leave it out\n"


def test_a_task_is_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "preview", "plane.yaml"]) == 0
    said = capsys.readouterr().out
    assert "a train task: 6 episodes to learn from and 4 after them, of up to 10 steps; 2 numbers an action" in said
    assert cli.main(["tasks", "preview", "plane.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"]["horizon"] == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["learners={protonet: }"], "it learns classification and the sampler 'navigation' gives"),
        (["tasks.stream=true"], "tasks.stream: the sampler 'navigation' gives environments, which hold no examples"),
        (["tasks.n_shot=[1,5]"], "tasks.n_shot: all environments of a study have as many episodes to learn from"),
        (["tasks.train_way=3"], "tasks.train_way"),
        (["evaluation.ensemble=true"], "evaluation.ensemble: policies act, and have no predictions"),
        (["objective=accuracy"], "'accuracy' does not score control tasks"),
        (["tasks.n_shot=1", "learners={maml_rl: {test_steps: 3}}"], "3 steps need 3 episodes to learn from"),
    ],
)
def test_what_environments_cannot_have_is_refused_in_a_sentence(
    changes: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "run", "plane.yaml", *(f"--set={change}" for change in changes)]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (folder / "runs").exists()
