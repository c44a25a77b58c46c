"""Figures show what the trials and the leaderboard hold, and no name in them is taken for a tag."""

import html
import math
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from metaopt.study.report import figures, importance, tried
from metaopt.study.report.tried import Tried

BOARD: dict[str, Any] = {
    "objective": "accuracy",
    "direction": "maximize",
    "learners": {"a": {"search": {"mean": 0.9, "ci95": 0.1}}, "b": {"search": {"mean": 0.5, "ci95": 0.1}}},
    "finalists": [],
}
OF = {"a": "#111111", "b": "#222222"}


def trial(number: int, value: float | None, learner: str = "a", state: str = "complete", **more: Any) -> Tried:
    """Return a trial; `params` are of ranges from 0 to 1, or texts."""
    params = more.pop("params", {})
    ranges = {
        name: FloatDistribution(0, 1) if isinstance(given, float) else CategoricalDistribution(["x", "y", "<b>"])
        for name, given in params.items()
    }
    frozen = create_trial(value=value or 0.0, params=params, distributions=ranges)
    values = more.pop("values", None if value is None else (value,))
    return Tried(number, learner, state, values, more.pop("curve", ()), more.pop("seconds", float(number)), frozen)


def test_the_best_so_far_only_gets_better_and_hears_of_complete_trials_alone() -> None:
    trials = [trial(0, 0.5), trial(1, 0.4), trial(2, 0.9, state="raced"), trial(3, 0.7), trial(4, 0.6)]
    line = figures.progress(BOARD, trials, OF, over_time=False).data[0]
    assert (line["x"], line["y"]) == ([0, 3, 4], [0.5, 0.7, 0.7])
    line = figures.progress(BOARD | {"direction": "minimize"}, trials, OF, over_time=False).data[0]
    assert (line["x"], line["y"]) == ([0, 1, 4], [0.5, 0.4, 0.4])


def test_over_time_trials_stand_where_they_ended() -> None:
    trials = [trial(0, 0.5, seconds=120.0), trial(1, 0.6, seconds=60.0)]
    line = figures.progress(BOARD, trials, OF, over_time=True).data[0]
    assert (line["x"], line["y"]) == ([1.0, 2.0], [0.6, 0.6])


