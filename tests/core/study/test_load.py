"""A study of many trials: the last one costs what the first ones did. `make load` measures ten thousand."""

import cProfile
import sys
from pathlib import Path

import pytest
import torch

import load
from metaopt import plugins
from metaopt.study import search, strategy
from metaopt.study.file import resolve
from metaopt.study.leaderboard import ranked
from metaopt.study.trial import Bench, TrialResult
from metaopt.terminal import Quiet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and files are counted by Linux's own means")


class Counting(Quiet):
    """Counts the calls that ten trials take, from some trials on, and keeps what it is told."""

    def __init__(self, *starts: int) -> None:
        self.starts, self.calls = starts, list[int]()
        self.told: list[tuple[TrialResult, TrialResult | None]] = []
        self.counter = cProfile.Profile()

    def finished(self, result: TrialResult, best: TrialResult | None) -> None:
        self.told.append((result, best))
        if len(self.told) in {start + 10 for start in self.starts}:
            self.counter.disable()
            self.calls.append(sum(entry.callcount for entry in self.counter.getstats()))
        if len(self.told) in self.starts:
            self.counter = cProfile.Profile()
            self.counter.enable()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return tmp_path


def test_the_last_of_many_trials_makes_as_many_calls_as_the_first_ones(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy, "MODELLED", 20)
    registry = plugins.load()
    study = resolve(load.IDLE | {"trials": 320}, "idle", registry)
    bench, counting = Bench(study, registry, torch.device("cpu")), Counting(80, 300)
    board = search.run(bench, disk / "run", counting)
    assert board["trials"]["complete"] + board["trials"]["pruned"] == 320
    early, late = counting.calls
    assert late < 1.5 * early, "four times as many trials went before"


def test_the_best_is_told_as_if_all_trials_were_ranked_each_time(disk: Path) -> None:
    registry = plugins.load()
    for objective in ("accuracy", ["accuracy", "parameters"]):
        changes = {"objective": objective, "trials": 25, "name": f"s{len(objective)}"}
        bench = Bench(resolve(load.IDLE | changes, "idle", registry), registry, torch.device("cpu"))
        counting = Counting()
        search.run(bench, disk / bench.study.name, counting)
        told = [result for result, _ in counting.told]
        assert len({best.number for _, best in counting.told if best}) > 1, "it changed on the way"
        for n, (_, best) in enumerate(counting.told, 1):
            assert best == ranked(bench, told[:n])[0]


def test_trials_in_one_process_leave_no_file_open_and_no_memory_behind(disk: Path) -> None:
    [memory, files] = load.endurance(disk / "run", 90)
    assert files[1] == files[2]
    assert float(memory[2]) <= 1.05 * float(memory[1])
