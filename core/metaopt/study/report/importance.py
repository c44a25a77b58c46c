"""What made the difference: the learner's effect apart from the importance of hyperparameters within each learner.

In one ranking over all learners the winner's own hyperparameters take everything: to have them is to be the winner.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.visualization import plot_slice

from metaopt.study.report.figures import LONGEST, Board, Figure, plain
from metaopt.study.report.tried import Tried

FEWEST = 8
"""Trials of a learner below which importance within it says nothing."""
MOST = 2000
"""Trials of a learner that are looked at and drawn: more say no more, and take minutes."""
MOST_LEARNERS = 6
"""Whose importances are drawn: the best ones."""
SLICES = 9
LEVELS = 4
"""Values of a number below which a contour over it says less than its slice."""
GRID = 28
"""Points along each axis of a contour."""
WIDTH = 0.1
"""Of the bell curve that smooths a contour, as a share of the range that was tried."""
EARLY_TO_LATE = [[0, "#9db9e4"], [0.5, "#7a6fc8"], [1, "#c2487f"]]


def scored(trials: Sequence[Tried]) -> list[Tried]:
    """Return the trials that have a score, those raced out included: told so, they are not forgotten."""
    return [trial for trial in trials if trial.values]


def few(trials: Sequence[Tried], learner: str) -> list[Tried]:
    """Return a learner's trials that have a score; where they are many, some of them, evenly from first to last."""
    own = [trial for trial in scored(trials) if trial.learner == learner]
    return [own[at * len(own) // MOST] for at in range(MOST)] if len(own) > MOST else own


def share_of_variance(trials: Sequence[Tried]) -> float | None:
    """Return the share of the variance of scores that the choice of the learner explains, from 0 to 1.

    None where there is one learner, or nothing to explain.
    """
    own: dict[str, list[float]] = {}
    for trial in scored(trials):
        own.setdefault(trial.learner, []).append(trial.value or 0.0)
    values = [value for group in own.values() for value in group]
    if len(own) < 2 or len(values) <= len(own):
        return None
    mean = sum(values) / len(values)
    total = sum((value - mean) ** 2 for value in values)
    between = sum(len(group) * (sum(group) / len(group) - mean) ** 2 for group in own.values())
    return between / total if total > 0 else None


def within(board: Board, trials: Sequence[Tried], of: Mapping[str, str]) -> list[Figure]:
    """Return a bar chart of importances for each of the best learners of which enough was tried."""
    figures = []
    for learner in list(board["learners"])[:MOST_LEARNERS]:
        found = ranked(trials, learner, board["direction"])
        if not found:
            continue
        shown = list(found.items())[:10][::-1]
        data = [
            {
                "type": "bar",
                "orientation": "h",
                "x": [share for _, share in shown],
                "y": [name for name, _ in shown],
                "marker": {"color": of[learner]},
                "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
            }
        ]
        count = len(few(trials, learner))
        layout = {"xaxis": {"tickformat": ".0%", "rangemode": "tozero"}, "bargap": 0.35}
        reading = f"{learner}, {count} trials: how much each setting decides which of them are among its best."
        figures.append(Figure(f"importance-{learner}", reading, data, layout, height=110 + 30 * len(shown)))
    return figures


def ranked(trials: Sequence[Tried], learner: str, direction: str) -> dict[str, float]:
    """Return the importances within a learner, the largest first, as shares of 1; names are escaped.

    PED-ANOVA: how differently a hyperparameter is distributed among the best trials. Empty where too little was tried.
    """
    own = few(trials, learner)
    names = _varied(own)
    if len(own) < FEWEST or not names:
        return {}
    best = min(0.5, max(0.1, 5 / len(own)))  # Optuna's note: five trials at least among the best
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of regimes with few trials
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
        return get_param_importances(_alone(own, direction), evaluator=evaluator, params=names)


def slices(
    board: Board, trials: Sequence[Tried], learner: str, ranks: Mapping[str, float] | None = None
) -> list[Figure]:
    """Return a slice of the scores along each of the learner's most important hyperparameters, as `ranked` has them."""
    own = few(trials, learner)
    names = list(ranked(trials, learner, board["direction"]) if ranks is None else ranks) or _varied(own)
    if len(own) < 3 or not names:
        return []
    study, figures = _alone(own, board["direction"]), []
    for at, name in enumerate(names[:SLICES]):
        data, layout = _of_optuna(plot_slice(study, params=[name], target_name=plain(board["objective"])))
        for trace in data:
            trace["marker"] |= {"colorscale": EARLY_TO_LATE, "size": 7, "line": {"width": 0}}
            trace["marker"]["showscale"] = False
        figures.append(Figure(f"slice-{at}", "", data, layout, height=280))
    return figures


def contours(
    board: Board, trials: Sequence[Tried], learner: str, ranks: Mapping[str, float] | None = None
) -> list[Figure]:
    """Return the score over pairs of the learner's three most important hyperparameters that are numbers.

    Drawn smoothed: Optuna's own contour goes through every trial, and of noisy scores that makes stripes.
    """
    own = few(trials, learner)
    named = {plain(name, 60): name for trial in own for name in trial.frozen.params}
    numbers = [
        named[name]
        for name in (ranked(trials, learner, board["direction"]) if ranks is None else ranks)
        if len({trial.frozen.params[named[name]] for trial in own if named[name] in trial.frozen.params}) >= LEVELS
        and not any(isinstance(trial.frozen.distributions.get(named[name]), CategoricalDistribution) for trial in own)
    ]
    pairs = list(combinations(numbers[:3], 2))
    return [figure for at, pair in enumerate(pairs) if (figure := _contour(board, own, pair, f"contour-{at}"))]


def _contour(board: Board, trials: Sequence[Tried], pair: tuple[str, str], name: str) -> Figure | None:
    own = [trial for trial in trials if all(one in trial.frozen.params for one in pair)]
    if len(own) < FEWEST:
        return None
    log = [bool(getattr(own[0].frozen.distributions[one], "log", False)) for one in pair]
    tried = np.array([[trial.frozen.params[one] for one in pair] for trial in own], float)  # (n, 2)
    values = np.array([trial.value for trial in own], float)
    places = np.where(log, np.log(np.where(log, tried, 1.0)), tried)
    low, high = places.min(0), places.max(0)
    shares = (places - low) / (high - low)  # (n, 2) from 0 to 1
    ticks = np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 1, 2)  # (GRID², 1, 2)
    distances = ((grid - shares) ** 2).sum(-1) / WIDTH**2  # (GRID², n)
    weights = np.exp(-(distances - distances.min(1, keepdims=True)) / 2)
    smooth = (weights @ values / weights.sum(1)).reshape(GRID, GRID)
    axes = [
        np.exp(a) if logarithmic else a
        for a, logarithmic in zip((low + ticks[:, None] * (high - low)).T, log, strict=True)
    ]
    data = [
        {
            "type": "contour",
            "x": axes[0].tolist(),
            "y": axes[1].tolist(),
            "z": smooth.round(5).tolist(),
            "colorscale": "Cividis",
            "ncontours": 12,
            "line": {"width": 0.5},
            "colorbar": {"thickness": 12, "outlinewidth": 0},
            "hovertemplate": "%{x:.4g}, %{y:.4g}: about %{z:.4f}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": tried[:, 0].tolist(),
            "y": tried[:, 1].tolist(),
            "text": [f"trial {trial.number}: {trial.value:.4f}" for trial in own],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": "#ffffff", "size": 4, "line": {"color": "#222222", "width": 0.8}},
        },
    ]
    layout = {
        axis: {"title": {"text": plain(one, 60)}, "range": np.stack([low, high], 1)[at].tolist()}
        | (
            {"type": "log", "dtick": "D2", "range": (np.stack([low, high], 1)[at] / np.log(10)).tolist()}
            if log[at]
            else {}
        )
        for at, (axis, one) in enumerate(zip(("xaxis", "yaxis"), pair, strict=True))
    }
    return Figure(name, "", data, layout | {"showlegend": False}, height=360)


def pareto(board: Board, trials: Sequence[Tried], of: Mapping[str, str]) -> list[Figure]:
    """Return the Pareto front of a study of several objectives, a figure for each two of them; none of one."""
    names = [plain(name) for name in board.get("objectives", ())]
    own = [trial for trial in trials if trial.values and len(trial.values) == len(names)]
    if len(names) < 2 or not own:
        return []
    study = optuna.create_study(directions=list(board["objectives"].values()))
    study.add_trials([optuna.create_trial(values=list(trial.values or ())) for trial in own])
    numbers = {trial.number for trial in study.best_trials}
    front = [trial for at, trial in enumerate(own) if at in numbers]
    others = [trial for at, trial in enumerate(own) if at not in numbers]
    figures = []
    for at, (x, y) in enumerate(combinations(range(len(names)), 2)):
        data: list[dict[str, Any]] = []
        marks: tuple[tuple[str, list[Tried], dict[str, Any]], ...] = (
            ("beaten in all by another", others, {"size": 6, "opacity": 0.45, "symbol": "circle-open"}),
            ("on the front", front, {"size": 11}),
        )
        for title, group, marker in marks:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": title,
                    "x": [trial.values[x] for trial in group if trial.values],
                    "y": [trial.values[y] for trial in group if trial.values],
                    "text": [f"trial {trial.number}, {plain(trial.learner)}" for trial in group],
                    "hovertemplate": "%{text}: %{x:.4g}, %{y:.4g}<extra></extra>",
                    "marker": marker | {"color": [of[trial.learner] for trial in group]},
                }
            )
        layout = {"xaxis": {"title": {"text": names[x]}}, "yaxis": {"title": {"text": names[y]}}}
        figures.append(Figure(f"pareto-{at}", "", data, layout, height=440))
    return figures


