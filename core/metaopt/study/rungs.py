"""What trials that reached the same step of their training will come to, for successive halving.

Trials are held against each other by that (Jamieson & Talwalkar, 2016, arXiv:1502.07943, and without waiting for each
other as in Li et al., 2020, arXiv:1810.05934, hold them by what they are). Each trial that ended is looked at once.
"""

import math
import operator
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from functools import partial

from optuna.trial import FrozenTrial

SHARE = 3
"""One of so many goes on, the usual share of Hyperband (Li et al., 2018, arXiv:1603.06560)."""
OWN = 3
"""Complete trials of a learner before what its others will gain is believed: were it known of its defaults alone, and
these gain little, no other would get as far as to show more."""


class Rung:
    """The trials that reached one step, and what they gained from there to their end.

    A learning curve goes on as those of its learner did on average, for learners differ in how late they gain.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.values: dict[str | None, list[float]] = {}
        """By learner the scores there, sorted, of trials that ended."""
        self.gains: dict[str | None, list[float]] = {}
        """By learner what complete trials came to beyond that."""
        self.first, self.seen = 0, set[int]()
        """All trials before that number have ended and were looked at, and these after it."""

    def estimate(self, number: int, trials: Sequence[FrozenTrial], *, maximize: bool) -> float | None:
        """Return what a trial will come to where it is not among the better third; None where it is, or nobody knows.

        `trials` are all of the study, by their number.
        """
        running = list(self._follow(trials))
        means = {learner: math.fsum(gains) / len(gains) for learner, gains in self.gains.items() if len(gains) >= OWN}
        predicted = {
            one.number: one.intermediate_values[self.step] + means[learner]
            for one in running
            if (learner := one.params.get("learner")) in means
        }
        n = len(predicted) + sum(len(self.values[learner]) for learner in means)
        if number not in predicted:
            return None
        own = predicted[number]
        better = sum(one > own if maximize else one < own for one in predicted.values())
        for learner, mean in means.items():
            values = self.values[learner]
            end = partial(operator.add, mean)
            better += (
                len(values) - bisect_right(values, own, key=end) if maximize else bisect_left(values, own, key=end)
            )
        return own if better >= max(1, n // SHARE) else None

    def _follow(self, trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
        """Look at the trials that have ended since; yield those that reached the step and run."""
        for one in trials[self.first :]:
            if one.number in self.seen:
                continue
            value = one.intermediate_values.get(self.step)
            if not one.state.is_finished():
                if value is not None:
                    yield one
                continue
            self.seen.add(one.number)
            if value is None:
                continue
            learner = one.params.get("learner")
            insort(self.values.setdefault(learner, []), value)
            if one.user_attrs.get("result", {}).get("state") == "complete" and one.values:  # told, by whoever had it
                self.gains.setdefault(learner, []).append(one.values[0] - value)
        while self.first in self.seen:
            self.seen.discard(self.first)
            self.first += 1
