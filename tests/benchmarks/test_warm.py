"""The warm-start comparison takes what is alike out of the portfolio, and counts trials as it says."""

from pathlib import Path

import pytest

import warm
from metaopt.study import portfolio


def test_studies_on_the_sampler_at_hand_are_taken_out_of_the_portfolio(tmp_path: Path) -> None:
    held = {one.study for one in portfolio.read(portfolio.SHIPPED)}
    for study in warm.STUDIES.values():
        sampler, path = study["tasks"]["sampler"], tmp_path / f"{study['tasks']['sampler']}.json"
        left = warm.unlike(sampler, path)
        assert set(left) == {name for name in held if name.partition("-")[0] != warm.KINDS[sampler]}
        assert [one.study for one in portfolio.read(path)] == left


def test_the_first_trial_as_good_is_counted_from_one() -> None:
    assert warm._first([0.1, 0.5, 0.5, 0.9], 0.5) == 2
    assert warm._first([0.1], 0.5) is None


def test_the_best_so_far_is_scored_on_test_tasks_and_the_same_study_comes_out_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warm, "TEST_TASKS", 7)
    raw = {"name": "clouds", **warm.SHARED, "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1, "n_query": 4},
           "learners": ["protonet", "matching"], "budget": {"tasks": 8}, "evaluation": {"tasks": 20}}  # fmt: skip
    came = warm.best_so_far(raw, 5)
    assert len(came) == 5
    assert all(round(84 * score) == pytest.approx(84 * score) for score in came), "right ones of 84 answers"
    assert warm.best_so_far(raw, 5) == came