def _varied(trials: Sequence[Tried]) -> list[str]:
    """Return, escaped, the names of the hyperparameters that differ among the trials; which learner it is does not."""
    seen: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.frozen.params.items():
            seen.setdefault(name, set()).add(repr(value))
    return [plain(name, 60) for name, values in seen.items() if len(values) > 1 and name != "learner"]


def _alone(trials: Sequence[Tried], direction: str) -> optuna.Study:
    """Return a study of these trials alone, in memory, the names in it escaped for a figure."""
    study = optuna.create_study(direction=StudyDirection[direction.upper()])
    study.add_trials(
        [
            optuna.create_trial(
                value=trial.value,
                params={plain(name, 60): _shown(value) for name, value in trial.frozen.params.items()},
                distributions={plain(name, 60): _shown_range(one) for name, one in trial.frozen.distributions.items()},
            )
            for trial in trials
        ]
    )
    return study


def _shown(value: Any) -> Any:
    return plain(value, LONGEST) if isinstance(value, str) else value


def _shown_range(distribution: BaseDistribution) -> BaseDistribution:
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution([_shown(choice) for choice in distribution.choices])
    return distribution


def _of_optuna(figure: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return an Optuna figure as plain data, without its title and without Plotly's template of styles."""
    found = json.loads(figure.to_json())
    layout = found["layout"]
    for key in ("template", "title"):
        layout.pop(key, None)
    for key in ("xaxis", "yaxis"):
        if layout[key].get("type") == "log":
            layout[key]["dtick"] = "D2"  # 1, 2, 5: a label for every digit would run into the next
    return found["data"], layout
