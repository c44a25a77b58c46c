"""The leaderboard: what a study found, as data and as a table."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.errors import UserError
from metaopt.study import versions
from metaopt.study.folder import refuse_links
from metaopt.study.statistics import LEVEL, holm, paired

if TYPE_CHECKING:
    from metaopt.study.search import Finalist
    from metaopt.study.trial import Bench, TrialResult
    from metaopt.train import Scores

FILE = "leaderboard.json"
MAX_BYTES = 2**26
_SCORE = {"pool": str, "mean": float, "ci95": float, "tasks": int, "median": (float, None)}
_ENTRY = {
    "trial": int,
    "learner": str,
    "params": dict,
    "transductive": bool,
    "idle": ([str], ...),
    "search": _SCORE,
    "trained_tasks": int,
    "cpu_seconds": float,
    "parameters": int,
}
_APART = {"mean": float, "ci95": float, "p": float, "told_apart": bool}
SHAPE: dict[str, Any] = {
    "study": str,
    "status": str,
    "seed": int,
    "objective": str,
    "direction": str,
    "search_on": str,
    "transductive": bool,
    "trials": {"complete": int, "pruned": int, "failed": int},
    "finalists": [
        _ENTRY
        | {
            "rank": int,
            "search": (_SCORE, None),
            "fresh": (_SCORE, None),
            "report": (_SCORE, None),
            "behind": (_APART, None),
            "final": ({"trained_tasks": int, "cpu_seconds": float}, ...),
            "members": ([{"trial": int, "learner": str, "count": int}], ...),
        }
    ],
    "learners": {...: _ENTRY},
    "tested": [{"what": str, "trial": int, "tasks": int}],
    "failures": [{"learner": str, "reason": str, "trials": int}],
    "limits": {"trials": int, "timeout": (float, None)},
    "versions": {...: str},
    "seconds": float,
    "objectives": ({...: str}, ...),
    "prefer": (str, ...),
    "front": ([{"trial": int, "learner": str, "values": {...: float}}], ...),
}
"""What a leaderboard has; later versions may add to it.

