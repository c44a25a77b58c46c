"""Trials in TensorBoard (Abadi et al., 2016, arXiv:1603.04467), as they end.

With `pip install "metaopt-fewshot[tensorboard]"` each study writes events into `tensorboard/` in its run folder:
`tensorboard --logdir runs` shows them, hyperparameters in the tab HPARAMS. Without that package nothing happens.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt import hookimpl

if TYPE_CHECKING:
    from metaopt.study.trial import TrialResult

MEASURED = ("trained_tasks", "cpu_seconds", "seconds", "parameters")
"""What is shown of a trial beside its score."""


@hookimpl
def trial_finished(result: "TrialResult", study: Mapping[str, Any], folder: Path) -> None:
    """Write a trial as a run of its own: its score, what it cost, and its hyperparameters."""
    if find_spec("tensorboard") is None:
        return
    measured = {f"trial/{name}": float(getattr(result, name)) for name in MEASURED}
    if result.mean is not None:
        measured |= {result.objective: result.mean, f"{result.objective}/median": result.median or 0.0}
        measured |= {name: other["mean"] for name, other in result.others.items()}
    _write(folder, f"trial-{result.number:05d}", result.params | {"state": result.state}, measured, result.number)


@hookimpl
def study_finished(leaderboard: Mapping[str, Any], folder: Path) -> None:
    """Write the winner, with its score on test tasks."""
    if find_spec("tensorboard") is None or leaderboard["status"] != "finished":
        return
    winner = leaderboard["finalists"][0]
    measured = {f"{leaderboard['objective']}/test": winner["report"]["mean"]}
    _write(folder, "winner", winner["params"], measured, winner["trial"])


def _write(folder: Path, run: str, params: Mapping[str, Any], measured: Mapping[str, float], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shown = {name: "none" if value is None else value for name, value in params.items()}
    writer = SummaryWriter(folder / "tensorboard" / run)
    try:
        assert writer.file_writer is not None
        for summary in hparams(shown, dict(measured)):
            writer.file_writer.add_summary(summary)
        for name, value in measured.items():
            writer.add_scalar(name, value, step)
    finally:
        writer.close()
