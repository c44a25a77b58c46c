"""Trials and winners are read back from TensorBoard's own event files, after a real study."""

import subprocess
import sys
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
    found = [point for point in metadata.entry_points(group=plugins.GROUP) if point.value != "metaopt_tensorboard"]
    observer = metadata.EntryPoint("tensorboard", "metaopt_tensorboard", plugins.GROUP)
    registry = plugins.load([*found, observer])
    return search.run(Bench(resolve(STUDY, "a.yaml", registry), registry, torch.device("cpu")), folder, Quiet())


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of TensorBoard's own dependencies
def test_each_trial_and_the_winner_are_runs_with_scores_and_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs pip install "metaopt-fewshot[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    board = run_study(tmp_path)
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {
        "trial-00000", "trial-00001", "trial-00002", "winner",
    }  # fmt: skip
    by_learner = {learner: entry["search"]["mean"] for learner, entry in board["learners"].items()}
    for number, learner in enumerate(["protonet", "pixels"]):  # each learner's defaults come first
        run = EventAccumulator(str(tmp_path / "tensorboard" / f"trial-{number:05d}")).Reload()
        [score] = run.Scalars("accuracy")
        assert score.step == number
        assert score.value <= by_learner[learner] + 1e-6
        [cost] = run.Scalars("trial/trained_tasks")
        assert cost.value == (8 if learner == "protonet" else 0)
        data = run.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        params = HParamsPluginData.FromString(data).session_start_info.hparams
        assert (params["learner"].string_value, params["state"].string_value) == (learner, "complete")
        assert ("protonet.temperature" in params) == (learner == "protonet")
    [test] = EventAccumulator(str(tmp_path / "tensorboard" / "winner")).Reload().Scalars("accuracy/test")
    assert test.value == pytest.approx(board["finalists"][0]["report"]["mean"])


def test_nothing_happens_where_tensorboard_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("metaopt_tensorboard.find_spec", lambda name: None)
    assert run_study(tmp_path)["status"] == "finished"
    assert not (tmp_path / "tensorboard").exists()
    assert caplog.records == []


def test_loading_the_plugin_does_not_import_tensorboard() -> None:
    code = (
        "import sys, metaopt_tensorboard, metaopt_mlflow; print({'tensorboard', 'mlflow', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
