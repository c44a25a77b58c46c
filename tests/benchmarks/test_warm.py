"""The warm-start comparison takes what is alike out of the portfolio, and counts trials as it says."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from metaopt.study import portfolio


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "warm.py"
    spec = importlib.util.spec_from_file_location("warm", path)
    assert spec
    assert spec.loader
    module = sys.modules["warm"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_studies_on_the_sampler_at_hand_are_taken_out_of_the_portfolio(script: ModuleType, tmp_path: Path) -> None:
    held = {one.study for one in portfolio.read(portfolio.SHIPPED)}
    for study in script.STUDIES.values():
        sampler, path = study["tasks"]["sampler"], tmp_path / f"{study['tasks']['sampler']}.json"
        left = script.unlike(sampler, path)
        assert set(left) == held - script.NAMES[sampler]
        assert [one.study for one in portfolio.read(path)] == left


def test_the_first_trial_as_good_is_counted_from_one(script: ModuleType) -> None:
    assert script._first([0.1, 0.5, 0.5, 0.9], 0.5) == 2
    assert script._first([0.1], 0.5) is None


def test_the_best_so_far_never_gets_worse_and_the_same_study_comes_out_the_same(script: ModuleType) -> None:
    raw = {"name": "clouds", **script.SHARED, "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1, "n_query": 4},
           "learners": ["protonet", "matching"], "budget": {"tasks": 8}, "evaluation": {"tasks": 20}}  # fmt: skip
    came = script.best_so_far(raw, 5)
    assert came == sorted(came)
    assert script.best_so_far(raw, 5) == came
