"""Trials and winners are read back from a local file store of MLflow, after a real study."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt import plugins
from metaopt.study import search
from metaopt.study.file import resolve
from metaopt.study.trial import Bench
from metaopt.terminal import Quiet

STUDY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1, "n_query": 3, "features": 4},
    "learners": ["protonet", "pixels"],
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "trials": 3,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 10},
}


def run_study(folder: Path) -> dict[str, Any]:
    """Run a study that this plugin observes, and return its leaderboard."""
    found = [point for point in metadata.entry_points(group=plugins.GROUP) if point.value != "metaopt_mlflow"]
    observer = metadata.EntryPoint("mlflow", "metaopt_mlflow", plugins.GROUP)
    registry = plugins.load([*found, observer])
    return search.run(Bench(resolve(STUDY, "a.yaml", registry), registry, torch.device("cpu")), folder, Quiet())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of an empty file store, which is where MLflow logs."""
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 maintains, and warns of
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return store


@pytest.mark.filterwarnings("default")  # of MLflow and its dependencies
def test_each_trial_and_the_winner_are_runs_with_scores_and_hyperparameters(tmp_path: Path, store: str) -> None:
    mlflow = pytest.importorskip("mlflow", reason='needs pip install "metaopt-fewshot[mlflow]"')
    board = run_study(tmp_path / "run")
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"trial 0", "trial 1", "trial 2", "winner"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    first, winner = runs["trial 0"].data, runs["winner"]
    assert (first.tags["learner"], first.tags["objective"]) == ("protonet", "accuracy")
    assert Path(first.tags["folder"]) == (tmp_path / "run").resolve()
    assert first.params["protonet.distance"] == "euclidean"
    assert (first.metrics["trained_tasks"], 0 < first.metrics["mean"] <= 1) == (8, True)
    assert winner.data.metrics["mean"] == pytest.approx(board["finalists"][0]["report"]["mean"])
    artifact = Path(winner.info.artifact_uri.removeprefix("file://")) / "leaderboard.json"
    assert json.loads(artifact.read_text()) == board


@pytest.mark.parametrize("missing", ["package", "address"])
def test_nothing_happens_where_mlflow_or_its_address_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, store: str, missing: str
) -> None:
    if missing == "package":
        monkeypatch.setattr("metaopt_mlflow.find_spec", lambda name: None)
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run_study(tmp_path / "run")["status"] == "finished"
    assert not (tmp_path / "mlruns").exists()
    assert caplog.records == []
