"""A study over learners that act has what every study has: halving, racing, finalists, report, audit, resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import metaopt
from metaopt import cli
from metaopt.agent import Agent

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
    assert isinstance(metaopt.load("runs/plane"), Agent)
    assert cli.main(["predict", "runs/plane", "--support", "a", "--query", "b"]) == 2
    assert "runs/plane is no model for classification; use metaopt.load in Python" in capsys.readouterr().err


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
    ("tasks", "said"),
    [
        ({"sampler": "navigation"}, "no pools of classes: each pool is a separate draw of one distribution of tasks"),
        ({"sampler": "slope"}, "no pools of classes: validation and test lie beyond what is trained on"),
        ({"sampler": "games"}, "no pools of classes: no game of one pool, by its walls, goal and start, is in"),
        ({"sampler": "games"}, "told to an oracle alone, 76 numbers: "),
        ({"sampler": "slope"}, "200 steps; 1 number an action; observations of 4"),
        ({"sampler": "gymnasium", "env": "Pendulum-v1", "parameters": {"g": {"train": [8, 9], "validation": [9, 10],
          "test": [10, 11]}}}, "parameters have other ranges in the test pool than in training"),
    ],
)  # fmt: skip
def test_what_tells_pools_and_tasks_apart_is_said(
    tasks: dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "s.yaml").write_text(yaml.safe_dump(STUDY | {"tasks": {"n_shot": 6, "n_query": 4, **tasks}}))
    assert cli.main(["tasks", "preview", "s.yaml"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_report_says_that_a_score_is_of_extrapolation(folder: Path) -> None:
    changes = {"tasks": {"sampler": "slope", "n_shot": 2, "n_query": 2, "horizon": 5}, "learners": ["randomised"],
               "trials": 1, "evaluation": {"tasks": 8, "finalists": 1, "report_tasks": 8}}  # fmt: skip
    (folder / "s.yaml").write_text(yaml.safe_dump(STUDY | changes))
    assert cli.main(["study", "run", "s.yaml", "--quiet", "--out", "out"]) == 0
    assert cli.main(["study", "report", "out"]) == 0
    page = (folder / "out/report.html").read_text()
    assert "The split: validation and test lie beyond what is trained on, so scores are of extrapolation" in page


def test_an_exported_policy_is_said_to_act(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "run", "plane.yaml", "--quiet", "--trials", "1"]) == 0
    assert cli.main(["export", "runs/plane", "model"]) == 0
    assert 'in Python: metaopt.load("model").adapt(env)' in capsys.readouterr().out
    assert isinstance(metaopt.load("model"), Agent)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["learners={protonet: }"], "it learns classification and the sampler 'navigation' gives"),
        (["tasks.stream=true"], "tasks.stream: the sampler 'navigation' gives environments, which hold no examples"),
        (["tasks.n_shot=[1,5]"], "tasks.n_shot: all environments of a study have as many episodes to learn from"),
        (["tasks.train_way=3"], "tasks.train_way"),
        (["learners={oracle: , randomised: }"], "learners.oracle: it is told which task it is in, and the others have"),
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