A pair allows either, and with `...` that a key is not there. As a key `...` stands for every name.
"""
KEYS = {key for key, shape in SHAPE.items() if not isinstance(shape, tuple) or ... not in shape}


def ranked(bench: "Bench", results: "Sequence[TrialResult]") -> "list[TrialResult]":
    """Return the complete trials, best first, each pipeline once; equal scores by number.

    Of a study with several objectives: those that none beats in all, within the bounds that it prefers.
    """
    if bench.others:
        prefer = bench.study.prefer
        results = [result for result in front(bench, results) if prefer.met(values(bench, result))]
    sign, name = -1 if bench.decisive.direction == "maximize" else 1, bench.decisive.name
    complete = [result for result in results if result.state == "complete"]
    best: dict[str, TrialResult] = {}
    for result in sorted(complete, key=lambda result: (sign * values(bench, result)[name], result.number)):
        best.setdefault(json.dumps(result.params, sort_keys=True), result)
    return list(best.values())


def candidates(bench: "Bench", best: "Sequence[TrialResult]") -> "list[TrialResult]":
    """Return which of the trials that are best, in their order, are to be finalists.

    Where those are meta-trained longer than trials are, the best of each learner comes before the second of any.
    """
    evaluation = bench.study.evaluation
    first: dict[str, TrialResult] = {}
    for result in best if evaluation.longer > 1 else ():
        first.setdefault(result.learner, result)
    return [*first.values(), *(result for result in best if result is not first.get(result.learner))][
        : evaluation.finalists
    ]


def front(bench: "Bench", results: "Sequence[TrialResult]") -> "list[TrialResult]":
    """Return the complete trials that no other beats in every objective (Pareto's front), by number.

    One beats another where it is at least as good in every objective and better in one.
    """
    signs = [1 if objective.direction == "maximize" else -1 for objective in (bench.objective, *bench.others)]
    complete = [result for result in results if result.state == "complete"]
    points = np.array([list(values(bench, result).values()) for result in complete]).reshape(-1, len(signs)) * signs
    kept = []
    for result, point in zip(complete, points, strict=True):
        if not ((points >= point).all(1) & (points > point).any(1)).any():
            kept.append(result)
    return kept


def values(bench: "Bench", result: "TrialResult") -> dict[str, float]:
    """Return a complete trial's mean scores by objective, in the study's order."""
    assert result.mean is not None, "a complete trial has a score"
    return {bench.objective.name: result.mean} | {name: other["mean"] for name, other in result.others.items()}


def build(
    bench: "Bench",
    results: "Sequence[TrialResult]",
    finalists: "Sequence[Finalist]",
    fallen: "Sequence[TrialResult]",
    report: "Scores | None",
    seconds: float,
    status: str,
    tested: Sequence[Mapping[str, Any]] = (),
    final: "TrialResult | None" = None,
) -> dict[str, Any]:
    """Return the leaderboard as `leaderboard.json` holds it.

    A finalist's `search` is its score in the search, on the tasks that all trials share; its `report` is on tasks
    that no trial has touched: the winner's on the test pool, the others' on fresh tasks of the pool searched on,
    which is what finalists are ranked by (`fresh`). `behind` tells by how much it is worse than the winner on those
    fresh tasks, and whether it is told apart from it: a paired test, Holm-corrected for the number of finalists.
    With several objectives these are by the one that the study prefers, each score has `others`, and `front` lists
    every trial that none beats in all. An ensemble among the finalists has `members`, and neither a trial (-1) nor a
    score of the search. `tested` is every time that the test pool was scored. Without `report` the study
    was interrupted or nothing came of it, and the best trials stand in the finalists' place. `fallen` are finalists
    that failed when meta-trained anew; `final` is what the winner took when it was meta-trained on all classes.
    """
    study = bench.study
    states = Counter(result.state for result in results)
    entries: list[dict[str, Any]] = []
    for finalist, behind in zip(finalists, _behind(bench, finalists), strict=True):
        fresh = score(bench.decided(finalist.fresh), study.search_on)
        fresh["repeats"] = [values(bench, done.result)[study.objective] for done in finalist.repeats]
        entry = _of_ensemble(bench, finalist) if finalist.members else _entry(bench, finalist.search)
        entries.append(entry | {"fresh": fresh, "report": fresh, "behind": behind})
    if report:
        entries[0]["report"] = score(bench.decided(report), "test")
        if final:
            entries[0]["final"] = {"trained_tasks": final.trained_tasks, "cpu_seconds": final.cpu_seconds}
    else:
        best = candidates(bench, ranked(bench, results))
        entries = [_entry(bench, result) | {"fresh": None, "report": None, "behind": None} for result in best]
    by_learner: dict[str, dict[str, Any]] = {}
    for result in ranked(bench, results):
        by_learner.setdefault(result.learner, _entry(bench, result))
    failures = Counter((result.learner, result.reason) for result in (*results, *fallen) if result.state == "failed")
    return {
        "study": study.name,
        "status": status,
        "seed": study.seed,
        "objective": study.objective,
        "direction": bench.decisive.direction,
        **(_several(bench, results) if bench.others else {}),
        "search_on": study.search_on,
        "transductive": study.transductive,
        "trials": {state: states[state] for state in ("complete", "pruned", "failed")},
        "finalists": [{"rank": rank, **entry} for rank, entry in enumerate(entries, 1)],
        "learners": by_learner,
        "tested": list(tested),
        "failures": [
            {"learner": learner, "reason": reason, "trials": count}
            for (learner, reason), count in sorted(failures.items(), key=lambda item: -item[1])
        ],
        "limits": {
            "trials": study.trials,
            "timeout": study.timeout,
            "finalists": study.evaluation.finalists,
            "repeats": study.evaluation.repeats,
            "longer": study.evaluation.longer,
            "report_tasks": study.evaluation.report_tasks,
            "ensemble": study.evaluation.ensemble,
        },
        "versions": versions.used(bench),
        "seconds": seconds,
    }


def read(folder: Path) -> dict[str, Any] | None:
    """Return the leaderboard in a run folder; None where there is none. Raises UserError where it is damaged."""
    path = folder / FILE
    refuse_links(folder)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        board: Any = json.loads(path.read_text(encoding="utf-8"))
        if not fits(board, SHAPE) or not _hangs_together(board):
            raise ValueError("it lacks what a leaderboard has")
        found: dict[str, Any] = board
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete it and run the study again to make it anew"
        ) from None
    return found


def fits(value: Any, shape: Any) -> bool:
    """Tell whether data are of a shape as `SHAPE` gives it."""
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        within = dict.fromkeys(value, shape[...]) if ... in shape and isinstance(value, dict) else shape
        return isinstance(value, dict) and all(fits(value.get(key, ...), one) for key, one in within.items())
    if shape in {int, float}:
        return isinstance(value, int | shape) and not isinstance(value, bool)
    return value is shape if shape in {None, ...} else isinstance(value, shape)


def _hangs_together(board: Mapping[str, Any]) -> bool:
    """Tell whether the parts of a leaderboard that are there belong to each other."""
    first, *others = board["finalists"] or [None]
    if board["status"] == "finished" and not (
        first and all(one["fresh"] and one["report"] for one in (first, *others))
    ):
        return False
    if board["status"] == "finished" and not all(one["behind"] for one in others):
        return False
    named = {"objectives", "prefer"} <= board.keys()
    return "front" not in board or (
        named and all(board["objectives"].keys() <= one["values"].keys() for one in board["front"])
    )


def number(value: float) -> str:
    """Write a score: 0.9731, 12.3, 4.1e+15."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def interval(score: Mapping[str, Any] | None) -> str:
    """Write a score with its 95 % interval, to the same place: 0.9731 ± 0.0123, 167.4 ± 4.3; a dash for none."""
    if not score:
        return "–"
    mean, ci95 = score["mean"], score["ci95"]
    if 10 <= abs(mean) < 10_000 and abs(ci95) < 10_000:
        places = 2 if abs(mean) < 100 else 1 if abs(mean) < 1000 else 0
        return f"{mean:.{places}f} ± {ci95:.{places}f}"
    return f"{number(mean)} ± {number(ci95)}"


def _several(bench: "Bench", results: "Sequence[TrialResult]") -> dict[str, Any]:
    objectives = {objective.name: objective.direction for objective in (bench.objective, *bench.others)}
    found = sorted(front(bench, results), key=lambda result: result.number)
    return {
        "objectives": objectives,
        "prefer": str(bench.study.prefer),
        "front": [
            {"trial": result.number, "learner": result.learner, "values": values(bench, result)} for result in found
        ],
    }


def _entry(bench: "Bench", result: "TrialResult") -> dict[str, Any]:
    return {
        "trial": result.number,
        "learner": result.learner,
        "params": result.params,
        "idle": bench.study.space.idle(result.params),
        "transductive": bench.study.space.transductive(result.params),
        "search": _search_score(bench, result),
        "trained_tasks": result.trained_tasks,
        "cpu_seconds": result.cpu_seconds,
        "parameters": result.parameters,
    }


def _of_ensemble(bench: "Bench", finalist: "Finalist") -> dict[str, Any]:
    result, space = finalist.search, bench.study.space
    return {
        "trial": result.number,
        "learner": result.learner,
        "params": result.params,
        "idle": [],
        "transductive": any(space.transductive(member.params) for member in finalist.members),
        "search": None,
        "trained_tasks": result.trained_tasks,
        "cpu_seconds": result.cpu_seconds,
        "parameters": result.parameters,
        "members": [
            {"trial": member.number, "learner": member.params["learner"], "count": member.count}
            for member in finalist.members
        ],
    }


def which(entry: Mapping[str, Any]) -> str:
    """Say which trial a finalist is, or what an ensemble is made of."""
    if members := entry.get("members"):
        return " + ".join(f"{one['count']} × trial {one['trial']}" for one in members)
    return f"trial {entry['trial']}"


def _search_score(bench: "Bench", result: "TrialResult") -> dict[str, Any]:
    by = {bench.objective.name: {"mean": result.mean, "ci95": result.ci95}, **result.others}
    decisive = by.pop(bench.decisive.name)
    return {
        "pool": bench.study.search_on,
        **decisive,
        "tasks": result.tasks,
        "median": result.median if bench.decisive is bench.objective else None,
        "not_finite": result.not_finite,
        **({"others": by} if by else {}),
    }


def score(scores: "Scores", pool: str) -> dict[str, Any]:
    """Return scores on a pool as a leaderboard holds them."""
    others = {name: {"mean": other.mean, "ci95": other.ci95} for name, other in scores.others.items()}
    return {
        "pool": pool,
        "mean": scores.mean,
        "ci95": scores.ci95,
        "tasks": len(scores.per_task),
        "median": scores.median,
        "not_finite": scores.not_finite,
        **({"others": others} if others else {}),
    }


def _behind(bench: "Bench", finalists: "Sequence[Finalist]") -> list[dict[str, Any] | None]:
    """Return by how much each finalist is worse than the first on the same tasks; None for the first itself."""
    if len(finalists) < 2:
        return [None] * len(finalists)
    sign = 1 if bench.decisive.direction == "maximize" else -1
    first, *others = [
        bench.decisive.contributions(bench.decided(finalist.fresh).per_task) * sign for finalist in finalists
    ]
    differences = [paired(first, other) for other in others]
    corrected = holm([difference.p for difference in differences])
    return [None] + [
        {"mean": difference.mean, "ci95": difference.ci95, "p": p, "told_apart": p < LEVEL}
        for difference, p in zip(differences, corrected, strict=True)
    ]
