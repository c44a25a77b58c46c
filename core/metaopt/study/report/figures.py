"""The figures of a report as plain data for plotly.js: what the search found, drawn from its leaderboard and trials."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metaopt.study.report.tried import Tried

Board = Mapping[str, Any]
COLOURS = ("#3f7fd6", "#dd7a1c", "#2c9c74", "#c94f6d", "#8567cc", "#1f9fb8", "#a5702f", "#7d9a2c")
"""Of learners, best first; told apart on paper and on black, and by people who see few colours."""
OTHER = "#8b9099"
"""Of the learners beyond those."""
LONGEST = 28
"""Characters of a name in a figure."""


@dataclass(frozen=True)
class Figure:
    """A figure and the sentence that says how to read it."""

    name: str
    reading: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 380
    """In CSS pixels."""


def plain(text: object, longest: int = LONGEST) -> str:
    """Return a text for a figure. Plotly reads tags and entities in its texts, so what looks like one is escaped."""
    shown = str(text)
    return html.escape(shown if len(shown) <= longest else f"{shown[: longest - 1]}…", quote=False)


def colours(board: Board, trials: Sequence[Tried]) -> dict[str, str]:
    """Return a colour for each learner, those that came out best first."""
    order = list(dict.fromkeys([*board["learners"], *(trial.learner for trial in trials)]))
    return {name: COLOURS[at] if at < len(COLOURS) else OTHER for at, name in enumerate(order)}


def bounds(values: Sequence[float], direction: str) -> list[float] | None:
    """Return the ends of an axis for all good values and nearly all bad ones.

    Those far out on the bad side, of what diverged, would flatten all others.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if len(finite) < 4:
        return None
    low, high = finite[0], finite[-1]
    first, third = finite[len(finite) // 4], finite[-1 - len(finite) // 4]
    reach = 3 * (third - first)
    if direction == "maximize":
        low = next(value for value in finite if value >= first - reach)
    else:
        high = next(value for value in reversed(finite) if value <= third + reach)
    margin = 0.06 * (high - low) or 0.05 * abs(low) or 0.05
    return [low - margin, high + margin]


def intervals(board: Board) -> Figure:
    """Return the finalists' scores with their intervals."""
    entries = board["finalists"]
    marks = (
        ("search", "circle-open", OTHER, "in the search", -0.22),
        ("fresh", "circle", COLOURS[0], "on fresh tasks", 0.0),
        ("report", "diamond", COLOURS[1], "on test tasks", 0.22),
    )
    data: list[dict[str, Any]] = []
    for key, symbol, colour, title, aside in marks:
        shown = [
            (at + aside, entry[key])
            for at, entry in enumerate(entries)
            if entry[key] and (key != "report" or entry[key]["pool"] == "test")
        ]
        if shown:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": title,
                    "x": [score["mean"] for _, score in shown],
                    "y": [at for at, _ in shown],
                    "error_x": {"array": [_finite(score["ci95"]) for _, score in shown], "thickness": 1.5, "width": 4},
                    "marker": {"symbol": symbol, "size": 10, "color": colour},
                    "hovertemplate": "%{x:.4f}",
                }
            )
    layout = {
        "xaxis": {"title": {"text": plain(board["objective"])}},
        "yaxis": {
            "tickvals": list(range(len(entries))),
            "ticktext": [f"{entry['rank']} · {_title(entry)}" for entry in entries],
            "range": [len(entries) - 0.5, -0.5],
            "showgrid": False,
        },
    }
    reading = (
        "Each row is a finalist; a mark is its mean score and the line its 95 % interval. Where intervals of filled "
        "circles are apart, so are the finalists; where they overlap, look at the paired test in the table."
    )
    return Figure("intervals", reading, data, layout, height=110 + 72 * len(entries))


def _title(entry: Board) -> str:
    trial = "" if "members" in entry else f" (trial {entry['trial']})"
    return f"{plain(entry['learner'])}{trial}"


