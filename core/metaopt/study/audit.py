"""Audit a finished run folder: does its report follow from what is stored, and was the test pool left alone?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt import seeds
from metaopt.ensemble import Ensemble
from metaopt.errors import UserError
from metaopt.objective import MetaObjective
from metaopt.plugins import Registry
from metaopt.pools import digest
from metaopt.study import leaderboard, model, tested, versions
from metaopt.study.file import load
from metaopt.study.ledger import SCORES, read_scores, results, scores_by
from metaopt.study.search import FINALISTS, REPORT_SCORES
from metaopt.study.statistics import LEVEL, holm, paired
from metaopt.study.storage import JOURNAL, open_storage
from metaopt.study.trial import Bench, TrialResult
from metaopt.task import POOLS, ClassPool, Pool, TaskSampler
from metaopt.train import Scores

N_TASKS = 64
"""Drawn from each pool to look for examples that two of them share, where a sampler does not hold its examples."""

MAY_DIFFER = {"trials", "timeout", "evaluation", "prefer", "warm_start", "portfolio"}
"""Keys of a study that may have changed since it began."""
Board = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """What came of looking at one thing. A note is no fault, but a reader of the report should know it."""

    what: str
    status: Literal["ok", "failed", "note"]
    detail: str


def audit(folder: Path, registry: Registry, device: torch.device, storage: str | None = None) -> list[Finding]:
    """Look at all there is to check in a run folder. Raises UserError where it holds no finished study."""
    board = leaderboard.read(folder)
    if board is None or board["status"] != "finished":
        raise UserError(f"{folder}: no finished study here; run it to its end, or give the folder of another run")
    if storage is None and not (folder / JOURNAL).exists():
        raise UserError(f"{folder}: no {JOURNAL} here; give the study's storage with --storage")
    study = load(folder / "study.yaml", registry)
    bench = Bench(study, registry, device)
    kept = optuna.load_study(study_name=study.name, storage=open_storage(folder, storage))
    return [
        _versions(bench, board),
        _pools(bench.sampler, bench),
        _searched_on(board),
        _test_tasks(board, tested.read(folder)),
        _study(bench, kept.user_attrs.get("study", {}), board),
        *_trials(bench, folder, results(kept), board),
        *_finalists(bench, folder, results(kept), board),
        _report(bench, folder, board),
        _winner(folder, board, registry, device),
    ]


def _versions(bench: Bench, board: Board) -> Finding:
    now, then = versions.used(bench), board["versions"]
    other = [
        f"{name} {then.get(name)}, now {now.get(name)}"
        for name in sorted({*now, *then})
        if then.get(name) != now.get(name)
    ]
    if other:
        return Finding("versions", "note", f"of then are not those of now ({'; '.join(other)}); numbers may not repeat")
    return Finding("versions", "ok", "all as they were: " + ", ".join(f"{name} {one}" for name, one in now.items()))


def _pools(sampler: TaskSampler, bench: Bench) -> Finding:
    if bench.spec.kind == "control":
        return Finding("pools", "ok", "environments are drawn for each pool by its own seed, and hold no examples")
    seen: dict[bytes, Pool] = {}
    counts = {}
    for pool in POOLS:
        examples = _examples(sampler, pool, bench)
        counts[pool] = len(examples)
        for example in examples:
            content = digest(example.tobytes()).tobytes()
            if seen.setdefault(content, pool) != pool:
                return Finding("pools", "failed", f"an example stands in the {seen[content]} and in the {pool} pool")
    shown = ", ".join(f"{n:,} of {pool}" for pool, n in counts.items())
    return Finding("pools", "ok", f"no example stands in two of them ({shown} looked at)")


def _examples(sampler: TaskSampler, pool: Pool, bench: Bench) -> NDArray[Any]:
    """Return all examples of a pool where its sampler holds them, or those of a few tasks, (n, *x_shape)."""
    held = getattr(sampler, "pools", {}).get(pool)
    if isinstance(held, ClassPool):
        each = [row[:size] for row, size in zip(held.table, held.sizes, strict=True)]
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *each])  # a study in folds may have no validation pool
        return np.ascontiguousarray(held.sources[rows].numpy())
    spec = bench.train_spec if pool == "train" else bench.spec
    batch = sampler.draw(pool, spec, N_TASKS, seeds.generator(bench.study.seed, "audit", pool))
    return torch.cat([batch.support_x.flatten(0, 1), batch.query_x.flatten(0, 1)]).numpy()


def _searched_on(board: Board) -> Finding:
    if board["search_on"] == "test":
        return Finding("search", "note", "was on the test pool itself, so its scores are too good for new classes")
    return Finding("search", "ok", f"was on the {board['search_on']} pool")


def _test_tasks(board: Board, record: Sequence[Mapping[str, Any]]) -> Finding:
    if not record:
        return Finding("test pool", "failed", "no record of how often it was scored; the run folder is not whole")
    if len(record) > 1:
        return Finding("test pool", "note", f"was scored {len(record)} times; a choice made by it is no test")
    return Finding("test pool", "ok", f"was scored once, on {record[0]['tasks']} tasks")


def _study(bench: Bench, stored: Mapping[str, Any], board: Board) -> Finding:
    described = bench.study.to_dict()
    odd = [key for key in described if key not in MAY_DIFFER and stored.get(key) != described[key]]
    odd += [key for key in ("seed", "search_on") if board[key] != described[key]]
    odd += ["objective"] if board["objective"] != bench.study.objective else []
    if odd:
        return Finding("study", "failed", f"study.yaml, storage and leaderboard do not agree on {', '.join(odd)}")
    return Finding("study", "ok", "study.yaml, storage and leaderboard agree")


def _trials(bench: Bench, folder: Path, trials: Sequence[TrialResult], board: Board) -> Iterator[Finding]:
    seed = bench.study.seed
    strange = [one.number for one in trials if one.seed != seeds.derive(seed, "trial", one.number)]
    yield _verdict(
        "seeds", strange, f"of {len(trials)} trials follow from the study's seed {seed}", "do not follow from it"
    )
    counted = {state: sum(one.state == state for one in trials) for state in ("complete", "pruned", "failed")}
    if counted != board["trials"]:
        yield Finding("trials", "failed", f"the storage holds {counted} and the leaderboard says {board['trials']}")
        return
    complete = [one for one in trials if one.state == "complete"]
    wrong = []
    for one in complete:
        scores = _scores(bench, folder / SCORES / f"{one.number:05d}.npy")
        if (
            scores is None
            or (scores.mean, scores.ci95, len(scores.per_task)) != (one.mean, one.ci95, one.tasks)
            or any(
                (by := scores.others.get(name)) is None or (by.mean, by.ci95) != (other["mean"], other["ci95"])
                for name, other in one.others.items()
            )
        ):
            wrong.append(one.number)
    yield _verdict(
        "trials", wrong, f"{len(complete)} complete ones have the scores that follow task by task", "have others"
    )


def _finalists(bench: Bench, folder: Path, trials: Sequence[TrialResult], board: Board) -> Iterator[Finding]:
    entries = board["finalists"]
    best = [one.number for one in leaderboard.candidates(bench, leaderboard.ranked(bench, trials))]
    out = [entry["trial"] for entry in entries if "members" not in entry and entry["trial"] not in best]
    out += [one["trial"] for entry in entries for one in entry.get("members", ()) if one["trial"] not in best]
    yield _verdict("finalists", out, "are of the best trials of the search", "are not")
    wrong, fresh = [], []
    for entry in entries:
        names = [f"{entry['trial']:05d}-{repeat}.npy" for repeat in range(len(entry["fresh"]["repeats"]))]
        names = [f"{Ensemble.name}.npy"] if "members" in entry else names
        mean = _scores(bench, *(folder / FINALISTS / name for name in names))
        mean = bench.decided(mean) if mean else None
        fresh.append(mean)
        if mean is None or (mean.mean, mean.ci95) != (entry["fresh"]["mean"], entry["fresh"]["ci95"]):
            wrong.append(entry["trial"])
    yield _verdict("fresh scores", wrong, "follow from those task by task", "do not")
    if wrong or len(entries) < 2:
        return
    sign = 1 if board["direction"] == "maximize" else -1
    ahead = [sign * (entries[0]["fresh"]["mean"] - entry["fresh"]["mean"]) for entry in entries]
    yield _verdict(
        "ranks",
        [entry["trial"] for entry, by in zip(entries, ahead, strict=True) if by < 0],
        "are by the fresh scores",
        "scored better than the winner",
    )
    values = [bench.decisive.contributions(one.per_task) for one in fresh if one]
    p_values = holm([paired(values[0], other).p for other in values[1:]])
    odd = [
        entry["trial"]
        for entry, p in zip(entries[1:], p_values, strict=True)
        if (entry["behind"]["p"], entry["behind"]["told_apart"]) != (p, p < LEVEL)
    ]
    yield _verdict("comparisons", odd, "with the winner follow from the scores task by task", "do not")


def _report(bench: Bench, folder: Path, board: Board) -> Finding:
    report, scores = board["finalists"][0]["report"], _scores(bench, folder / REPORT_SCORES)
    if report["pool"] != "test":
        return Finding("report", "failed", f"is on the {report['pool']} pool, not on the test pool")
    scores = bench.decided(scores) if scores else None
    if scores is None or (scores.mean, scores.ci95, len(scores.per_task)) != (
        report["mean"], report["ci95"], report["tasks"],
    ):  # fmt: skip
        return Finding("report", "failed", "does not follow from its scores task by task")
    return Finding("report", "ok", f"{leaderboard.interval(report)} follows from its scores task by task")


def _winner(folder: Path, board: Board, registry: Registry, device: torch.device) -> Finding:
    """Score the saved winner again on the first of the tasks that it was reported on."""
    entry = board["finalists"][0]
    try:
        learner, bench, config = model.load_with_bench(folder / "best", registry, device)
    except UserError as error:
        return Finding("winner", "failed", str(error))
    if (config["trial"], config["params"]) != (entry["trial"], entry["params"]):
        return Finding("winner", "failed", f"in best/ is of trial {config['trial']}, not of trial {entry['trial']}")
    before = read_scores(folder / REPORT_SCORES)
    n_tasks = min(N_TASKS, len(before)) if before is not None else 0
    again = bench.score(learner, "test", "report", n_tasks).per_task.numpy() if before is not None else None
    if before is None or again is None or not np.array_equal(again, before[:n_tasks]):
        return Finding("winner", "note", "scores other numbers today on the tasks that it was reported on")
    return Finding("winner", "ok", f"scores the same again on the first {n_tasks} tasks of its report")


def _verdict(what: str, wrong: Sequence[int], right: str, otherwise: str) -> Finding:
    if wrong:
        return Finding(what, "failed", f"of trial {', '.join(map(str, wrong))} {otherwise}")
    return Finding(what, "ok", right)


def _scores(bench: Bench, *paths: Path) -> Scores | None:
    """Return the mean of stored scores, those by other objectives beside it; None where one is missing or damaged."""
    of = {
        objective.name: _mean(objective, [read_scores(scores_by(path, by) if by else path) for path in paths])
        for objective, by in [(bench.objective, ""), *((other, other.name) for other in bench.others)]
    }
    found = {name: scores for name, scores in of.items() if scores}
    if len(found) < len(of):
        return None
    return replace(found.pop(bench.objective.name), others=found)


def _mean(objective: MetaObjective, repeats: Sequence[NDArray[np.float64] | None]) -> Scores | None:
    if not repeats or any(one is None for one in repeats) or len({len(one) for one in repeats if one is not None}) > 1:
        return None
    per_task: Tensor = torch.tensor(np.stack([one for one in repeats if one is not None])).mean(0)
    return Scores(per_task, 0, objective.contributions(per_task))
