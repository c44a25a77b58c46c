"""How long outer steps take under an executor, which may record them after a while and be faster then."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from metaopt.executor import Executor, Recorder

STEPS = 50
"""Of each kind that are timed at most; three at least."""
RESOLUTION = 1e-9
"""Seconds below which no step is believed to take."""


@dataclass(frozen=True)
class Pace:
    """CPU seconds of outer steps, one after the other."""

    plain: float
    """Of a step before it is recorded."""
    after: float = math.inf
    """Steps after which it is."""
    recording: float = 0.0
    """What recording takes, once."""
    replayed: float = 0.0
    """Of a step thereafter."""

    def seconds(self, steps: float) -> float:
        """Return what so many steps take."""
        if steps <= self.after:
            return steps * self.plain
        return self.after * self.plain + self.recording + (steps - self.after) * self.replayed

    def steps(self, seconds: float) -> float:
        """Return how many steps so many seconds are good for."""
        if seconds <= self.after * self.plain + self.recording:
            return min(seconds / self.plain, self.after)
        return self.after + (seconds - self.after * self.plain - self.recording) / self.replayed


def measured(step: Callable[[Executor], object], executor: Executor, seconds: float, spend: float) -> Pace:
    """Time `step` under an executor that has seen none yet, for a training of about so many CPU seconds.

    About `spend` of them go into steps before they are recorded, and as many into steps thereafter.
    What it does once it is recorded is timed only where at least a third of that training would be so. Steps whose
    tasks differ in size are recorded once for each, and are taken for never recorded.
    """
    plain = _timed(lambda: step(executor), spend)
    pace = Pace(max(median(plain), RESOLUTION))
    if not isinstance(executor, Recorder) or executor.sizes() != 1:
        return pace
    after = executor.patience() * len(plain) / max(executor.seen.values())
    if pace.steps(seconds) < 1.5 * after:
        return pace
    soon = executor.soon()
    step(soon)
    began = time.process_time()
    step(soon)
    recording = time.process_time() - began
    if not soon.replays:
        return pace
    replayed = max(median(_timed(lambda: step(soon), spend)), RESOLUTION)
    return Pace(pace.plain, after, max(0.0, recording - replayed), replayed)


def _timed(step: Callable[[], object], seconds: float) -> list[float]:
    """Return the CPU seconds of each of some steps, of all of them about that many."""
    took: list[float] = []
    started = before = time.process_time()
    while len(took) < 3 or (before - started < seconds and len(took) < STEPS):
        step()
        now = time.process_time()
        took.append(now - before)
        before = now
    return took