def shrinkage(board: Board) -> Figure:
    """Return the finalists' scores from the search to fresh tasks to test tasks."""
    data: list[dict[str, Any]] = []
    n = len(board["finalists"])
    for at, entry in enumerate(board["finalists"]):
        stages = [
            entry["search"],
            entry["fresh"],
            entry["report"] if (entry["report"] or {}).get("pool") == "test" else None,
        ]
        shown = [(stage + 0.03 * (at - (n - 1) / 2), score) for stage, score in enumerate(stages) if score]
        colour = COLOURS[at] if at < len(COLOURS) else OTHER
        title = _title(entry)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": title,
                "x": [x for x, _ in shown],
                "y": [score["mean"] for _, score in shown],
                "error_y": {"array": [_finite(score["ci95"]) for _, score in shown], "thickness": 1.2, "width": 3},
                "line": {"color": colour, "width": 2.5 if at == 0 else 1.5},
                "marker": {"size": 8},
                "hovertemplate": "%{y:.4f}",
            }
        )
        repeats = (entry["fresh"] or {}).get("repeats", [])
        if len(repeats) > 1:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{title}, each seed",
                    "showlegend": False,
                    "x": [shown[1][0]] * len(repeats),
                    "y": [_finite(mean) for mean in repeats],
                    "marker": {"symbol": "line-ew-open", "size": 12, "color": colour},
                    "hovertemplate": "%{y:.4f}",
                }
            )
    layout = {
        "xaxis": {"tickvals": [0, 1, 2], "ticktext": ["search", "fresh tasks", "test tasks"], "range": [-0.25, 2.25],
                  "showgrid": False},
        "yaxis": {"title": {"text": plain(board["objective"])}},
    }  # fmt: skip
    reading = (
        "A line follows a finalist from the score that it was chosen by, through fresh tasks after a new training, to "
        "the test pool. A first step for the worse is the luck of the draw that the search had picked."
    )
    return Figure("shrinkage", reading, data, layout, height=400)


def progress(board: Board, trials: Sequence[Tried], of: Mapping[str, str], *, over_time: bool) -> Figure:
    """Return every trial's score and the best so far, over trials or over time."""

    def place(trial: Tried) -> float:
        return trial.seconds / 60 if over_time else trial.number

    ordered = sorted(trials, key=lambda trial: trial.seconds) if over_time else list(trials)
    data: list[dict[str, Any]] = []
    for colour in dict.fromkeys(of.values()):
        own = [trial for trial in ordered if of[trial.learner] == colour and trial.state == "complete"]
        learners = list(dict.fromkeys(trial.learner for trial in own))
        if own:
            title = plain(learners[0]) if len(learners) == 1 else f"{len(learners)} other learners"
            data.append(_dots(own, place, title, {"color": colour, "size": 7}))
    for state, symbol, title in (
        ("raced", "circle-open", "beaten in its evaluation"),
        ("pruned", "x-thin-open", "stopped on the way"),
    ):
        own = [trial for trial in ordered if trial.state == state and (trial.value is not None or trial.curve)]
        if own:
            marker = {"symbol": symbol, "size": 7, "color": [of[trial.learner] for trial in own], "opacity": 0.75}
            data.append(_dots(own, place, title, marker))
    sign, best, steps = (1 if board["direction"] == "maximize" else -1), -math.inf, []
    for trial in ordered:
        if trial.state == "complete" and trial.value is not None and sign * trial.value > best:
            best = sign * trial.value
            steps.append((place(trial), trial.value))
    if steps:
        steps.append((max(place(trial) for trial in ordered), steps[-1][1]))
        line = {"shape": "hv", "width": 2, "color": OTHER}
        data.insert(0, {"type": "scatter", "mode": "lines", "name": "best so far", "line": line,
                        "x": [x for x, _ in steps], "y": [y for _, y in steps], "hoverinfo": "skip"})  # fmt: skip
    values = [value for trial in trials if (value := _shown(trial)) is not None]
    layout = {
        "xaxis": {"title": {"text": "minutes of the study" if over_time else "trial"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": plain(board["objective"])}, "range": bounds(values, board["direction"])},
        "hovermode": "closest",
    }
    reading = (
        "The same over the time in which the study ran: a flat line at the end says that more time would buy little."
        if over_time
        else "Each dot is a trial, its colour the learner; the line is the best score so far. Hollow dots were beaten "
        "beyond doubt on the first tasks, crosses stopped before the end of their training."
    )
    return Figure("progress-time" if over_time else "progress-trials", reading, data, layout, height=420)


def _dots(trials: Sequence[Tried], place: Any, title: str, marker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": title,
        "x": [round(place(trial), 4) for trial in trials],
        "y": [_shown(trial) for trial in trials],
        "text": [f"trial {trial.number}, {plain(trial.learner)}" for trial in trials],
        "hovertemplate": "%{text}: %{y:.4f}<extra></extra>",
        "marker": dict(marker),
        "cliponaxis": False,
    }


def _shown(trial: Tried) -> float | None:
    return trial.value if trial.value is not None else trial.curve[-1][1] if trial.curve else None


def families(board: Board, trials: Sequence[Tried], of: Mapping[str, str]) -> Figure:
    """Return each learner's best score with its interval, over all that it scored."""
    learners = list(board["learners"])
    names = {learner: plain(learner) for learner in learners}
    scored = [trial for trial in trials if trial.value is not None and trial.learner in names]
    best = [board["learners"][learner]["search"] for learner in learners]
    ends = [score["mean"] + way * (_finite(score["ci95"]) or 0.0) for score in best for way in (-1, 1)]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "each trial",
            "x": [trial.value for trial in scored],
            "y": [names[trial.learner] for trial in scored],
            "text": [f"trial {trial.number}" for trial in scored],
            "hovertemplate": "%{y}, %{text}: %{x:.4f}<extra></extra>",
            "marker": {"symbol": "line-ns-open", "size": 12, "opacity": 0.55,
                       "color": [of[trial.learner] for trial in scored]},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "the best, with its interval",
            "x": [score["mean"] for score in best],
            "y": [names[learner] for learner in learners],
            "error_x": {"array": [_finite(one["ci95"]) for one in best], "thickness": 1.5, "width": 4, "color": OTHER},
            "marker": {"size": 10, "color": [of[learner] for learner in learners]},
        },
    ]  # fmt: skip
    layout = {
        "xaxis": {
            "title": {"text": plain(board["objective"])},
            "range": bounds([*(trial.value or 0.0 for trial in scored), *ends], board["direction"]),
        },
        "yaxis": {"categoryorder": "array", "categoryarray": [names[learner] for learner in learners][::-1]},
        "hovermode": "closest",
    }
    reading = (
        "A row is a learner, a tick one of its trials, the dot the best of those that were scored to their end. A "
        "learner whose ticks lie close together needs little tuning; one whose ticks are spread is worth it."
    )
    return Figure("families", reading, data, layout, height=150 + 30 * len(learners))


