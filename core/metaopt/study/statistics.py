"""Comparisons on the same tasks: paired tests, corrected for how many there are, and when to look in a race."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05
"""Of every test: the share of false findings that is allowed."""
FIRST_LOOK = 20  # tasks: below it a t-test of accuracies is rough
LOOKS = 5


@dataclass(frozen=True)
class Difference:
    """How much one exceeds another on the same tasks: the mean, half its 95 % interval, and a two-sided p-value."""

    mean: float
    ci95: float
    p: float


def paired(one: ArrayLike, other: ArrayLike) -> Difference:
    """Return by how much `one` exceeds `other`, both (n_tasks,), by the paired t-test (Student, 1908)."""
    from scipy.stats import t  # type: ignore[import-untyped] # here, as it takes half a second

    differences = _differences(one, other)
    mean, error = float(differences.mean()), _standard_error(differences)
    if error == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0)
    degrees = len(differences) - 1
    return Difference(mean, float(t.ppf(0.975, degrees) * error), float(2 * t.sf(abs(mean) / error, degrees)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number (Holm, 1979): below a level, that finding holds at that level."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def looks_at(n_tasks: int) -> list[int]:
    """Return the numbers of tasks after which a race is looked at: a few, each twice the one before, not the last."""
    first = max(FIRST_LOOK, n_tasks // 2**LOOKS)
    return [look for look in (first * 2**k for k in range(LOOKS)) if look < n_tasks]


def is_beaten(scores: ArrayLike, best: ArrayLike, n_tasks: int, *, maximize: bool) -> bool:
    """Tell whether scores are worse than the best's on the same tasks, the first few of `n_tasks`, beyond doubt.

    A one-sided paired t-test at each look, its level divided by the number of looks (Bonferroni): one that is as good
    is stopped in at most 5 % of races.
    """
    from scipy.stats import t

    behind = _differences(best, scores) * (1 if maximize else -1)
    mean, error = float(behind.mean()), _standard_error(behind)
    if mean <= 0 or not isfinite(error):
        return False
    level = LEVEL / max(1, len(looks_at(n_tasks)))
    return error == 0 or bool(t.sf(mean / error, len(behind) - 1) < level)


def _differences(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape} are not of the same tasks")
    return a - b


def _standard_error(differences: NDArray[np.float64]) -> float:
    n = len(differences)
    return float(differences.std(ddof=1) / sqrt(n)) if n > 1 else inf
