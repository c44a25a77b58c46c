"""The leaderboard tells what was found, and nothing that was not."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import leaderboard
from metaopt.study.file import resolve
from metaopt.study.leaderboard import KEYS, build, candidates, interval, number, ranked, read
from metaopt.study.search import Finalist
from metaopt.study.trial import Bench, Done, TrialResult
from metaopt.train import Scores

REGISTRY = plugins.load()
CONTRACT = {"study", "seed", "objective", "direction", "search_on", "trials", "finalists", "versions", "seconds"}
ENTRY = {"rank", "trial", "learner", "params", "search", "report"}


def bench_of(sampler: str = "glyphs", **changes: Any) -> Bench:
    tasks = {"sampler": "glyphs", "n_way": 3, "n_shot": 1} if sampler == "glyphs" else {"sampler": sampler, "n_shot": 1}
    learners = ["protonet", "pixels"] if sampler == "glyphs" else ["maml"]
    raw = {"name": "s", "tasks": tasks, "learners": learners, "evaluation": {"finalists": 2}} | changes
    return Bench(resolve(raw, "s.yaml", REGISTRY), REGISTRY, torch.device("cpu"))


def result(bench: Bench, number: int, mean: float | None, state: Any = "complete", **more: Any) -> TrialResult:
    learner = more.pop("learner", next(iter(bench.study.space.learners)))
    params = bench.study.space.default(learner) | {"distinct": more.pop("distinct", number)}
    return TrialResult(number, state, learner, params, 0, mean=mean, ci95=0.1, median=mean, tasks=200, **more)


def report(*scores: float) -> Scores:
    return Scores(torch.tensor(scores, dtype=torch.float64), 0)


def finalist(result: TrialResult, *scores: float) -> Finalist:
    """Return a finalist with these fresh scores, task by task."""
    fresh = report(*scores)
    return Finalist(result, (Done(replace(result, mean=fresh.mean), scores),), Path("w"), fresh)


@pytest.mark.parametrize(("sampler", "best"), [("glyphs", 0.9), ("sinusoid", 0.1)])
def test_the_best_trial_comes_first_whichever_way_is_better(sampler: str, best: float) -> None:
    bench = bench_of(sampler)
    results = [result(bench, n, mean) for n, mean in enumerate((0.5, 0.1, 0.9))]
    first, second, _ = ranked(bench, results)
    assert (first.mean, second.mean) == (best, 0.5)


def test_finalists_that_are_meta_trained_longer_are_of_as_many_learners_as_there_are() -> None:
    usual, longer = (bench_of(evaluation={"finalists": 3, "longer": times}) for times in (1, 2))
    results = [result(usual, n, mean) for n, mean in enumerate((0.9, 0.8, 0.7))]
    results.append(result(usual, 3, 0.1, learner="pixels"))
    assert [one.number for one in candidates(usual, ranked(usual, results))] == [0, 1, 2]
    assert [one.number for one in candidates(longer, ranked(longer, results))] == [0, 3, 1]


def test_only_complete_trials_are_ranked_each_pipeline_once_and_ties_by_number() -> None:
    bench = bench_of()
    results = [
        result(bench, 4, 0.5),
        result(bench, 1, 0.5),
        result(bench, 2, None, "pruned"),
        result(bench, 3, None, "failed"),
        result(bench, 5, 0.9, distinct=0),
        result(bench, 6, 0.8, distinct=0),  # the pipeline of 5 again
    ]
    assert [r.number for r in ranked(bench, results)] == [5, 1, 4]


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_the_ranking_does_not_depend_on_the_order_in_which_trials_ended(means: list[float], order: Any) -> None:
    bench = bench_of()
    results = [result(bench, n, mean) for n, mean in enumerate(means)]
    shuffled = order.sample(results, len(results))
    found = ranked(bench, shuffled)
    assert found == ranked(bench, results)
    assert [r.mean for r in found] == sorted(means, reverse=True)


def test_a_finished_study_has_all_that_the_contract_names() -> None:
    bench = bench_of()
    results = [result(bench, 0, 0.7), result(bench, 1, 0.9), result(bench, 2, None, "failed", reason="it raised")]
    finalists = [finalist(results[1], 0.6, 0.8, 0.7), finalist(results[0], 0.5, 0.6, 0.7)]
    board = build(bench, results, finalists, [], report(0.5, 0.7), 12.5, "finished")
    assert board.keys() == KEYS >= CONTRACT
    assert json.loads(json.dumps(board)) == board
    assert board["trials"] == {"complete": 2, "pruned": 0, "failed": 1}
    winner, second = board["finalists"]
    assert winner.keys() >= ENTRY
    assert (winner["rank"], winner["trial"], winner["search"]["mean"]) == (1, 1, 0.9)
    assert winner["fresh"]["mean"] == pytest.approx(0.7)
    assert winner["report"] == {
        "pool": "test", "mean": 0.6, "ci95": pytest.approx(1.96 * 0.02**0.5 / 2**0.5), "tasks": 2, "median": 0.6,
        "not_finite": 0,
    }  # fmt: skip
    assert (second["rank"], second["trial"]) == (2, 0)
    assert second["report"] == second["fresh"] == {
        "pool": "validation", "mean": pytest.approx(0.6), "ci95": pytest.approx(1.96 * 0.1 / 3**0.5), "tasks": 3,
        "median": 0.6, "not_finite": 0, "repeats": [pytest.approx(0.6)],
    }  # fmt: skip
    assert winner["behind"] is None
    assert second["behind"]["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize(("sampler", "better"), [("glyphs", 0.2), ("sinusoid", -0.2)])
def test_finalists_are_told_apart_from_the_winner_by_their_scores_on_the_same_tasks(
    sampler: str, better: float
) -> None:
    bench, draw = bench_of(sampler), torch.Generator().manual_seed(0)
    luck = torch.randn(200, generator=draw, dtype=torch.float64)  # of the tasks, larger than any difference
    noise = 0.1 * torch.randn(2, 200, generator=draw, dtype=torch.float64)
    scores = [luck + better, luck + noise[0], luck + better + noise[1]]
    finalists = [finalist(result(bench, n, 0.5), *one.tolist()) for n, one in enumerate(scores)]
    _, worse, alike = build(bench, [], finalists, [], report(0.5, 0.7), 1.0, "finished")["finalists"]
    assert worse["behind"]["told_apart"]
    assert worse["behind"]["mean"] == pytest.approx(0.2, abs=0.03), "positive is worse, whichever way is better"
    assert worse["behind"]["ci95"] == pytest.approx(0.1 * 1.96 / 200**0.5, rel=0.2)
    assert worse["fresh"]["ci95"] > 5 * worse["behind"]["ci95"], "common tasks halve the noise, and more"
    assert not alike["behind"]["told_apart"]


def test_an_interrupted_study_shows_its_best_trials_and_reports_nothing() -> None:
    bench = bench_of()
    results = [result(bench, n, mean) for n, mean in enumerate((0.2, 0.9, 0.5))]
    board = build(bench, results, [], [], None, 1.0, "interrupted")
    assert board["status"] == "interrupted"
    assert [(entry["rank"], entry["trial"]) for entry in board["finalists"]] == [(1, 1), (2, 2)]
    assert all(entry["report"] is entry["fresh"] is None for entry in board["finalists"])


def test_the_best_of_each_learner_is_shown() -> None:
    bench = bench_of()
    results = [
        result(bench, 0, 0.2),
        result(bench, 1, 0.4, trained_tasks=70, cpu_seconds=3.5),
        result(bench, 2, 0.3, learner="pixels"),
        result(bench, 3, None, "failed", learner="pixels"),
    ]
    learners = build(bench, results, [], [], None, 1.0, "interrupted")["learners"]
    assert {name: entry["trial"] for name, entry in learners.items()} == {"protonet": 1, "pixels": 2}
    assert (learners["protonet"]["trained_tasks"], learners["protonet"]["cpu_seconds"]) == (70, 3.5)


def test_failures_are_counted_by_reason_the_most_frequent_first_and_fallen_finalists_with_them() -> None:
    bench = bench_of()
    reasons = ["rare", "often", "often"]
    results = [result(bench, n, None, "failed", reason=reason) for n, reason in enumerate(reasons)]
    fallen = [result(bench, 9, None, "failed", reason="as a finalist: late")]
    board = build(bench, results, [], fallen, None, 1.0, "failed")
    assert [(f["reason"], f["trials"]) for f in board["failures"]] == [
        ("often", 2), ("rare", 1), ("as a finalist: late", 1)
    ]  # fmt: skip
    assert board["trials"]["failed"] == 3


def test_a_transductive_pipeline_is_flagged() -> None:
    bench = bench_of(transductive=True, encoder={"conv4": {"norm": ["layer", "batch"]}})
    inductive = result(bench, 0, 0.5)
    batch = TrialResult(**(vars(result(bench, 1, 0.9)) | {"params": inductive.params | {"conv4.norm": "batch"}}))
    board = build(bench, [inductive, batch], [], [], None, 1.0, "interrupted")
    assert board["transductive"] is True
    assert [(entry["trial"], entry["transductive"]) for entry in board["finalists"]] == [(1, True), (0, False)]


def test_a_folder_without_a_leaderboard_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "absent") is None
    (tmp_path / "file").touch()
    assert read(tmp_path / "file") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"study": "s"}', b"\x80", b"null", b"[" * 10**5, b'{"trials": 1}\n{}']
)
def test_a_damaged_leaderboard_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / leaderboard.FILE
    path.write_bytes(content)
    said = rf"^{re.escape(str(path))}: cannot be read \(.+\); delete it and run the study again to make it anew$"
    with pytest.raises(UserError, match=said) as refused:
        read(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.97312, "0.9731"), (1.0, "1.0000"), (0.0, "0.0000"), (-0.5, "-0.5000"), (12.3456, "12.35"), (4.1e15, "4.1e+15")],
)
def test_a_score_is_written_with_four_digits(value: float, written: str) -> None:
    assert number(value) == written


def test_an_interval_is_a_score_and_its_half_width_or_a_dash() -> None:
    assert interval({"mean": 0.97312, "ci95": 0.0123}) == "0.9731 ± 0.0123"
    assert interval(None) == "–"


@pytest.mark.parametrize(
    ("mean", "ci95", "written"),
    [
        (167.41, 4.2852, "167.4 ± 4.3"), (196.0, 0.1416, "196.0 ± 0.1"), (-15.757, 0.7028, "-15.76 ± 0.70"),
        (9.9, 12.0, "9.9000 ± 12"), (1234.5, 3.21, "1234 ± 3"), (4.1e15, 2e15, "4.1e+15 ± 2e+15"),
        (50.0, math.nan, "50 ± nan"), (math.nan, 1.0, "nan ± 1.0000"), (20.0, 1e300, "20 ± 1e+300"),
    ],
)  # fmt: skip
def test_an_interval_of_a_large_score_is_written_to_the_same_place(mean: float, ci95: float, written: str) -> None:
    assert interval({"mean": mean, "ci95": ci95}) == written