def curves(board: Board, trials: Sequence[Tried]) -> Figure | None:
    """Return trials' scores over their meta-training, those pruned marked; None where none was scored on its way."""
    chosen = {entry["trial"] for entry in board["finalists"]}
    lines = [trial for trial in trials if len(trial.curve) > 1 or (trial.state == "pruned" and trial.curve)]
    if not lines:
        return None
    data = []
    for title, own, style in (
        ("stopped on the way", [t for t in lines if t.state == "pruned"], {"color": COLOURS[3], "width": 1}),
        (
            "beaten in its evaluation",
            [t for t in lines if t.state == "raced"],
            {"color": OTHER, "width": 1, "dash": "dot"},
        ),
        (
            "complete",
            [t for t in lines if t.state == "complete" and t.number not in chosen],
            {"color": COLOURS[0], "width": 1},
        ),
        ("finalists", [t for t in lines if t.number in chosen], {"color": COLOURS[1], "width": 2.5}),
    ):
        if own:
            data.append(_broken_lines(own, title, style))
    ends = [trial for trial in lines if trial.state == "pruned"]
    if ends:
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "where it was stopped", "showlegend": False,
                "x": [trial.curve[-1][0] for trial in ends], "y": [trial.curve[-1][1] for trial in ends],
                "marker": {"symbol": "x", "size": 6, "color": COLOURS[3]},
                "text": [f"trial {trial.number}, {plain(trial.learner)}" for trial in ends],
                "hovertemplate": "%{text}: stopped at %{x} % with %{y:.4f}<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "% of its meta-training"}, "range": [0, 103]},
        "yaxis": {"title": {"text": plain(board["objective"])},
                  "range": bounds([value for trial in lines for _, value in trial.curve], board["direction"])},
        "hovermode": "closest",
    }  # fmt: skip
    reading = (
        "A line is a trial, scored on a few tasks on its way and on all at its end; a cross marks where it was stopped "
        "as hopeless. Lines that still get better at the right edge would gain by a larger budget."
    )
    return Figure("curves", reading, data, layout, height=420)


def _broken_lines(trials: Sequence[Tried], title: str, style: Mapping[str, Any]) -> dict[str, Any]:
    """Return many lines as one trace, a gap between them: a trace each would take a browser seconds."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str | None] = []
    for trial in trials:
        name = f"trial {trial.number}, {plain(trial.learner)}"
        for share, value in trial.curve:
            x.append(share)
            y.append(value)
            text.append(name)
        x.append(None)
        y.append(None)
        text.append(None)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": title,
        "x": x,
        "y": y,
        "text": text,
        "connectgaps": False,
        "line": dict(style),
        "marker": {"size": 3},
        "opacity": 0.8,
        "hovertemplate": "%{text}: %{y:.4f} at %{x} %<extra></extra>",
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
