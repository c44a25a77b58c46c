"""The trials of a study as a report needs them: plain data, read from its storage."""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import optuna
from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Tried:
    """A trial that ended."""

    number: int
    learner: str
    state: str
    """"complete"; "raced": stopped in its evaluation; "pruned": stopped on the way there; "failed"."""
    values: tuple[float, ...] | None
    """Its scores, one an objective; of a raced one what all tasks would have given; None where it has none."""
    curve: tuple[tuple[float, float], ...]
    """(percent of its meta-training, score on a few tasks), and where it was scored in the end (100, that score)."""
    seconds: float
    """Of the study's running time when it ended."""
    frozen: FrozenTrial
    decisive: int = 0
    """Which of its scores the study prefers."""

    @property
    def value(self) -> float | None:
        """The score by the objective that the study prefers."""
        return self.values[self.decisive] if self.values else None


def read(study: optuna.Study, decisive: int = 0) -> list[Tried]:
    """Return the trials of a study that metaopt made and that ended, in order.

    Of a study with several objectives, `decisive` is the number of the one that it prefers.
    """
    ended = [trial for trial in study.get_trials(deepcopy=False) if "result" in trial.user_attrs]
    seconds = _running_time(ended)
    return [_tried(trial, seconds.get(trial.number, 0.0), decisive) for trial in ended]


def _tried(trial: FrozenTrial, seconds: float, decisive: int) -> Tried:
    result: dict[str, Any] = trial.user_attrs["result"]
    state = result["state"]
    values: tuple[float, ...] | None = None
    if state == "complete":
        values = tuple(trial.values or ([] if result["mean"] is None else [result["mean"]])) or None
    elif state == "pruned" and (result["reason"] or "").startswith("beaten"):
        state, values = "raced", tuple(trial.values or [result["estimate"]])
    curve = [(float(step), float(value)) for step, value in sorted(trial.intermediate_values.items())]
    if values and state == "complete":
        curve = [point for point in curve if point[0] < 100] + [(100.0, values[0])]
    finite = tuple(point for point in curve if math.isfinite(point[1]))
    if values and not all(map(math.isfinite, values)):
        values = None
    return Tried(trial.number, result["learner"], state, values, finite, seconds, trial, decisive)


def _running_time(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Return, by number, the time in which trials ran until this one ended; pauses of the study are left out."""
    ends = {trial.number: trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete}
    spans: list[list[float]] = []  # in which trials ran, apart from each other
    for start, end in sorted(
        (ends[trial.number] - trial.user_attrs["result"]["seconds"], ends[trial.number])
        for trial in trials
        if trial.number in ends
    ):
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([start, end])
    starts = [start for start, _ in spans]
    before = [0.0, *accumulate(end - start for start, end in spans)]  # the running time when each began
    where = {number: bisect(starts, at) - 1 for number, at in ends.items()}
    return {number: before[span] + ends[number] - starts[span] for number, span in where.items()}
