"""Validation in folds: each class takes its turn in being scored on, groups stay whole, the winner sees them all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaopt import cli, plugins, seeds
from metaopt.errors import UserError
from metaopt.pools import ClassSampler
from metaopt.study import audit, leaderboard
from metaopt.study.compare import compare
from metaopt.study.file import resolve
from metaopt.study.model import load, load_with_bench
from metaopt.study.search import _needed, run
from metaopt.study.trial import Bench, Job
from metaopt.task import TaskSampler, in_folds
from metaopt.terminal import Quiet
from metaopt.train import Budget

CPU = torch.device("cpu")
REGISTRY = plugins.load()
GROUPS = {"a": 4, "b": 3, "c": 3, "d": 4}
"""Classes of each group of the train pool; the validation pool has one more, e, and the test pool f."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write vectors of 22 classes in six groups, eight of each."""
    draw = np.random.default_rng(0)
    sizes = GROUPS | {"e": 4, "f": 4}
    names = [f"{group}{number}" for group, size in sizes.items() for number in range(size)]
    means = draw.normal(size=(len(names), 6))
    y = np.repeat(np.arange(len(names)), 8)
    pool = {"e": "val", "f": "test"}
    path = tmp_path_factory.mktemp("folds") / "data.npz"
    np.savez(
        path,
        X=(means[y] + 0.5 * draw.normal(size=(len(y), 6))).astype(np.float32),
        y=np.array(names)[y],
        group=np.array([names[label][0] for label in y]),
        pool=np.array([pool.get(names[label][0], "train") for label in y]),
    )
    return path


def study_of(file: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "folds",
        "tasks": {"sampler": "arrays", "file": str(file), "n_way": 3, "n_shot": 1, "n_query": 3},
        "learners": {"protonet": {"temperature": {"low": 0.1, "high": 1.0}}},
        "encoder": {"mlp": {"width": 8, "depth": 1}},
        "trials": 2,
        "budget": {"tasks": 50},
        "evaluation": {"tasks": 23, "folds": 5, "finalists": 1, "report_tasks": 27},
        "final": {"tasks": 120},
        **changes,
    }


def bench_of(file: Path, **changes: Any) -> Bench:
    bench = Bench(resolve(study_of(file, **changes), "s.yaml", REGISTRY), REGISTRY, CPU)
    bench.check()
    return bench


def names(sampler: TaskSampler, pool: str) -> list[str]:
    assert isinstance(sampler, ClassSampler)
    return [one.name for one in sampler.classes[pool]]  # type: ignore[index]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_each_class_is_scored_on_in_one_fold_and_trained_on_in_the_others_and_groups_stay_whole(
    file: Path, n: int
) -> None:
    bench = bench_of(file, evaluation={"folds": n, "tasks": 20, "report_tasks": 20})
    everything = sorted([*names(bench.sampler, "train"), *names(bench.sampler, "validation")])
    assert len(everything) == 18
    assert sorted(name for fold in bench.folds for name in names(fold.sampler, "validation")) == everything
    for fold in bench.folds:
        kept, trained = names(fold.sampler, "validation"), names(fold.sampler, "train")
        assert sorted([*kept, *trained]) == everything
        assert {name[0] for name in kept}.isdisjoint(name[0] for name in trained)
        assert names(fold.sampler, "test") == names(bench.sampler, "test") == ["f0", "f1", "f2", "f3"]
        assert fold.spec.n_train_classes == len(trained)
    assert sorted(names(bench.last.sampler, "train")) == everything


def test_folds_have_about_as_many_classes_and_each_unit_stands_in_one() -> None:
    units = {f"u{number}": size for number, size in enumerate([9, 1, 5, 5, 4, 2, 2, 1, 1])}
    folds = in_folds(units, 3, "groups")
    assert sorted(unit for fold in folds for unit in fold) == sorted(units)
    assert [sum(units[unit] for unit in fold) for fold in folds] == [10, 10, 10]


