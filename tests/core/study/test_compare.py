"""Winners are compared on the same tasks, task by task."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study.compare import compare
from metaopt.study.file import resolve
from metaopt.study.search import run
from metaopt.study.trial import Bench
from metaopt.terminal import Quiet

REGISTRY = plugins.load()
CPU = torch.device("cpu")
TASKS = {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
         "train_classes": 20, "validation_classes": 6, "test_classes": 8, "examples": 5}  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": TASKS,
    "learners": ["protonet"],
    "encoder": {"conv4": {"width": 8}},
    "trials": 1,
    "budget": {"tasks": 40},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 10},
}


def finished(folder: Path, **changes: Any) -> Path:
    torch.set_num_threads(1)
    run(Bench(resolve(STUDY | changes, "s.yaml", REGISTRY), REGISTRY, CPU), folder, Quiet())
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a trained study's folder, and one of the raw pixels."""
    folder = tmp_path_factory.mktemp("runs")
    return finished(folder / "a"), finished(folder / "b", learners=["pixels"], seed=1)


def compared(*folders: Path, pool: Any = "test", n_tasks: int = 60, seed: int = 1) -> dict[str, Any]:
    return compare(folders, REGISTRY, CPU, pool=pool, n_tasks=n_tasks, seed=seed)


def test_a_model_does_not_differ_from_itself_whether_named_by_its_run_or_by_its_own_folder(runs: Any) -> None:
    first, again = compared(runs[0], runs[0] / "best")["models"]
    assert first["difference"] is None
    assert again["difference"] == {"mean": 0.0, "ci95": 0.0, "p": 1.0, "told_apart": False}
    assert (first["mean"], first["ci95"]) == (again["mean"], again["ci95"])


def test_the_difference_is_that_of_the_means_and_its_interval_is_that_of_pairs(runs: Any) -> None:
    found = compared(*runs)
    first, other = found["models"]
    assert (first["learner"], other["learner"]) == ("protonet", "pixels")
    assert other["difference"]["mean"] == pytest.approx(other["mean"] - first["mean"])
    assert 0 < other["difference"]["ci95"] < first["ci95"] + other["ci95"]
    assert (found["pool"], found["tasks"], first["tasks"]) == ("test", 60, 60)


def test_the_other_way_round_the_sign_turns(runs: Any) -> None:
    # Of the same study seed the tasks are the same; another study's seed gives others.
    forth, back = compared(*runs, n_tasks=200), compared(*reversed(runs), n_tasks=200)
    sign = forth["models"][1]["difference"]["mean"] * back["models"][1]["difference"]["mean"]
    assert sign < 0


def test_another_seed_gives_other_tasks_and_the_same_one_the_same(runs: Any) -> None:
    assert compared(*runs) == compared(*runs)
    assert compared(*runs)["models"][0]["mean"] != compared(*runs, seed=2)["models"][0]["mean"]


def test_models_of_other_tasks_or_objectives_are_refused(runs: Any, tmp_path: Path) -> None:
    wider = finished(tmp_path / "c", tasks=TASKS | {"n_way": 4})
    with pytest.raises(
        UserError, match=r"was made for tasks of n_way 4 and .* for n_way 3; compare models of the same"
    ):
        compared(runs[0], wider)
    judged = finished(tmp_path / "d", objective="log_loss")
    with pytest.raises(UserError, match="was judged by log_loss and"):
        compared(runs[0], judged)
    trained_otherwise = finished(tmp_path / "e", tasks=TASKS | {"train_way": 4})
    assert compared(runs[0], trained_otherwise)["models"][1]["difference"] is not None
