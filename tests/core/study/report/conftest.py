"""Run folders to report on: a quick real one, and a large one whose trials did nothing."""

import math
import random
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from metaopt import plugins
from metaopt.cli import main
from metaopt.files import write_json, write_text
from metaopt.study import leaderboard, report
from metaopt.study.file import resolve
from metaopt.study.search import Finalist
from metaopt.study.storage import open_storage
from metaopt.study.trial import Bench, Done, TrialResult
from metaopt.train import Scores

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": {"maml": {"test_steps": 2}, "pixels": {}},
    "encoder": {"conv4": {"width": 8, "pool": "stride"}},
    "trials": 5,
    "prune": False,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 3, "report_tasks": 20},
}  # fmt: skip
LARGE: dict[str, Any] = {
    "name": "large",
    "tasks": TINY["tasks"],
    "learners": ["protonet", "maml", "reptile", "pretrain", "pixels"],
    "encoder": {"conv4": {"width": [32, 64]}},
    "outer": {"lr": {"low": 1e-3, "high": 1e-2}, "schedule": ["constant", "cosine"]},
    "trials": 1000,
}


NAMES = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><b onmouseover=alert(1)>',
    "a & b < c > d",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;already&gt;",
    "fünf 五",
    "%{x}<extra></extra>",
    "' or name",
)
"""Of classes, each with something that a page could take for its own."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a quick study that came to its end."""
    return run(tmp_path_factory.mktemp("finished"), TINY)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a study of 1,000 trials."""
    return synthetic(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a study of pictures whose classes have such names."""
    folder = tmp_path_factory.mktemp("named")
    luck = np.random.default_rng(0)
    pictures = luck.integers(0, 256, (len(NAMES) * 4, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", X=pictures, y=np.array([NAMES[at % len(NAMES)] for at in range(len(pictures))]))
    pools = {"validation": list(NAMES[:3]), "test": list(NAMES[3:6]), "train": list(NAMES[6:])}
    tasks = {"sampler": "arrays", "file": str(folder / "data.npz"), "n_way": 3, "n_shot": 1, "n_query": 2, **pools}
    return run(folder, TINY | {"name": "named", "tasks": tasks, "learners": ["pixels"], "trials": 1})


@pytest.fixture
def names() -> tuple[str, ...]:
    """Return the names of that study's classes."""
    return NAMES


@pytest.fixture(scope="session")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of that quick study."""
    return written(finished, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def large_page(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of that large study."""
    return written(large, tmp_path_factory.mktemp("page") / "report.html")


def written(folder: Path, path: Path) -> Path:
    """Write the report of a run folder and return its path."""
    return report.write(folder, plugins.load(), torch.device("cpu"), output=path).path


def run(folder: Path, study: dict[str, Any]) -> Path:
    """Run a study and return its folder."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    assert main(["study", "run", str(path), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def synthetic(folder: Path, n_trials: int = 1000) -> Path:
    """Write the run folder of a study of so many trials, in a real storage, and return it; nothing was trained."""
    registry, luck = plugins.load(), random.Random(0)
    bench = Bench(resolve(LARGE, "large.yaml", registry), registry, torch.device("cpu"))
    memory = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    results, now = [], datetime(2026, 1, 1)
    for number in range(n_trials):
        trial = memory.ask()
        params = bench.study.space.suggest(trial)
        score = _score(params, luck)
        state = luck.choices(["complete", "raced", "pruned", "failed"], [60, 10, 27, 3])[0]
        result = TrialResult(
            number, "pruned" if state == "raced" else state, params["learner"], params, number, seconds=2.0,
            trained_tasks=1200, planned_tasks=1200, cpu_seconds=1.5, parameters=28_320,
        )  # fmt: skip
        for share in (25, 50) if state != "pruned" else (25,):
            trial.report(score * (0.6 + share / 250) + luck.gauss(0, 0.01), share)
        match state:
            case "complete":
                result = replace(result, mean=score, ci95=0.015, median=score, tasks=200)
                memory.tell(trial, score)
            case "raced":
                result = replace(result, estimate=score - 0.05, tasks=40, reason="beaten")
                memory.tell(trial, score - 0.05)
            case _:
                result = replace(result, reason=f"it came to be {state}")
                memory.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        results.append(result)
    folder.mkdir(parents=True, exist_ok=True)
    trials = memory.get_trials(deepcopy=False)
    for trial, result in zip(trials, results, strict=True):
        trial.user_attrs["result"] = asdict(result)
        trial.datetime_start = now + timedelta(seconds=2.5 * trial.number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=2)
    optuna.create_study(direction="maximize", study_name="large", storage=open_storage(folder)).add_trials(trials)
    finalists = []
    for result in leaderboard.ranked(bench, results)[:3]:
        per_task = torch.tensor([result.mean or 0.0] * 500, dtype=torch.float64) + 0.1 * torch.randn(500)
        fresh = Scores(per_task - 0.02)
        finalists.append(Finalist(result, (Done(replace(result, mean=fresh.mean)),), Path("weights"), fresh))
    board = leaderboard.build(bench, results, finalists, [], finalists[0].fresh, 2500.0, "finished")
    write_json(folder / leaderboard.FILE, board)
    write_text(folder / "study.yaml", bench.study.to_yaml())
    return folder


def _score(params: dict[str, Any], luck: random.Random) -> float:
    base = {"protonet": 0.78, "maml": 0.68, "reptile": 0.6, "pretrain": 0.72, "pixels": 0.54}[params["learner"]]
    rate = params.get("outer.lr")
    loss = 0.1 * (math.log10(rate) + 2.4) ** 2 if rate else 0.0
    return min(1.0, base - loss + luck.gauss(0, 0.012))