def test_classes_without_groups_are_the_units(file: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(file))
    np.savez(tmp_path / "plain.npz", X=arrays["X"], y=arrays["y"], pool=arrays["pool"])
    bench = bench_of(tmp_path / "plain.npz", evaluation={"folds": 3, "tasks": 20, "report_tasks": 20})
    assert [len(names(fold.sampler, "validation")) for fold in bench.folds] == [6, 6, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"folds": 9}}, "evaluation.folds is 9 and the train and validation pools have 5 groups toge"),
        ({"evaluation": {"folds": 1}}, "evaluation.folds: one fold leaves nothing to train on; set 2 or more"),
        ({"evaluation": {"folds": 5, "tasks": 4}}, "evaluation.tasks: 4 .* 5 or more"),
        ({"search_on": "test"}, "evaluation.folds: the train and validation pools are divided .* on the test pool"),
        ({"search_on": "test", "evaluation": {}}, "final: the train and validation pools are divided or put togethe"),
        (
            {"tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1}},
            "'gaussian' cannot divide its classes into folds; leave out evaluation.folds",
        ),
        (
            {"tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1}, "evaluation": {}},
            "'gaussian' cannot put its pools together; leave out final",
        ),
        (
            {"tasks": {"sampler": "arrays", "file": "", "n_way": 4, "n_shot": 1, "n_query": 3, "within": 1}},
            "4-way tasks need 4 classes and the validation pool has 3; set tasks.n_way to 3 or less",
        ),
    ],
)
def test_folds_that_cannot_be_are_refused_in_a_sentence(file: Path, changes: dict[str, Any], message: str) -> None:
    tasks = changes.get("tasks", {})
    changes = changes | ({"tasks": tasks | {"file": str(file)}} if "file" in tasks else {})
    with pytest.raises(UserError, match=message) as refused:
        bench_of(file, **changes)
    assert "\n" not in str(refused.value)


def test_a_trial_is_trained_once_a_fold_for_its_share_and_scored_on_each_folds_own_tasks(file: Path) -> None:
    bench = bench_of(file)
    params = bench.study.space.default("protonet")
    done = bench.run(Job(0, params, 7, Budget(tasks=50), "validation", "search", 23))
    assert (done.result.state, done.result.trained_tasks, done.result.planned_tasks) == ("complete", 50, 50)
    assert done.result.tasks == len(done.per_task) == 23
    alone = []
    for fold, n_tasks in zip(bench.folds, (5, 5, 5, 4, 4), strict=True):
        alone += fold.run(Job(0, params, 7, Budget(tasks=10), "validation", "search", n_tasks)).per_task
    assert list(done.per_task) == alone
    assert done.result.mean == pytest.approx(np.mean(alone))


def test_seconds_are_measured_in_the_first_fold_and_all_are_trained_alike(file: Path) -> None:
    bench = bench_of(file, budget={"cpu_seconds": 0.5})
    params = bench.study.space.default("protonet")
    done = bench.run(Job(0, params, 7, bench.study.budget, "validation", "search", 23))
    assert done.result.trained_tasks % 5 == 0
    again = Budget(tasks=done.result.trained_tasks, planned=done.result.planned_tasks)
    assert bench.run(Job(0, params, 7, again, "validation", "search", 23)).per_task == done.per_task


def test_a_trial_is_raced_along_its_folds_on_the_tasks_that_all_trials_share(file: Path) -> None:
    bench = bench_of(file, evaluation={"tasks": 400, "folds": 5})
    heard: list[int] = []

    def report(progress: float, scores: tuple[float, ...]) -> bool:
        heard.append(len(scores))
        return len(scores) >= 100

    params = bench.study.space.default("protonet")
    done = bench.run(Job(0, params, 7, Budget(tasks=50), "validation", "search", 400, reports=True), report)
    assert done.result.state == "pruned"
    assert done.result.tasks == heard[-1] < 400
    assert done.result.trained_tasks < 50, "the folds after it are spared"


def test_a_study_in_folds_ends_with_a_winner_that_was_trained_on_all_classes(file: Path, tmp_path: Path) -> None:
    bench = bench_of(file)
    board = run(bench, tmp_path, Quiet())
    [winner] = board["finalists"]
    assert board["status"] == "finished"
    assert winner["final"]["trained_tasks"] == 120
    assert (winner["search"]["tasks"], winner["fresh"]["tasks"], winner["report"]["tasks"]) == (23, 27, 27)
    assert leaderboard.read(tmp_path) == json.loads(json.dumps(board))
    model = load(tmp_path / "best", REGISTRY, CPU)
    assert (model.spec.n_train_classes, model.config["trained_tasks"]) == (18, 120)
    learner, last, config = load_with_bench(tmp_path / "best", REGISTRY, CPU)
    again = last.score(learner.eval(), "test", "report", 27)
    assert again.mean == winner["report"]["mean"] == config["report"]["mean"]
    assert {finding.status for finding in audit.audit(tmp_path, REGISTRY, CPU)} <= {"ok", "note"}


