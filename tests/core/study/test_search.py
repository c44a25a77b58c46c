"""Studies run from beginning to end, are interrupted and killed, and come to the same leaderboard all the same."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from metaopt import plugins, seeds
from metaopt.errors import UserError
from metaopt.study import audit, leaderboard, search
from metaopt.study.crew import Alone
from metaopt.study.file import resolve
from metaopt.study.ledger import ATTEMPTS
from metaopt.study.search import run
from metaopt.study.storage import open_storage
from metaopt.study.trial import Bench, Job, TrialResult
from metaopt.terminal import Quiet
from metaopt.train import Budget

# A task sampler that notes what is drawn from it, learners with peculiar fates, and an observer.
LAB = '''
import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
from metaopt import tune
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.nn import class_means, squared_distances
from metaopt.task import TaskBatch, TaskSampler, TaskSpec

drawn, observed, ended = [], [], []

class Points(TaskSampler):
    name, kind, encoder = "points", "classification", "mlp"

    def spec(self, n_way, n_shot, n_query):
        return TaskSpec("classification", (2,), n_way, n_shot, n_query)

    def draw(self, pool, spec, n_tasks, generator):
        means = torch.randn(n_tasks, spec.n_way, 1, 2, generator=generator)
        n, k = spec.n_shot + spec.n_query, spec.n_shot
        x = means + 0.6 * torch.randn(n_tasks, spec.n_way, n, 2, generator=generator)
        y = torch.arange(spec.n_way)[:, None].expand(n_tasks, spec.n_way, n)
        drawn.append((pool, generator.initial_seed(), n_tasks, float(x.sum())))
        return TaskBatch(x[:, :, :k].flatten(1, 2), y[:, :, :k].flatten(1), x[:, :, k:].flatten(1, 2), y[:, :, k:].flatten(1))

class Toy(Learner):
    """Nearest class mean, behind one weight."""
    name = "toy"
    uses_encoder = False

    @dataclass(frozen=True)
    class Config:
        strength: float = tune.real(0.1, 10.0, log=True, default=1.0)

    def __init__(self, spec, encoder, config):
        super().__init__(spec, encoder, config)
        self.weight = nn.Parameter(torch.randn(2))

    def forward(self, support_x, support_y, query_x):
        scale = self.config.strength * self.weight
        return -squared_distances(query_x * scale, class_means(support_x * scale, support_y, self.spec.n_way))

class Blind(Toy):
    """Sees nothing where it is blind."""
    name = "blind"

    @dataclass(frozen=True)
    class Config:
        strength: float = tune.real(0.1, 10.0, log=True, default=1.0)
        blind: bool = tune.choice(False, True)

    def forward(self, support_x, support_y, query_x):
        return super().forward(support_x, support_y, 0 * query_x if self.config.blind else query_x)

class Raises(Toy):
    name = "raises"

    def forward(self, support_x, support_y, query_x):
        raise ValueError("no [/such] luck")

class TurnsNan(Toy):
    name = "turns_nan"

    def forward(self, support_x, support_y, query_x):
        return super().forward(support_x, support_y, query_x) * float("nan")

class Mortal(Toy):
    """Kills its process when its fuse, the number of steps in a file, has burnt down, once; "forever": each time."""
    name = "mortal"

    def outer_step(self, *args):
        fuse = Path(os.environ["ACME_FUSE"])
        if fuse.exists():
            text = fuse.read_text()
            if text != "forever":
                fuse.write_text(str(int(text) - 1)) if int(text) else fuse.unlink()
            if text in ("0", "forever"):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().outer_step(*args)

class Faulty(Toy):
    """Reads what is not its own."""
    name = "faulty"

    def forward(self, support_x, support_y, query_x):
        ctypes.string_at(0)

class Fickle(Toy):
    """Learns until it is told not to."""
    name, tired = "fickle", False

    def outer_step(self, *args):
        if Fickle.tired:
            raise OSError("enough")
        return super().outer_step(*args)

class Sluggish(Toy):
    """Never gets far."""
    name = "sluggish"

    def outer_step(self, *args):
        time.sleep(0.5)
        return super().outer_step(*args)

class Ponderous(Toy):
    """Learns fast, and thinks about each answer."""
    name = "ponderous"

    def forward(self, *args):
        until = time.process_time() + (0.0 if self.training else 0.2)
        while time.process_time() < until:
            pass
        return super().forward(*args)

@hookimpl
def register_task_samplers():
    return [Points]

@hookimpl
def register_learners():
    return [Toy, Blind, Raises, TurnsNan, Mortal, Faulty, Fickle, Sluggish, Ponderous]

@hookimpl
def trial_finished(result):
    observed.append(result)

@hookimpl
def study_finished(leaderboard, study, folder):
    ended.append((leaderboard, study, folder))
    raise OSError("too late to spoil anything")
'''  # noqa: E501
METADATA = "Metadata-Version: 2.1\nName: acme-lab\nVersion: 1.5\n"

STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "points", "n_way": 3, "n_shot": 2, "n_query": 4},
    "learners": ["toy", "protonet"],
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"lr": None, "tasks_per_step": 4},
    "trials": 6,
    "budget": {"tasks": 16},
    "evaluation": {"tasks": 20, "finalists": 3, "report_tasks": 40},
}
PICTURES: dict[str, Any] = {
    "name": "pictures",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": ["protonet", "pixels"],
    "encoder": {"conv4": {"width": 8}},
    "trials": 4,
    "budget": {"tasks": 12},
    "evaluation": {"tasks": 10, "finalists": 2, "report_tasks": 30},
}  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install the laboratory as a distribution that other processes find too, and return its module."""
    torch.set_num_threads(1)
    site = tmp_path / "site"
    info = site / "acme_lab-1.5.dist-info"
    info.mkdir(parents=True)
    (site / "acme_lab.py").write_text(LAB)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text("[metaopt]\nlab = acme_lab\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("ACME_FUSE", str(tmp_path / "fuse"))
    import acme_lab  # type: ignore[import-not-found]

    yield acme_lab
    del sys.modules["acme_lab"]


def bench_of(**changes: Any) -> Bench:
    registry = plugins.load()
    return Bench(resolve(STUDY | changes, "s.yaml", registry), registry, torch.device("cpu"))


def study(folder: Path, *, watcher: Quiet | None = None, options: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Run a study, or go on with it, and return its leaderboard."""
    board = run(bench_of(**changes), folder, watcher or Quiet(), **(options or {}))
    assert board == leaderboard.read(folder)
    return board


def timeless(board: Any) -> Any:
    """Return a leaderboard, or a part of it, without the times that things took."""
    if isinstance(board, dict):
        return {key: timeless(value) for key, value in board.items() if key not in {"seconds", "cpu_seconds"}}
    return [timeless(item) for item in board] if isinstance(board, list) else board


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=open_storage(folder)).trials


def results(folder: Path) -> list[dict[str, Any]]:
    """Return what the trials came to, those that wait left out."""
    return [trial.user_attrs["result"] for trial in trials(folder) if "result" in trial.user_attrs]


# The leaderboard


def test_a_study_of_pictures_ends_with_a_winner_and_all_that_it_promises(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    board = study(tmp_path / "run", **PICTURES)
    assert (board["study"], board["status"], board["seed"]) == ("pictures", "finished", 0)
    assert (board["objective"], board["direction"], board["search_on"]) == ("accuracy", "maximize", "validation")
    assert sum(board["trials"].values()) == 4
    assert board["trials"]["complete"] >= 2
    assert board["failures"] == []
    assert board["versions"].keys() >= {"metaopt-fewshot", "torch", "optuna", "numpy"}
    assert 0 < board["seconds"] < 600
    assert [entry["rank"] for entry in board["finalists"]] == [1, 2]
    for entry in board["finalists"]:
        assert entry.keys() >= {"rank", "trial", "learner", "params", "search", "report"}
        assert (entry["search"]["tasks"], entry["report"]["tasks"]) == (10, 30)
        for score in (entry["search"], entry["report"]):
            assert 0.0 <= score["mean"] <= 1.0
            assert 0.0 <= score["ci95"] < 1.0
    names = {path.name for path in (tmp_path / "run").iterdir()} - {"tensorboard"}  # an observer's, where installed
    assert names == {".lock", "journal.log", "study.yaml", "leaderboard.json", "scores", "finalists", "report.npy",
                     "portfolio.json", "tested.jsonl", "versions.json", "best"}  # fmt: skip
    assert {path.name for path in (tmp_path / "run" / "best").iterdir()} == {
        "weights.safetensors",
        "config.json",
        "MODEL.md",
    }
    strict: Any = json.loads((tmp_path / "run" / "leaderboard.json").read_text(), parse_constant=pytest.fail)
    assert strict == board


def test_the_same_study_and_seed_give_the_same_leaderboard_bit_for_bit(lab: Any, tmp_path: Path) -> None:
    first, second, other = (study(tmp_path / folder, seed=seed) for folder, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert timeless(first) == timeless(second)
    assert first["finalists"] != other["finalists"]


def test_a_study_of_pictures_gives_the_same_leaderboard_twice(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert timeless(study(tmp_path / "a", **PICTURES)) == timeless(study(tmp_path / "b", **PICTURES))


def test_finalists_are_ranked_by_a_fresh_score_and_only_the_winner_sees_the_test_pool(lab: Any, tmp_path: Path) -> None:
    evaluation = STUDY["evaluation"] | {"finalists": 6}
    board = study(tmp_path / "a", trials=8, learners=["toy", "blind", "protonet"], evaluation=evaluation)
    winner, *others = board["finalists"]
    fresh = [entry["fresh"]["mean"] for entry in board["finalists"]]
    assert fresh == sorted(fresh, reverse=True)
    searched = sorted((result["mean"] for result in results(tmp_path / "a") if result["mean"]), reverse=True)
    assert {entry["search"]["mean"] for entry in board["finalists"]} <= set(searched)
    assert max(entry["search"]["mean"] for entry in board["finalists"]) == searched[0]
    assert all(entry["search"] != entry["fresh"] for entry in board["finalists"])
    assert (winner["report"]["pool"], winner["report"]["tasks"]) == ("test", 40)
    for entry in others:
        assert entry["report"] == entry["fresh"]
        assert (entry["report"]["pool"], entry["report"]["tasks"]) == ("validation", 40)
    assert [entry["trial"] for entry in board["finalists"]] != sorted(
        (entry["trial"] for entry in board["finalists"]), key=lambda number: -results(tmp_path / "a")[number]["mean"]
    ), "here the fresh order is another than that of the search, so that it is seen which one ranks"


def test_search_finalists_and_report_are_scored_on_different_tasks(lab: Any, tmp_path: Path) -> None:
    study(tmp_path / "a")
    n_tasks = Counter[tuple[str, int]]()
    for pool, seed, n, _ in lab.drawn:
        n_tasks[pool, seed] += n
    scored = {key: n for key, n in n_tasks.items() if key[0] != "train"}
    search, finalists, report = (
        (pool, seeds.derive(0, "evaluate", pool, purpose))
        for pool, purpose in (("validation", "search"), ("validation", "finalists"), ("test", "report"))
    )
    assert scored.keys() == {search, finalists, report}
    assert scored[report] == 40, "the winner alone"
    assert scored[finalists] == 3 * 40
    assert scored[search] >= 6 * 20, "all trials, and rungs"
    sums: dict[Any, set[float]] = {key: set() for key in scored}
    for pool, seed, n, total in lab.drawn:
        if pool != "train" and n == 16:
            sums[pool, seed].add(total)
    assert len(sums[search]) == 1, "each trial the same first sixteen tasks"
    assert len(sums[finalists]) == 2, "each finalist the same two times sixteen"
    assert sums[search].isdisjoint(sums[finalists])
    trained = {seed for pool, seed, *_ in lab.drawn if pool == "train"}
    others = "the temperature, and what tasks are like"
    assert len(trained) == 6 + 3 + 2, f"each trial and each finalist on train tasks of its own, and {others}"


def test_a_study_that_searches_on_the_test_pool_says_so(
    lab: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from metaopt.terminal import show_board

    board = study(tmp_path / "a", search_on="test")
    assert board["search_on"] == "test"
    assert {pool for pool, *_ in lab.drawn} == {"train", "test"}
    assert all(entry["search"]["pool"] == "test" for entry in board["finalists"])
    show_board(board, tmp_path / "a")
    assert "searched on the test pool itself, so its scores are too good" in capsys.readouterr().out


def test_scores_task_by_task_have_the_mean_that_is_told(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", learners=["toy", "raises", "protonet"])
    for result in results(tmp_path / "a"):
        path = tmp_path / "a" / "scores" / f"{result['number']:05d}.npy"
        assert path.exists() == (result["state"] == "complete")
        if result["state"] == "complete":
            scores = np.load(path)
            assert len(scores) == 20
            assert result["mean"] == torch.from_numpy(scores).mean().item()
            ci95 = 1.96 * scores.std(ddof=1) / math.sqrt(20)
            assert result["ci95"] == pytest.approx(ci95, rel=1e-12)
    for entry in board["finalists"]:
        assert entry["search"]["mean"] == results(tmp_path / "a")[entry["trial"]]["mean"]


def test_every_finished_trial_is_shown_to_observers_once(lab: Any, tmp_path: Path) -> None:
    study(tmp_path / "a", trials=3, learners=["toy", "raises"])
    assert [(result.number, result.state) for result in lab.observed] == [
        (0, "complete"), (1, "failed"), (2, lab.observed[2].state)
    ]  # fmt: skip
    assert all(isinstance(result, TrialResult) for result in lab.observed)
    study(tmp_path / "a", trials=4, learners=["toy", "raises"])
    assert [result.number for result in lab.observed] == [0, 1, 2, 3]


def test_observers_are_shown_the_end_of_a_study_each_time_it_ends(lab: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    study(folder, options={"stopped": Stopper(10)})
    assert lab.ended == [], "it was interrupted"
    board = study(folder)
    [(shown, described, where)] = lab.ended
    assert (shown, where) == (board, folder)
    assert (described["name"], described["trials"]) == ("s", 6)
    assert board["status"] == "finished", "although its observer failed"
    study(folder)
    assert len(lab.ended) == 1, "nothing was left to do"
    study(folder, trials=7)
    assert len(lab.ended) == 2


# Trials in processes of their own


def test_isolated_trials_come_to_the_same_leaderboard(lab: Any, tmp_path: Path) -> None:
    alone = study(tmp_path / "a")
    limits = {"time": "5m", "memory": "2GB"}
    for workers in (1, 2):
        board = study(tmp_path / f"b{workers}", isolation="process", limits=limits, options={"workers": workers})
        if workers == 1:
            assert timeless(board) == timeless(alone)
        assert sum(board["trials"].values()) == sum(alone["trials"].values())


def test_a_learner_that_crashes_its_process_fails_its_trials_and_the_study_goes_on(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", learners=["faulty", "toy"], isolation="process", trials=4)
    assert board["status"] == "finished"
    [failure] = board["failures"]
    assert failure["learner"] == "faulty"
    assert re.fullmatch(r"its process was killed by SIGSEGV at acme_lab\.py:\d+", failure["reason"])
    attempts = [trial.user_attrs["attempts"] for trial in trials(tmp_path / "a")]
    assert attempts == [1] * 4, "it would crash again"


def test_isolation_may_change_when_a_study_goes_on(lab: Any, tmp_path: Path) -> None:
    study(tmp_path / "a", trials=1)
    board = study(tmp_path / "a", trials=2, isolation="process", limits={"time": "5m"})
    assert board["trials"]["complete"] == 2


# Counts


@pytest.mark.parametrize("workers", [1, 2])
def test_trials_mean_as_many_as_finish_also_where_a_study_goes_on(lab: Any, tmp_path: Path, workers: int) -> None:
    learners = ["toy", "raises", "protonet"]
    for wanted in (1, 5, 9):
        board = study(tmp_path / "a", trials=wanted, learners=learners, options={"workers": workers})
        assert sum(board["trials"].values()) == wanted
        assert Counter(result["state"] for result in results(tmp_path / "a")) == Counter(board["trials"])
    assert board["trials"]["failed"] >= 1
    assert all(trial.state.is_finished() for trial in trials(tmp_path / "a"))


def test_the_defaults_come_first_in_the_files_order_with_two_workers_too(lab: Any, tmp_path: Path) -> None:
    learners = ["protonet", "blind", "toy"]
    study(tmp_path / "a", learners=learners, options={"workers": 2})
    assert [result["learner"] for result in results(tmp_path / "a")][:3] == learners
    space = bench_of(learners=learners).study.space
    assert [result["params"] for result in results(tmp_path / "a")][:3] == [space.default(name) for name in learners]


def test_two_workers_score_a_pipeline_as_one_does(lab: Any, tmp_path: Path) -> None:
    study(tmp_path / "a", trials=2)
    study(tmp_path / "b", trials=2, options={"workers": 2})
    assert [result["mean"] for result in results(tmp_path / "a")] == [r["mean"] for r in results(tmp_path / "b")]


# Interrupted and killed


class Stopper:
    """Interrupts a study when it has been asked so many times whether it is interrupted."""

    def __init__(self, after: float = math.inf) -> None:
        self.after, self.asked = after, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.after


def test_a_study_that_is_interrupted_anywhere_goes_on_to_the_same_leaderboard(lab: Any, tmp_path: Path) -> None:
    learners = ["toy", "raises", "protonet", "blind"]
    counter = Stopper()
    whole = study(tmp_path / "whole", learners=learners, options={"stopped": counter})
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.999):
        folder = tmp_path / f"{share}"
        cut = study(folder, learners=learners, options={"stopped": Stopper(share * counter.asked)})
        assert cut["status"] == "interrupted"
        assert not (folder / "best").exists()
        assert all(entry["report"] is None for entry in cut["finalists"])
        assert sum(cut["trials"].values()) <= 6
        assert timeless(study(folder, learners=learners)) == timeless(whole)


def test_a_study_that_is_interrupted_again_and_again_goes_on_to_the_same_leaderboard(lab: Any, tmp_path: Path) -> None:
    whole = study(tmp_path / "whole")
    board: dict[str, Any] = {"status": "interrupted"}
    sittings = 0
    while board["status"] == "interrupted":
        sittings += 1
        board = study(tmp_path / "a", options={"stopped": Stopper(25 * sittings)})
    assert sittings > 2
    assert timeless(board) == timeless(whole)


def test_two_interrupted_workers_put_their_trials_back(lab: Any, tmp_path: Path) -> None:
    cut = study(tmp_path / "a", trials=8, budget={"tasks": 100}, options={"workers": 2, "stopped": Stopper(8)})
    assert cut["status"] == "interrupted"
    assert sum(cut["trials"].values()) < 8
    board = study(tmp_path / "a", trials=8, budget={"tasks": 100}, options={"workers": 2})
    assert sum(board["trials"].values()) == 8
    assert [trial.number for trial in trials(tmp_path / "a")] == list(range(8))


RUN = """
import json, sys
from pathlib import Path
import torch
from metaopt import plugins
from metaopt.study.file import resolve
from metaopt.study.search import run
from metaopt.study.trial import Bench
from metaopt.terminal import Quiet

torch.set_num_threads(1)
registry = plugins.load()
bench = Bench(resolve(json.loads(sys.argv[1]), "s.yaml", registry), registry, torch.device("cpu"))
run(bench, Path(sys.argv[2]), Quiet())
"""


@pytest.mark.parametrize("where", ["in a default", "in a later trial", "in a finalist"])
def test_a_study_that_is_killed_goes_on_to_the_same_leaderboard(lab: Any, tmp_path: Path, where: str) -> None:
    changes: dict[str, Any] = {
        "learners": ["toy", "mortal"],
        "evaluation": STUDY["evaluation"] | {"finalists": 6},
        "prune": False,
        "strategy": "joint",  # the bandit tries the better of them alone
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    board = study(whole, **changes)
    steps = sum(result["trained_tasks"] for result in results(whole) if result["learner"] == "mortal") // 4
    assert steps > 4, "there are later trials of this learner"
    (tmp_path / "fuse").write_text({"in a default": "0", "in a later trial": str(steps - 1)}.get(where, str(steps)))
    command = [sys.executable, "-c", RUN, json.dumps(STUDY | changes), str(killed)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "fuse").exists()
    assert not (killed / "leaderboard.json").exists()
    assert len(results(killed)) == {"in a default": 1, "in a finalist": 6}.get(where, len(results(killed)))
    assert timeless(study(killed, **changes)) == timeless(board)


def test_a_worker_that_is_killed_has_its_trial_run_again(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "fuse").write_text("2")
    board = study(tmp_path / "a", trials=4, learners=["toy", "mortal"], options={"workers": 2})
    assert not (tmp_path / "fuse").exists(), "it was killed"
    assert sum(board["trials"].values()) == 4
    assert board["trials"]["failed"] == 0
    assert {trial.user_attrs["attempts"] for trial in trials(tmp_path / "a")} == {1, 2}


def test_a_trial_that_kills_its_worker_each_time_fails_in_the_end_and_the_study_goes_on(
    lab: Any, tmp_path: Path
) -> None:
    (tmp_path / "fuse").write_text("forever")
    board = study(tmp_path / "a", trials=3, learners=["toy", "mortal"], options={"workers": 2})
    assert board["status"] == "finished"
    assert sum(board["trials"].values()) == 3
    mortal = [trial for trial in trials(tmp_path / "a") if trial.user_attrs["result"]["learner"] == "mortal"]
    assert mortal
    assert {trial.user_attrs["attempts"] for trial in mortal} == {ATTEMPTS}
    [failure] = board["failures"]
    assert failure == {
        "learner": "mortal",
        "reason": "lost: its worker process was killed by SIGKILL",
        "trials": board["trials"]["failed"],
    }


# Failures


def test_a_learner_that_raises_or_turns_nan_costs_its_trial_and_the_study_goes_on(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", learners=["raises", "turns_nan", "toy"])
    assert board["status"] == "finished"
    assert sum(board["trials"].values()) == 6
    failed = Counter(result["learner"] for result in results(tmp_path / "a") if result["state"] == "failed")
    assert failed.keys() == {"raises", "turns_nan"}
    assert board["trials"]["failed"] == failed.total()
    reasons = {failure["learner"]: failure for failure in board["failures"]}
    assert reasons["raises"]["reason"].startswith("ValueError at acme_lab.py:")
    assert reasons["raises"]["reason"].endswith(": no [/such] luck")
    assert reasons["turns_nan"]["reason"] == "the meta-training loss became nan after 4 tasks"
    assert {learner: failure["trials"] for learner, failure in reasons.items()} == failed
    assert {entry["learner"] for entry in board["finalists"]} == {"toy"}


def test_a_study_of_nothing_but_failures_has_failed(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", learners=["raises", "turns_nan"])
    assert (board["status"], board["finalists"], board["learners"]) == ("failed", [], {})
    assert board["trials"] == {"complete": 0, "pruned": 0, "failed": 6}
    assert sum(failure["trials"] for failure in board["failures"]) == 6
    assert not (tmp_path / "a" / "best").exists()
    assert timeless(study(tmp_path / "a", learners=["raises", "turns_nan"])) == timeless(board)


class Tiring(Quiet):
    """Tires the fickle learner out when the search is over."""

    def __init__(self, lab: Any) -> None:
        self.lab, self.said = lab, list[str]()

    def phase(self, text: str) -> None:
        self.lab.Fickle.tired = True
        self.said.append(text)


def test_a_finalist_that_fails_falls_out_and_the_reason_is_kept(lab: Any, tmp_path: Path) -> None:
    learners = ["toy", "fickle"]
    watcher = Tiring(lab)
    evaluation = {"tasks": 20, "finalists": 2, "report_tasks": 40}
    board = study(tmp_path / "a", watcher=watcher, learners=learners, trials=2, evaluation=evaluation)
    assert (board["status"], [entry["learner"] for entry in board["finalists"]]) == ("finished", ["toy"])
    [failure] = board["failures"]
    assert (failure["learner"], failure["trials"]) == ("fickle", 1)
    assert failure["reason"].startswith("as a finalist: OSError at acme_lab.py:")
    assert board["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert any(text.startswith("finalist of trial 1 fell out: OSError") for text in watcher.said)


def test_a_study_all_of_whose_finalists_fail_has_failed_and_was_not_interrupted(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", watcher=Tiring(lab), learners=["fickle"], trials=2, prune=False)
    assert board["status"] == "failed"
    assert board["trials"]["complete"] == 2
    assert board["failures"][0]["reason"].endswith("enough")


# Time


def test_a_timeout_is_kept_and_leaves_a_leaderboard(lab: Any, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"trials": 10_000, "timeout": 4, "learners": ["toy", "protonet"]}
    study(tmp_path / "before", trials=2)  # the first trial of a process may take seconds, by which others are judged
    began = time.monotonic()
    board = study(tmp_path / "a", **changes)
    assert time.monotonic() - began < 30, "it heeds its time"
    assert board["status"] == "finished"
    assert board["seconds"] < 30
    assert 2 < sum(board["trials"].values()) < 10_000
    before = (tmp_path / "a" / "journal.log").read_bytes()
    assert study(tmp_path / "a", **changes) == board, "its time is up"
    assert (tmp_path / "a" / "journal.log").read_bytes() == before
    more = study(tmp_path / "a", **changes | {"timeout": board["seconds"] + 3})
    assert sum(board["trials"].values()) < sum(more["trials"].values()) < 10_000


def test_a_trial_under_way_ends_with_the_time(lab: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    board = study(tmp_path / "a", timeout=1.5, budget={"tasks": 10**9})
    assert time.monotonic() - began < 30
    assert board["status"] == "failed"
    tried = [(result["learner"], result["reason"]) for result in results(tmp_path / "a")]
    assert tried in ([("toy", "timeout")], [("toy", "timeout"), ("protonet", "timeout")]), (
        "each once, where there is time"
    )


def test_a_learner_that_is_too_slow_leaves_the_rest_of_the_time_to_the_others(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", learners=["sluggish", "toy"], timeout=12, trials=3, budget={"tasks": 400})
    tried = [(result["learner"], result["reason"]) for result in results(tmp_path / "a")]
    assert tried[0] == ("sluggish", "timeout")
    assert [learner for learner, _ in tried[1:]] == ["toy"] * (len(tried) - 1)
    assert (board["status"], board["finalists"][0]["learner"]) == ("finished", "toy")


def test_a_learner_with_nothing_to_search_keeps_no_others_trying_in_vain(
    lab: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = study(tmp_path / "a", learners=["pixels", "sluggish"], timeout=6, trials=1000, budget={"tasks": 400})
    tried = [(result["learner"], result["reason"]) for result in results(tmp_path / "a")]
    assert tried == [("pixels", None), ("sluggish", "timeout")]
    assert (board["status"], board["finalists"][0]["learner"]) == ("finished", "pixels")
    said = ["s: the timeout of 6 s is too short for a trial of sluggish; give a longer one, or trials a smaller budget"]
    assert [record.message for record in caplog.records if "timeout" in record.message] == said
    caplog.clear()
    study(tmp_path / "b", learners=["sluggish", "pixels"], timeout=6, trials=1, budget={"tasks": 400})
    assert [record.message for record in caplog.records if "timeout" in record.message] == said, "whoever did not begin"


# Pruning


def test_hopeless_trials_are_pruned_counted_and_no_default_is(lab: Any, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"learners": ["blind", "toy"], "budget": {"tasks": 40}, "strategy": "joint"}
    board = study(tmp_path / "a", trials=24, **changes)
    pruned = [result for result in results(tmp_path / "a") if result["state"] == "pruned"]
    assert len(pruned) == board["trials"]["pruned"] >= 1
    assert all(result["number"] >= 2 for result in pruned)
    pruned = [result for result in pruned if result["reason"].startswith("hopeless at ")]
    assert any(result["params"].get("blind.blind") for result in pruned)
    for result in pruned:
        share = {"hopeless at 25% of its budget": 0.25, "hopeless at 50% of its budget": 0.5}[result["reason"]]
        assert share * 40 <= result["trained_tasks"] < share * 40 + 4
    told = {trial.number: trial.value for trial in trials(tmp_path / "a")}
    assert all(told[result["number"]] == result["estimate"] for result in pruned)
    unpruned = study(tmp_path / "b", trials=24, prune=False, **changes)
    assert unpruned["trials"] == {"complete": 24, "pruned": 0, "failed": 0}


def test_a_trial_that_the_best_beats_on_the_same_tasks_is_spared_the_others(lab: Any, tmp_path: Path) -> None:
    evaluation = STUDY["evaluation"] | {"tasks": 400, "finalists": 1}
    # None has reached a share of its training, so that none is stopped there.
    board = study(tmp_path / "a", trials=10, learners=["blind"], evaluation=evaluation, budget={"tasks": 4})
    beaten = [one for one in results(tmp_path / "a") if (one["reason"] or "").startswith("beaten by the best so far")]
    assert 1 <= len(beaten) <= board["trials"]["pruned"]
    bench = bench_of(learners=["blind"], evaluation=evaluation)
    for one in beaten:
        assert one["state"] == "pruned"
        assert 20 <= one["tasks"] < 400
        assert one["reason"] == f"beaten by the best so far on {one['tasks']} of 400 tasks"
        assert one["trained_tasks"] == 4
        told = trials(tmp_path / "a")[one["number"]].value
        assert told == one["estimate"]
        job = Job(one["number"], one["params"], one["seed"], Budget(tasks=4), "validation", "search", 400)
        full = bench.run(job).result
        assert full.mean < board["finalists"][0]["search"]["mean"]
        assert told == pytest.approx(full.mean, abs=0.05), "the sampler is told what all tasks would have given"


def test_a_learner_that_answers_slowly_is_scored_on_the_first_tasks_in_the_time_for_that(
    lab: Any, tmp_path: Path
) -> None:
    """Sixteen of its tasks take a fifth of a second. Finalists have all of theirs, and race with whoever has all."""
    evaluation = STUDY["evaluation"] | {"tasks": 100, "finalists": 2, "report_tasks": 50, "cpu_seconds": 0.5}
    changes = {"learners": ["ponderous", "toy"], "evaluation": evaluation, "trials": 6, "executor": "vmap"}
    board = study(tmp_path / "a", **changes)
    assert board["trials"]["failed"] == 0
    complete = [one for one in results(tmp_path / "a") if one["state"] == "complete"]
    assert {one["tasks"] for one in complete if one["learner"] == "ponderous"} <= {32, 48}
    assert {one["tasks"] for one in complete if one["learner"] == "toy"} == {100}
    assert all(one["fresh"]["tasks"] == 50 for one in board["finalists"])
    for one in complete:
        job = Job(one["number"], one["params"], one["seed"], Budget(tasks=16), "validation", "search", one["tasks"])
        assert bench_of(**changes).run(job).result.mean == one["mean"], "the first of the same tasks"


def test_finalists_are_meta_trained_as_often_as_asked_and_their_first_model_is_kept(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a", trials=3, evaluation=STUDY["evaluation"] | {"finalists": 2, "repeats": 3})
    names = sorted(path.name for path in (tmp_path / "a" / "finalists").iterdir())
    expected = [
        f"{entry['trial']:05d}-{repeat}.{kind}"
        for entry in board["finalists"]
        for repeat in range(3)
        for kind in ("npy", "safetensors")
    ]
    assert names == sorted(expected)
    for entry in board["finalists"]:
        scores = [np.load(tmp_path / "a" / "finalists" / f"{entry['trial']:05d}-{repeat}.npy") for repeat in range(3)]
        assert entry["fresh"]["repeats"] == [pytest.approx(one.mean()) for one in scores]
        assert entry["fresh"]["mean"] == pytest.approx(np.mean(scores))
        assert len(set(entry["fresh"]["repeats"])) > 1, "each from a seed of its own"
    first = tmp_path / "a" / "finalists" / f"{board['finalists'][0]['trial']:05d}-0.safetensors"
    assert first.read_bytes() == (tmp_path / "a" / "best" / "weights.safetensors").read_bytes()


def test_finalists_are_of_other_learners_and_meta_trained_longer_where_that_is_asked(lab: Any, tmp_path: Path) -> None:
    asked = STUDY["evaluation"] | {"finalists": 2, "longer": 3}
    board = study(tmp_path / "a", trials=6, evaluation=asked)
    assert {entry["learner"] for entry in board["finalists"]} == {"toy", "protonet"}
    trained = {result["number"]: result["trained_tasks"] for result in results(tmp_path / "a")}
    kept = json.loads((tmp_path / "a" / "best" / "config.json").read_text(encoding="utf-8"))
    assert kept["trained_tasks"] == 3 * trained[kept["trial"]] > 0
    assert study(tmp_path / "a", trials=6, evaluation=asked) == board, "it is over"
    shorter = study(tmp_path / "a", trials=6, evaluation=asked | {"longer": 1})
    assert shorter["limits"]["longer"] == 1


def test_every_scoring_of_the_test_pool_is_recorded_the_same_one_once(lab: Any, tmp_path: Path) -> None:
    first = study(tmp_path / "a", trials=2)
    assert first["tested"] == [{"what": "report", "trial": first["finalists"][0]["trial"], "tasks": 40}]
    again = study(tmp_path / "a", trials=2, evaluation=STUDY["evaluation"] | {"report_tasks": 50})
    assert [one["tasks"] for one in again["tested"]] == [40, 50]
    (tmp_path / "a" / "leaderboard.json").unlink()
    assert study(tmp_path / "a", trials=2, evaluation=STUDY["evaluation"] | {"report_tasks": 50}) == again | {
        "seconds": pytest.approx(again["seconds"], abs=60)
    }


def test_a_learner_with_nothing_to_search_is_tried_once_however_good_it_is(lab: Any, tmp_path: Path) -> None:
    study(tmp_path / "a", trials=12, learners={"protonet": {"distance": "euclidean", "temperature": 1}, "toy": None},
          outer={"lr": 0.001})  # fmt: skip
    assert [result["learner"] for result in results(tmp_path / "a")].count("protonet") == 1
    study(tmp_path / "b", trials=3, learners=["pixels"])
    assert len(results(tmp_path / "b")) == 3, "where there is nothing else, what was asked for is done"


# Folders and storages


def test_a_finished_study_returns_its_leaderboard_at_once(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a")
    kept = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    before = len(lab.drawn)
    assert study(tmp_path / "a") == board
    assert study(tmp_path / "a", trials=2) == board
    assert len(lab.drawn) == before
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == kept


def test_a_finished_study_goes_on_where_more_is_asked_of_it(lab: Any, tmp_path: Path) -> None:
    study(tmp_path / "a")
    more = study(tmp_path / "a", trials=8)
    assert sum(more["trials"].values()) == 8
    assert timeless(more) == timeless(study(tmp_path / "b", trials=8))
    longer = {"tasks": 20, "finalists": 2, "report_tasks": 60}
    board = study(tmp_path / "a", trials=8, evaluation=longer)
    assert [entry["report"]["tasks"] for entry in board["finalists"]] == [60, 60]
    assert board["trials"] == more["trials"]


def test_a_study_is_not_run_in_the_folder_of_another(lab: Any, tmp_path: Path) -> None:
    board = study(tmp_path / "a")
    with pytest.raises(UserError, match=r"^.*/a is the run folder of the study 's', and this one is named 't'; give "):
        study(tmp_path / "a", name="t", learners=["toy"])
    with pytest.raises(UserError, match=r"^this study was begun with learners = \['toy', 'protonet'\], not \['toy'\],"):
        study(tmp_path / "a", learners=["toy"])
    assert leaderboard.read(tmp_path / "a") == board
    assert study(tmp_path / "a") == board


def test_a_study_file_of_somebodys_own_is_not_written_over(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.yaml").write_text("learners: [toy]\n")
    with pytest.raises(UserError, match=r"^.*/a is the run folder of the study None, and this one is named 's'; give "):
        study(tmp_path / "a")
    assert (tmp_path / "a" / "study.yaml").read_text() == "learners: [toy]\n"


def test_a_refused_study_leaves_no_folder(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--storage: cannot open that storage"):
        study(tmp_path / "runs" / "a", options={"storage": "nonsense"})
    assert not (tmp_path / "runs").exists()


def test_a_database_keeps_a_study_as_the_journal_does(lab: Any, tmp_path: Path) -> None:
    options = {"storage": f"sqlite:///{tmp_path / 'trials.db'}"}
    cut = study(tmp_path / "a", options=options | {"stopped": Stopper(30)})
    assert cut["status"] == "interrupted"
    board = study(tmp_path / "a", options=options)
    assert timeless(board) == timeless(study(tmp_path / "b"))
    assert not (tmp_path / "a" / "journal.log").exists()


def test_the_resolved_study_is_kept_and_is_that_study(lab: Any, tmp_path: Path) -> None:
    from metaopt.study.file import load

    study(tmp_path / "a")
    assert load(tmp_path / "a" / "study.yaml", plugins.load()) == bench_of().study


def test_progress_is_told_in_order(lab: Any, tmp_path: Path) -> None:
    told: list[Any] = []

    class Notes(Quiet):
        def began(self, bench: Bench, results: list[TrialResult]) -> None:
            told.append(("began", len(results)))

        def started(self, job: Job) -> None:
            told.append(("started", job.number))

        def finished(self, result: TrialResult, best: TrialResult | None) -> None:
            told.append(("finished", result.number, best.mean if best else None))

        def phase(self, text: str) -> None:
            told.append(("phase", text))

    study(tmp_path / "a", watcher=Notes(), trials=2, learners=["raises", "toy"])
    mean = results(tmp_path / "a")[1]["mean"]
    assert told == [
        ("began", 0),
        ("started", 0),
        ("finished", 0, None),
        ("started", 1),
        ("finished", 1, mean),
        ("phase", "meta-training 1 finalists anew, for 40 fresh tasks"),
        ("phase", "scoring the winner on 40 test tasks"),
    ]


# Several objectives

SEVERAL: dict[str, Any] = {"objective": ["accuracy", "log_loss"], "learners": ["toy", "blind"], "trials": 8}


def test_of_several_objectives_the_front_is_listed_and_the_preferred_one_decides(lab: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    board = study(folder, **SEVERAL)
    assert (board["objectives"], board["prefer"]) == ({"accuracy": "maximize", "log_loss": "minimize"}, "accuracy")
    assert board["trials"]["pruned"] == 0, "of several objectives none is stopped"
    points = {one["number"]: (one["mean"], -one["others"]["log_loss"]["mean"]) for one in results(folder)}
    front = {
        number
        for number, point in points.items()
        if not any(
            all(a >= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )
    }
    assert {entry["trial"] for entry in board["front"]} == front
    assert all(entry["trial"] in front for entry in board["finalists"])
    winner = board["finalists"][0]
    assert winner["report"]["others"]["log_loss"]["mean"] > 0
    assert all(finding.status != "failed" for finding in audit.audit(folder, plugins.load(), torch.device("cpu")))

    again = study(folder, **SEVERAL, prefer="log_loss")
    assert (again["objective"], again["direction"]) == ("log_loss", "minimize")
    assert again["trials"] == board["trials"], "no trial was run for it"
    searched = [entry["search"]["mean"] for entry in again["finalists"]]
    assert min(searched) == min(entry["values"]["log_loss"] for entry in again["front"])
    assert again["finalists"][0]["fresh"]["mean"] == min(entry["fresh"]["mean"] for entry in again["finalists"])


def test_bounds_that_no_trial_keeps_are_refused_and_every_trial_is_kept(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trial has log_loss<=-1, the nearest has 0\.\d+; every trial is kept"):
        study(tmp_path / "a", **SEVERAL, prefer="accuracy, log_loss<=-1")
    assert len(results(tmp_path / "a")) == 8
    assert study(tmp_path / "a", **SEVERAL)["status"] == "finished"


# Finalists in what time is left


class Hears(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("asked", "left", "finalists", "n_tasks", "longer"),
    [
        (1, 1000.0, 3, 1000, 1), (1, 60.0, 2, 1000, 1), (1, 42.0, 1, 1000, 1), (1, 20.0, 1, 452, 1),
        (1, 1.0, 1, 100, 1), (3, 1000.0, 3, 1000, 3), (3, 137.0, 3, 1000, 3), (3, 74.0, 1, 1000, 3),
        (3, 40.0, 1, 404, 3), (3, 30.0, 1, 428, 2), (3, 1.0, 1, 100, 1),
    ],
)  # fmt: skip
def test_finalists_are_as_many_as_long_and_scored_on_as_many_tasks_as_there_is_time_for(
    lab: Any, asked: int, left: float, finalists: int, n_tasks: int, longer: int
) -> None:
    bench = bench_of(evaluation={"tasks": 200, "finalists": 3, "longer": asked, "report_tasks": 1000})
    # Ten seconds of training, and ten of scoring fresh tasks, for each; ten of the report for the winner; 5 % to spare.
    trials = [
        TrialResult(n, "complete", "toy", {}, n, seconds=12.0, evaluation_seconds=2.0, tasks=200) for n in range(3)
    ]
    watcher = Hears()
    crew = Alone(bench, lambda *heard: False, lambda: False)
    chosen, tasks, times = search._fitting(bench, trials, crew, watcher, left)
    assert (len(chosen), tasks, times) == (finalists, n_tasks, longer)
    assert chosen == trials[:finalists], "the best of them"
    assert bool(watcher.said) == ((finalists, n_tasks) != (3, 1000))
