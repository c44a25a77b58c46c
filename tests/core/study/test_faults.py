"""Studies are killed, frozen, and their disks filled: nothing that was finished is lost or counted twice."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are provoked by Linux's own means")

HERE = Path(__file__).parents[3] / "benchmarks" / "torture.py"
spec = importlib.util.spec_from_file_location("torture", HERE)
assert spec
assert spec.loader
torture: Any = importlib.util.module_from_spec(spec)
sys.modules["torture"] = torture
spec.loader.exec_module(torture)
Moment = torture.Moment


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder in memory where there is one: a study writes to its disk some seventy times, and waits."""
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    folder = tmp_path_factory.mktemp("faults")
    if os.access(memory, os.W_OK):
        folder = memory / f"metaopt-faults-{os.getpid()}"
        folder.mkdir()
    before = os.environ.get("METAOPT_DISABLE_PLUGINS")
    os.environ["METAOPT_DISABLE_PLUGINS"] = "tensorboard,mlflow"
    yield folder
    os.environ.pop("METAOPT_DISABLE_PLUGINS")
    if before is not None:
        os.environ["METAOPT_DISABLE_PLUGINS"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(home: Path) -> Any:
    """Return studies that run in one process."""
    (home / "alone").mkdir()
    return torture.Victims(home / "alone")


@pytest.fixture(scope="module")
def two(home: Path) -> Any:
    """Return studies that have two workers."""
    (home / "two").mkdir()
    return torture.Victims(home / "two", workers=2)


def goes_on(victims: Any, folder: Path) -> None:
    """Go on with a study that was disturbed; it ends as if it had not been."""
    before = torture.records(folder)
    assert torture.end(victims.begin(folder)) == 0, victims.said(folder)
    assert victims.whole(folder) == []
    assert (victims.lost(before, folder), victims.doubled(folder)) == (0, 0)


# Killed

STUDY_DIES = {
    "before anything": Moment("Ledger.__init__"),
    "while it stores the study": Moment("CheckedJournal.append_logs", "return", 2),
    "while it chooses": Moment("CheckedJournal.append_logs", "call", 15),
    "in meta-training": Moment("Learner.outer_step", nth=3),
    "in evaluation": Moment("predict", nth=4),
    "between scoring and storing": Moment("Ledger.tell", nth=2),
    "between scores and result": Moment("write_scores", "return", 3),
    "between result and state": Moment("Ledger._close", nth=3),
    "after the last trial": Moment("_finalists"),
    "between a finalist's weights and scores": Moment("write_scores", nth=5),
    "before the report": Moment("_report"),
    "before best/": Moment("save"),
    "in the middle of best/": Moment("_write_config"),
    "after best/": Moment("_put", "return"),
    "while it writes the leaderboard": Moment("_sync_folder", nth=12),
}


@pytest.mark.parametrize("moment", STUDY_DIES.values(), ids=STUDY_DIES)
def test_a_study_that_is_killed_goes_on_as_if_it_had_not_been(alone: Any, moment: Any) -> None:
    folder = alone.folder()
    assert torture.end(alone.begin(folder, moment)) == -signal.SIGKILL, alone.said(folder)
    goes_on(alone, folder)


WORKER_DIES = {
    "in meta-training": Moment("Learner.outer_step", nth=2, worker=True),
    "in evaluation": Moment("predict", nth=2, worker=True),
    "between scoring and storing": Moment("Bench.run", "return", worker=True),
    "while it saves weights": Moment("whole", worker=True),
}


@pytest.mark.parametrize("moment", WORKER_DIES.values(), ids=WORKER_DIES)
def test_a_worker_that_is_killed_is_replaced_and_its_trial_is_run_again(two: Any, moment: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, moment)
    assert torture.end(process) == 0, two.said(folder)
    assert two.acted(folder)
    assert torture.gone(process, within=5)
    goes_on(two, folder)


@pytest.mark.parametrize("moment", WORKER_DIES.values(), ids=WORKER_DIES)
def test_a_study_that_is_killed_leaves_no_worker_behind_and_goes_on(two: Any, moment: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, moment, torture.kill_study)
    assert torture.end(process) == -signal.SIGKILL, two.said(folder)
    assert torture.gone(process, within=5)
    goes_on(two, folder)
