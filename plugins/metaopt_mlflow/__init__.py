"""Trials as runs of MLflow (Zaharia et al., 2018, IEEE Data Engineering Bulletin 41), as they end.

With `pip install "metaopt-fewshot[mlflow]"` and the environment variable MLFLOW_TRACKING_URI set, MLflow's own, each
trial is logged there as a run of an experiment with the study's name. Where either is missing nothing happens.
"""

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt import hookimpl

if TYPE_CHECKING:
    from metaopt.study.trial import TrialResult

MEASURED = ("mean", "ci95", "median", "trained_tasks", "cpu_seconds", "seconds", "parameters")
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@hookimpl
def trial_finished(result: "TrialResult", study: Mapping[str, Any], folder: Path) -> None:
    """Log a trial: its hyperparameters, its score and what it cost."""
    if not _wanted():
        return
    metrics = {name: value for name in MEASURED if (value := getattr(result, name)) is not None}
    metrics |= {name: other["mean"] for name, other in result.others.items()}
    tags = {
        "learner": result.learner,
        "objective": ", ".join(_names(study["objective"])),
        "folder": str(folder.resolve()),
    }
    if result.reason:
        tags["reason"] = result.reason
    _log(study["name"], f"trial {result.number}", result.params, metrics, tags, STATUS[result.state])


@hookimpl
def study_finished(leaderboard: Mapping[str, Any], folder: Path) -> None:
    """Log the winner, with its score on test tasks, and the leaderboard as an artifact."""
    if not _wanted() or leaderboard["status"] != "finished":
        return
    winner = leaderboard["finalists"][0]
    metrics = {name: value for name, value in winner["report"].items() if isinstance(value, int | float)}
    tags = {"learner": winner["learner"], "objective": leaderboard["objective"], "folder": str(folder.resolve())}
    _log(leaderboard["study"], "winner", winner["params"], metrics, tags, "FINISHED", leaderboard)


def _names(objective: "str | Mapping[str, Any]") -> list[str]:
    """Return the objectives that a study file names: one, or several with their settings."""
    return [objective] if isinstance(objective, str) else list(objective)


def _wanted() -> bool:
    return "MLFLOW_TRACKING_URI" in os.environ and find_spec("mlflow") is not None


def _log(
    study: str,
    run: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    status: str,
    leaderboard: Mapping[str, Any] | None = None,
) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, now = MlflowClient(), int(1000 * time.time())  # in milliseconds
    experiment = client.get_experiment_by_name(study)
    number = experiment.experiment_id if experiment else client.create_experiment(study)
    logged = client.create_run(number, run_name=run, tags=dict(tags)).info.run_id
    client.log_batch(
        logged,
        metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()],
        params=[Param(name, str(value)) for name, value in params.items()],
    )
    if leaderboard:
        client.log_dict(logged, dict(leaderboard), "leaderboard.json")
    client.set_terminated(logged, status)