def test_a_cross_marks_where_each_pruned_trial_was_stopped() -> None:
    trials = [
        trial(0, 0.9, curve=((25.0, 0.4), (50.0, 0.6), (100.0, 0.9))),
        trial(1, None, state="pruned", curve=((25.0, 0.2),)),
        trial(2, None, state="pruned", curve=((25.0, 0.3), (50.0, 0.25))),
        trial(3, None, state="failed"),
    ]
    figure = figures.curves(BOARD, trials)
    assert figure is not None
    [crosses] = [trace for trace in figure.data if trace["mode"] == "markers"]
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(25.0, 0.2), (50.0, 0.25)]
    lines = [trace for trace in figure.data if trace["mode"] == "lines+markers"]
    assert sum(x is not None for trace in lines for x in trace["x"]) == 6
    assert figures.curves(BOARD, [trial(0, 0.9)]) is None


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=40),
    st.sampled_from(["maximize", "minimize"]),
)
def test_an_axis_has_finite_ends_and_holds_the_best_and_the_middle_of_its_values(
    values: list[float], direction: str
) -> None:
    found, finite = figures.bounds(values, direction), sorted(value for value in values if math.isfinite(value))
    if found is None:
        assert len(finite) < 4
        return
    low, high = found
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    assert low <= finite[len(finite) // 2] <= high
    assert low <= (finite[-1] if direction == "maximize" else finite[0]) <= high


def test_a_diverged_trial_does_not_flatten_the_others_and_one_far_ahead_is_shown() -> None:
    scores = [0.5, 0.6, 0.55, 0.7, 0.65, 100.0]
    assert figures.bounds(scores, "minimize") == pytest.approx([0.488, 0.712])
    low, high = figures.bounds(scores, "maximize") or [0, 0]
    assert low < 0.5 < 100 < high


@given(st.text())
def test_no_text_of_a_figure_holds_a_tag_or_an_entity_of_its_own(text: str) -> None:
    shown = figures.plain(text)
    assert "<" not in shown
    assert html.unescape(shown) == html.unescape(shown.replace("&lt;", "<").replace("&gt;", ">"))
    assert len(text) > figures.LONGEST or shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


def test_what_decides_within_a_learner_comes_first_and_other_learners_do_not_count() -> None:
    numbers = [(37 * n % 100) / 100 for n in range(100)]
    trials = [trial(n, x, params={"idle": (53 * n % 100) / 100, "rate": x}) for n, x in enumerate(numbers)]
    trials += [trial(100 + n, 2.0, "b", params={"other": x}) for n, x in enumerate(numbers)]
    found = importance.ranked(trials, "a", "maximize")
    assert list(found) == ["rate", "idle"]
    assert found["rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importance.ranked(trials[:5], "a", "maximize") == {}, "five say nothing"


def test_the_learners_effect_is_its_share_of_the_variance() -> None:
    apart = [trial(n, float(n % 2), "ab"[n % 2]) for n in range(8)]
    alike = [trial(n, float(n // 2 % 2), "ab"[n % 2]) for n in range(8)]
    assert importance.share_of_variance(apart) == 1.0
    assert importance.share_of_variance(alike) == 0.0
    assert importance.share_of_variance(apart[:1]) is None
    assert importance.share_of_variance([trial(n, 0.5, "ab"[n % 2]) for n in range(8)]) is None


def test_slices_and_contours_are_of_the_winners_learner_with_names_escaped() -> None:
    params = [
        {"<i>.lr": (37 * n % 50) / 50, "m": (19 * n % 50) / 50, "kind": "<b>" if n % 3 else "x"} for n in range(50)
    ]
    trials = [trial(n, one["m"], params=one) for n, one in enumerate(params)] + [trial(99, 0.1, "b")]
    slices = importance.slices(BOARD, trials, "a")
    assert len(slices) == 3
    titles = {figure.layout["xaxis"]["title"]["text"] for figure in slices}
    assert titles == {"&lt;i&gt;.lr", "m", "kind"}
    assert "<b>" not in str([figure.data for figure in slices])
    [contour] = importance.contours(BOARD, trials, "a")
    surface, dots = contour.data
    assert len(dots["x"]) == 50
    rising = [row if contour.layout["yaxis"]["title"]["text"] == "m" else None for row in surface["z"]]
    values = [max(row) for row in rising if row] or surface["z"][0]
    assert values[-1] > values[0] + 0.5, "the score is m itself"


def test_a_front_holds_what_nothing_beats_in_all_objectives() -> None:
    points = [(0.9, 5.0), (0.8, 1.0), (0.7, 3.0), (0.95, 9.0), (0.8, 2.0)]
    trials = [trial(n, values[0], values=values) for n, values in enumerate(points)]
    board = BOARD | {"objectives": {"accuracy": "maximize", "seconds": "minimize"}}
    [figure] = importance.pareto(board, trials, OF)
    beaten, front = figure.data
    assert set(front["x"]) == {0.9, 0.8, 0.95}
    assert list(zip(beaten["x"], beaten["y"], strict=True)) == [(0.7, 3.0), (0.8, 2.0)]
    assert len(importance.pareto(board | {"objectives": {"a": "maximize"}}, trials, OF)) == 0
    assert importance.pareto(BOARD, trials, OF) == []


def test_pauses_of_a_study_are_no_running_time_and_trials_side_by_side_count_once() -> None:
    begun = datetime(2026, 1, 1)
    study = optuna.create_study()
    for end, seconds in ((10, 10), (12, 8), (20, 5), (1000, 10)):
        one = create_trial(state=TrialState.COMPLETE, value=0.5)
        one.datetime_start, one.datetime_complete = begun, begun + timedelta(seconds=end)
        result = {"learner": "a", "state": "complete", "mean": 0.5, "seconds": float(seconds)}
        one.user_attrs["result"] = result
        study.add_trial(one)
    assert [one.seconds for one in tried.read(study)] == pytest.approx([10, 12, 17, 27])
