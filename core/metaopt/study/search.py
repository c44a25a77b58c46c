"""Run a study: search, score the finalists again on fresh tasks, report the winner on tasks no trial has touched."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.files import write_json, write_text
from metaopt.study import file, leaderboard, model, versions
from metaopt.study.crew import Alone, Crew, Workers
from metaopt.study.folder import owned
from metaopt.study.ledger import Ledger
from metaopt.study.storage import open_storage
from metaopt.study.trial import INTERRUPTED, Bench, Done, Job, TrialResult
from metaopt.train import Budget, Scores

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Is told how a study goes."""

    def began(self, bench: Bench, results: list[TrialResult]) -> None: ...
    def started(self, job: Job) -> None: ...
    def finished(self, result: TrialResult, best: TrialResult | None) -> None: ...
    def phase(self, text: str) -> None: ...


@dataclass(frozen=True)
class Finalist:
    """One of the best few trials: its score in the search, and of its pipeline meta-trained anew on fresh tasks."""

    search: TrialResult
    fresh: TrialResult
    weights: Path


def run(
    bench: Bench,
    folder: Path,
    watcher: Watcher,
    *,
    workers: int = 1,
    storage: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a study in `folder`, or go on with it, and return its leaderboard.

    When `stopped()` becomes true the trials under way are put back and the leaderboard of what is done is returned,
    its status "interrupted". Raises UserError where the folder cannot be used or holds another study.
    """
    started = time.monotonic()
    with owned(folder):
        _refuse_another(bench.study.name, folder / "study.yaml")
        ledger = Ledger(bench, open_storage(folder, storage), folder)
        earlier = leaderboard.read(folder)
        if earlier and _is_over(bench, ledger, earlier):
            return earlier
        write_text(folder / "study.yaml", bench.study.to_yaml())
        if said := versions.changed(versions.keep(folder, versions.used(bench))):
            log.warning("%s: %s", folder, said)
        spent = max(earlier["seconds"] if earlier else 0.0, ledger.seconds())
        end = started + bench.study.timeout - spent if bench.study.timeout else math.inf
        watcher.began(bench, ledger.results)
        crew: Crew = (
            Workers(bench, workers, ledger.report, stopped)
            if workers > 1 or bench.study.isolation == "process"
            else Alone(bench, ledger.report, stopped)
        )
        report = None
        try:
            _search(bench, ledger, crew, watcher, stopped, end)
            finalists, fallen = _finalists(bench, ledger, crew, watcher, stopped, folder)
            if finalists and not stopped():
                watcher.phase(f"scoring the winner on {bench.study.evaluation.report_tasks} test tasks")
                done = _report(bench, finalists[0], crew)
                if done.result.state == "complete":
                    report = Scores(torch.tensor(done.per_task, dtype=torch.float64), done.result.not_finite)
                elif done.result.reason != INTERRUPTED:
                    fallen.append(replace(done.result, reason=f"as the winner: {done.result.reason}"))
        finally:
            crew.close()
        seconds = spent + time.monotonic() - started
        status = "finished" if report else "interrupted" if stopped() else "failed"
        finalists = finalists if report else []
        board = leaderboard.build(bench, ledger.results, finalists, fallen, report, seconds, status)
        if report:
            model.save(folder / "best", bench, finalists[0].fresh, finalists[0].weights, board)
        write_json(folder / leaderboard.FILE, board)
        if status != "interrupted":
            bench.registry.study_finished(board, bench.study.to_dict(), folder)
        return board


def _refuse_another(name: str, path: Path) -> None:
    if path.exists() and (other := file.read(path).get("name")) != name:
        raise UserError(
            f"{path.parent} is the run folder of the study {other!r}, and this one is named {name!r}; "
            "give another folder with --output"
        )


def _is_over(bench: Bench, ledger: Ledger, earlier: dict[str, Any]) -> bool:
    """Tell whether an earlier run came to its end and this one asks for no more of anything."""
    if earlier["status"] != "finished" or any(
        earlier["limits"].get(key) != getattr(bench.study.evaluation, key) for key in ("finalists", "report_tasks")
    ):
        return False
    timeout, before = bench.study.timeout, earlier["limits"]["timeout"]
    out_of_time = len(ledger.results) < earlier["limits"]["trials"]
    more_time = out_of_time and (timeout is None or timeout > before)
    return bench.study.trials <= max(len(ledger.results), earlier["limits"]["trials"]) and not more_time


def _search(
    bench: Bench, ledger: Ledger, crew: Crew, watcher: Watcher, stopped: Callable[[], bool], end: float
) -> None:
    while True:
        deadline = end - _reserve(bench, ledger.results, crew)
        left = bench.study.trials - len(ledger.results) - crew.busy
        while crew.idle and left > 0 and not stopped() and time.monotonic() < deadline:
            job = ledger.ask(deadline)
            watcher.started(job)
            crew.start(job)
            left -= 1
        if not crew.busy:
            return
        for done in crew.wait():
            if ledger.tell(done):
                bench.registry.trial_finished(done.result, bench.study.to_dict(), ledger.folder)
                best = next(iter(leaderboard.ranked(bench, ledger.results)), None)
                watcher.finished(done.result, best)


def _reserve(bench: Bench, results: list[TrialResult], crew: Crew) -> float:
    """Return the seconds that finalists and report will take, as far as the best trials tell."""
    if bench.study.timeout is None:
        return 0.0
    best = leaderboard.ranked(bench, results)[: bench.study.evaluation.finalists]
    if not best:
        return 0.1 * bench.study.timeout
    tasks = bench.study.evaluation.report_tasks
    scoring = [result.evaluation_seconds / result.tasks * tasks for result in best]
    each = [result.seconds - result.evaluation_seconds + s for result, s in zip(best, scoring, strict=True)]
    return 1.05 * (max(sum(each) / (crew.idle + crew.busy), *each) + max(scoring))


def _finalists(
    bench: Bench, ledger: Ledger, crew: Crew, watcher: Watcher, stopped: Callable[[], bool], folder: Path
) -> tuple[list[Finalist], list[TrialResult]]:
    """Meta-train the best few pipelines anew, with fresh seeds, score them on fresh tasks, and rank them by that.

    Returns beside them what failed on that way.
    """
    chosen = leaderboard.ranked(bench, ledger.results)[: bench.study.evaluation.finalists]
    if not chosen or stopped():
        return [], []
    watcher.phase(f"meta-training {len(chosen)} finalists anew, for {bench.study.evaluation.report_tasks} fresh tasks")
    (folder / "finalists").mkdir(exist_ok=True)
    waiting = [
        Job(
            number=result.number,
            params=result.params,
            seed=seeds.derive(bench.study.seed, "finalist", result.number),
            budget=Budget(tasks=result.trained_tasks, planned=result.planned_tasks),
            pool=bench.study.search_on,
            purpose="finalists",
            n_tasks=bench.study.evaluation.report_tasks,
            save_to=folder / "finalists" / f"{result.number:05d}.safetensors",
        )
        for result in chosen
    ]
    search, files = {result.number: result for result in chosen}, {job.number: job.save_to for job in waiting}
    finalists, fallen = [], []
    while (waiting and not stopped()) or crew.busy:
        while waiting and crew.idle and not stopped():
            crew.start(waiting.pop(0))
        for fresh in (done.result for done in crew.wait()):
            weights = files[fresh.number]
            if fresh.state == "complete" and weights:
                finalists.append(Finalist(search[fresh.number], fresh, weights))
            elif fresh.reason != INTERRUPTED:
                fallen.append(replace(fresh, reason=f"as a finalist: {fresh.reason}"))
                watcher.phase(f"finalist of trial {fresh.number} fell out: {fresh.reason}")
    order = [result.number for result in leaderboard.ranked(bench, [finalist.fresh for finalist in finalists])]
    return sorted(finalists, key=lambda finalist: order.index(finalist.search.number)), fallen


def _report(bench: Bench, winner: Finalist, crew: Crew) -> Done:
    """Score the winner on test tasks."""
    n_tasks = bench.study.evaluation.report_tasks
    result = winner.fresh
    budget = Budget(tasks=1)  # of which nothing is used
    job = Job(result.number, result.params, result.seed, budget, "test", "report", n_tasks, weights=winner.weights)
    crew.start(job)
    while crew.busy:
        for done in crew.wait():
            return done
    raise AssertionError("a crew gives back every job that it was given")