def test_the_winner_is_the_search_pipeline_trained_from_a_seed_of_its_own(file: Path, tmp_path: Path) -> None:
    bench = bench_of(file)
    board = run(bench, tmp_path, Quiet())
    winner = board["finalists"][0]
    seed = seeds.derive(bench.study.seed, "finalist", winner["trial"], 1)
    job = Job(winner["trial"], winner["params"], seed, Budget(tasks=120), "test", "report", 27, final=True)
    assert bench.run(job).result.mean == winner["report"]["mean"]


def test_without_a_final_budget_the_winner_of_folds_is_trained_as_long_as_a_trial(file: Path) -> None:
    raw = study_of(file)
    del raw["final"]
    assert resolve(raw, "s.yaml", REGISTRY).final == Budget(tasks=50)
    raw["evaluation"] = {}
    assert resolve(raw, "s.yaml", REGISTRY).final is None


def test_a_final_training_needs_no_folds(file: Path, tmp_path: Path) -> None:
    board = run(bench_of(file, evaluation={"tasks": 20, "finalists": 2, "report_tasks": 20}), tmp_path, Quiet())
    assert board["finalists"][0]["final"]["trained_tasks"] == 120
    assert load(tmp_path / "best", REGISTRY, CPU).spec.n_train_classes == 18


def test_time_for_the_final_training_is_kept_free(file: Path) -> None:
    bench = bench_of(file, timeout="60s")
    params = bench.study.space.default("protonet")
    result = bench.run(Job(0, params, 7, Budget(tasks=50), "validation", "search", 23)).result
    without = bench_of(file, timeout="60s", final=None, evaluation={"tasks": 23})

    class OneWorker:
        idle, busy = 1, 0

    training = result.seconds - result.evaluation_seconds
    crew: Any = OneWorker()
    more = _needed(bench, [result], 23, 1, crew) - _needed(without, [result], 23, 1, crew)
    assert more == pytest.approx(1.05 * 120 / 50 * training)


def test_models_that_saw_the_validation_pool_are_not_compared_on_it(file: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        run(bench_of(file, seed=number), tmp_path / str(number), Quiet())
    models = [tmp_path / str(number) / "best" for number in (0, 1)]
    with pytest.raises(UserError, match="was meta-trained on the classes of the validation pool, too"):
        compare(models, REGISTRY, CPU, pool="validation", n_tasks=20, seed=0)
    assert compare(models, REGISTRY, CPU, pool="test", n_tasks=20, seed=0)["tasks"] == 20


def test_every_command_works_on_a_run_in_folds_whose_data_have_no_validation_pool(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = dict(np.load(file))
    kept = arrays["pool"] != "val"
    np.savez(tmp_path / "two.npz", **{name: array[kept] for name, array in arrays.items()})
    folder = tmp_path / "run"
    evaluation = {"tasks": 20, "folds": 2, "report_tasks": 20}
    board = run(bench_of(tmp_path / "two.npz", evaluation=evaluation), folder, Quiet())
    assert not (folder / "checkpoints").exists()
    assert sorted(path.name for path in (folder / "finalists").glob("*.safetensors")) == ["final.safetensors"]
    for command in (["study", "show"], ["study", "audit"], ["study", "report"]):
        assert cli.main([*command, str(folder)]) == 0
    assert cli.main(["evaluate", str(folder / "best"), "--tasks", "20"]) == 0
    said = capsys.readouterr().out
    assert "meta-trained once more for that, on the train and validation classes together: 120 tasks" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    right = 100 * board["finalists"][0]["report"]["mean"]
    assert f"The winner's answers on 20 test tasks, {right:.1f} % of them right" in page
    assert "of finalists in folds no weights are kept" in page
