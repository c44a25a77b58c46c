"""Comparisons are paired, corrected, and wrong no more often than they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_rel  # type: ignore[import-untyped]

from metaopt.study.statistics import LEVEL, holm, is_beaten, looks_at, paired

SCORES = st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), min_size=2, max_size=40)


# Paired differences


@given(SCORES)
def test_a_paired_difference_is_scipys_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array(pairs).T
    found = paired(one, other)
    assert found.mean == pytest.approx((one - other).mean())
    if np.ptp(one - other) > 1e-6:
        theirs = ttest_rel(one, other)
        assert found.p == pytest.approx(theirs.pvalue, abs=1e-9)
        interval = theirs.confidence_interval(0.95)
        assert found.ci95 == pytest.approx((interval.high - interval.low) / 2)


def test_what_is_the_same_task_by_task_is_not_told_apart_and_what_is_always_better_surely_is() -> None:
    scores = np.array([0.2, 0.9, 0.4])
    assert paired(scores, scores).p == 1.0
    always = paired(scores + 0.5, scores)
    assert (always.mean, always.p) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))


def test_scores_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same tasks"):
        paired([0.5, 0.5], [0.5])


# Holm


def test_holm_multiplies_the_smallest_by_their_number_the_next_by_one_less_and_never_turns_back() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, c in zip(p_values, corrected, strict=True):
        assert p <= c <= min(1.0, len(p_values) * p) + 1e-15
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


def test_of_many_equals_one_is_found_different_in_no_more_than_the_level() -> None:
    draw = np.random.default_rng(0)
    p_values = ttest_1samp(draw.normal(size=(1000, 4, 30)), 0, axis=2).pvalue
    found = sum(min(holm(four)) < LEVEL for four in p_values.tolist())
    assert found / 1000 < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 1000)


# Races


@pytest.mark.parametrize(
    ("n_tasks", "looks"),
    [
        (600, [20, 40, 80, 160, 320]),
        (200, [20, 40, 80, 160]),
        (30, [20]),
        (20, []),
        (6400, [200, 400, 800, 1600, 3200]),
    ],
)
def test_a_race_is_looked_at_five_times_at_most_each_after_twice_as_many_tasks(n_tasks: int, looks: list[int]) -> None:
    assert looks_at(n_tasks) == looks


def race(scores: np.ndarray, best: np.ndarray) -> int:
    """Return the number of tasks after which a race ended: all, where it was not stopped."""
    for look in looks_at(len(best)):
        if is_beaten(scores[:look], best[:look], len(best), maximize=True):
            return look
    return len(best)


def accuracies(draw: np.random.Generator, difficulty: np.ndarray, skill: float) -> np.ndarray:
    """Return accuracies of 75 queries a task by a learner of that skill: tasks differ in how hard they are."""
    probability = 1 / (1 + np.exp(-(skill - difficulty)))
    return draw.binomial(75, probability) / 75


def test_one_as_good_as_the_best_is_stopped_in_less_than_five_percent_of_races() -> None:
    draw, n, stopped = np.random.default_rng(0), 2000, 0
    for _ in range(n):
        difficulty = draw.normal(size=600)
        stopped += race(accuracies(draw, difficulty, 1.0), accuracies(draw, difficulty, 1.0)) < 600
    assert 0 < stopped / n < LEVEL


def test_a_search_of_trials_that_differ_is_spared_most_of_its_evaluation_and_keeps_its_winner() -> None:
    """Forty trials whose accuracies spread over ten points, each raced against the best so far."""
    draw = np.random.default_rng(0)
    spent, won, lost = [], 0, []
    for _ in range(100):
        difficulty = draw.normal(size=600)
        best, best_full, done = None, -1.0, 0
        full = [accuracies(draw, difficulty, skill) for skill in draw.normal(1.0, 0.3, size=40)]
        for scores in full:
            seen = race(scores, best) if best is not None else 600
            done += seen
            if seen == 600 and scores.mean() > best_full:
                best, best_full = scores, scores.mean()
        spent.append(done / (40 * 600))
        won += best_full == max(scores.mean() for scores in full)
        lost.append(max(scores.mean() for scores in full) - best_full)
    assert np.mean(spent) < 0.4, "60 % and more of the tasks saved"
    assert won >= 90
    assert np.mean(lost) < 0.001


def test_a_race_goes_the_other_way_where_less_is_better() -> None:
    draw = np.random.default_rng(0)
    errors = draw.normal(size=100) ** 2
    assert is_beaten(errors + 1 + 0.1 * draw.normal(size=100), errors, 200, maximize=False)
    assert not is_beaten(errors + 1 + 0.1 * draw.normal(size=100), errors, 200, maximize=True)
