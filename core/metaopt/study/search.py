"""Run a study: search, score the finalists again on fresh tasks, report the winner on tasks no trial has touched."""

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from metaopt import checkpoint, seeds
from metaopt.ensemble import Ensemble
from metaopt.errors import UserError
from metaopt.files import write_json, write_text
from metaopt.objective import MetaObjective
from metaopt.study import fastest, file, leaderboard, model, portfolio, strategy, tested, versions
from metaopt.study.crew import LOST, Alone, Crew, Workers
from metaopt.study.file import Preference
from metaopt.study.folder import owned
from metaopt.study.ledger import ATTEMPTS, CHECKPOINTS, Ledger, write_scores
from metaopt.study.patience import Patient
from metaopt.study.storage import open_storage
from metaopt.study.trial import INTERRUPTED, TIMEOUT, Bench, Done, Job, Member, TrialResult
from metaopt.train import Budget, Scores

log = logging.getLogger(__name__)

FINALISTS = "finalists"
"""The folder in a run folder that holds finalists' weights and scores, by trial and repeat: 00012-0.npy."""
NO_TRIAL = -1
"""The number of an ensemble, which is of several trials."""
LEAST_TASKS = 100
"""That finalists are scored on, however short the time."""
REPORT_SCORES = "report.npy"
"""The winner's scores on the test pool, task by task."""


class Watcher(Protocol):
    """Is told how a study goes."""

    def began(self, bench: Bench, results: list[TrialResult]) -> None: ...
    def started(self, job: Job) -> None: ...
    def finished(self, result: TrialResult, best: TrialResult | None) -> None: ...
    def phase(self, text: str) -> None: ...


@dataclass(frozen=True)
class Finalist:
    """One of the best few trials, and its pipeline meta-trained anew, once or more, and scored on fresh tasks."""

    search: TrialResult
    repeats: tuple[Done, ...]
    """In the order of their seeds; the first is the model that is kept."""
    weights: Path
    """Of that first one."""
    fresh: Scores
    """Task by task the mean over the repeats."""
    members: tuple[Member, ...] = ()
    """Of an ensemble, which is no trial's; then `search` says what its members took."""


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
        refuse_another(bench.study.name, folder / "study.yaml")
        portfolio.check(bench)
        kept, patient = open_storage(folder, storage), Patient(storage or "", stopped)
        executors = patient(fastest.settle, bench, kept)
        ledger = patient(Ledger, bench, kept, folder)
        if said := strategy.degenerates(bench.study.strategy, bench.study.sampler, bench.study.space):
            log.warning("%s: %s", bench.study.name, said)
        earlier = leaderboard.read(folder)
        if earlier and _is_over(bench, ledger, earlier):
            return earlier
        write_text(folder / "study.yaml", bench.study.to_yaml())
        if said := versions.changed(versions.keep(folder, versions.used(bench))):
            log.warning("%s: %s", folder, said)
        spent = max(earlier["seconds"] if earlier else 0.0, patient(ledger.seconds))
        end = started + bench.study.timeout - spent if bench.study.timeout else math.inf
        watcher.began(bench, ledger.results)
        _tell_first(ledger, watcher, executors)
        crew: Crew = (
            Workers(bench, workers, ledger.report, stopped)
            if workers > 1 or bench.study.isolation == "process"
            else Alone(bench, ledger.report, stopped)
        )
        report: Scores | None = None
        done: Done | None = None
        try:
            _search(bench, ledger, patient, crew, watcher, stopped, end)
            finalists, fallen = _finalists(bench, ledger, crew, watcher, stopped, end)
            if finalists and not stopped():
                n_tasks = len(finalists[0].fresh.per_task)
                if bench.study.final:
                    watcher.phase(f"meta-training the winner on all classes, and scoring it on {n_tasks} test tasks")
                else:
                    watcher.phase(f"scoring the winner on {n_tasks} test tasks")
                done = _report(bench, finalists[0], crew, folder, fallen)
                report = _mean(bench, [done]) if done else None
        finally:
            crew.close()
        seconds = spent + time.monotonic() - started
        status = "finished" if report else "interrupted" if stopped() else "failed"
        finalists = finalists if report else []
        board = leaderboard.build(
            bench, ledger.results, finalists, fallen, report, seconds, status, tested.read(folder),
            final=done.result if done and bench.study.final else None,
        )  # fmt: skip
        if done and bench.study.final:
            model.save(folder / "best", bench, done.result, final_weights(folder), board)
        elif done:
            first = finalists[0]
            model.save(folder / "best", bench, first.repeats[0].result, first.weights, board, first.members)
        write_json(folder / leaderboard.FILE, board)
        if status != "interrupted":
            checkpoint.clear(folder / CHECKPOINTS)
            portfolio.keep(bench, board, folder)
            bench.registry.study_finished(board, bench.study.to_dict(), folder)
        return board


def _tell_first(ledger: Ledger, watcher: Watcher, executors: str | None) -> None:
    if executors:
        watcher.phase(executors)
    if ledger.starts and not ledger.results:
        studies = ", ".join(dict.fromkeys(start["study"] for start in ledger.starts))
        watcher.phase(f"after the defaults come {len(ledger.starts)} pipelines of earlier studies: {studies}")


def refuse_another(name: str, path: Path) -> None:
    """Raise UserError where a run folder's study file is another study's."""
    if path.exists() and (other := file.read(path).get("name")) != name:
        raise UserError(
            f"{path.parent} is the run folder of the study {other!r}, and this one is named {name!r}; "
            "give another folder with --output"
        )


def _is_over(bench: Bench, ledger: Ledger, earlier: dict[str, Any]) -> bool:
    """Tell whether an earlier run came to its end and this one asks for no more of anything."""
    if (
        earlier["status"] != "finished"
        or any(
            earlier["limits"].get(key) != getattr(bench.study.evaluation, key)
            for key in ("finalists", "repeats", "report_tasks")
        )
        or earlier["limits"].get("longer", 1) != bench.study.evaluation.longer
        or earlier["limits"].get("ensemble", 0) != bench.study.evaluation.ensemble
        or earlier.get("prefer", str(bench.study.prefer)) != str(bench.study.prefer)
    ):
        return False
    timeout, before = bench.study.timeout, earlier["limits"]["timeout"]
    out_of_time = len(ledger.results) < earlier["limits"]["trials"]
    more_time = out_of_time and (timeout is None or timeout > before)
    return bench.study.trials <= max(len(ledger.results), earlier["limits"]["trials"]) and not more_time


def _search(
    bench: Bench,
    ledger: Ledger,
    patient: Patient,
    crew: Crew,
    watcher: Watcher,
    stopped: Callable[[], bool],
    end: float,
) -> None:
    settled = bench.study.space.settled()
    in_time = set(bench.study.space.learners) - {one.learner for one in ledger.results if one.learner in settled}
    """Learners that may have another trial and of which none ran out of time: one of them may come to its end."""
    too_slow = set[str]()
    while True:
        deadline = end - _reserve(bench, ledger.best(), crew)
        left = bench.study.trials - len(ledger.results) - crew.busy
        while crew.idle and left > 0 and not stopped() and (now := time.monotonic()) < deadline and in_time:
            # A trial that becomes a finalist is meta-trained once more, so it may take half of the time at most.
            limit = min(deadline, now + 0.9 / (1 + bench.study.evaluation.longer) * (end - now))
            if bench.study.timeout and now + _shortest(ledger, settled) > limit:
                break
            job = patient(ledger.ask, limit)
            watcher.started(job)
            crew.start(job)
            left -= 1
        if not crew.busy:
            break
        for done in crew.wait():
            if done.result.reason == TIMEOUT:
                too_slow.add(done.result.learner)
            in_time -= too_slow | (settled & {done.result.learner})
            if patient(ledger.tell, done):
                bench.registry.trial_finished(done.result, bench.study.to_dict(), ledger.folder)
                best = next(iter(ledger.best()), None)
                watcher.finished(done.result, best)
    if too_slow and in_time <= settled:
        log.warning(
            "%s: the timeout of %g s is too short for a trial of %s; give a longer one, or trials a smaller budget",
            bench.study.name, bench.study.timeout, ", ".join(sorted(too_slow)),
        )  # fmt: skip


def _shortest(ledger: Ledger, settled: Collection[str]) -> float:
    """Return the seconds of the shortest trial that came to its end, of learners that have more than one; 0 where there
    is none.
    """
    ended = (one for one in ledger.results if one.state == "complete" and one.learner not in settled)
    return min((one.seconds for one in ended), default=0.0)


def _reserve(bench: Bench, best: list[TrialResult], crew: Crew) -> float:
    """Return the seconds that finalists and report will take, as far as the best trials tell."""
    if bench.study.timeout is None:
        return 0.0
    best = leaderboard.candidates(bench, best)
    if not best:
        return 0.1 * bench.study.timeout
    n_tasks, longer = bench.study.evaluation.report_tasks, bench.study.evaluation.longer
    while len(best) > 1 and _needed(bench, best, n_tasks, longer, crew) > bench.study.timeout * longer / (longer + 2):
        best = best[:-1]  # a search this short has better things to do
    return _needed(bench, best, n_tasks, longer, crew)


def _needed(bench: Bench, chosen: list[TrialResult], n_tasks: int, longer: int, crew: Crew) -> float:
    """Return the seconds for these trials as finalists: meta-trained anew, `longer` times as long, scored on so many
    tasks, and one on test tasks.
    """
    scoring = [result.evaluation_seconds / result.tasks * n_tasks for result in chosen]
    each = [
        bench.study.evaluation.repeats * (longer * (result.seconds - result.evaluation_seconds) + seconds)
        for result, seconds in zip(chosen, scoring, strict=True)
    ]
    last = max(_of_final(bench, result) for result in chosen)
    if bench.study.evaluation.ensemble and len(chosen) > 1:  # predictions to choose by, its own score, its report
        chosen_by = sum(result.evaluation_seconds for result in chosen)
        last += chosen_by + 2 * sum(scoring) - max(scoring)
    return 1.05 * (max(sum(each) / (crew.idle + crew.busy), *each) + max(scoring) + last)


def _of_final(bench: Bench, result: TrialResult) -> float:
    """Return the seconds for meta-training a trial's pipeline as the winner's, as far as its own training tells."""
    final, training = bench.study.final, result.seconds - result.evaluation_seconds
    if final is None:
        return 0.0
    if final.cpu_seconds:
        return final.cpu_seconds * (training / result.cpu_seconds if result.cpu_seconds else 1.0)
    return training * (final.tasks or 0) / max(1, result.trained_tasks)


def _fitting(
    bench: Bench, chosen: list[TrialResult], crew: Crew, watcher: Watcher, left: float
) -> tuple[list[TrialResult], int, int]:
    """Return as many finalists as there is time for, one at least, on how many tasks to score them in it, and how many
    times as long as in the search to meta-train them.
    """
    n_tasks, n, longer = bench.study.evaluation.report_tasks, len(chosen), bench.study.evaluation.longer
    while len(chosen) > 1 and _needed(bench, chosen, n_tasks, longer, crew) > left:
        chosen = chosen[:-1]
    if len(chosen) < n:
        watcher.phase(f"time is left for {len(chosen)} of {n} finalists")
    least = min(LEAST_TASKS, n_tasks)
    while longer > 1 and _needed(bench, chosen, least, longer, crew) > left:
        longer -= 1
    none, full = (_needed(bench, chosen, tasks, longer, crew) for tasks in (0, n_tasks))
    if full > left:
        n_tasks = max(least, int((left - none) / (full - none) * n_tasks))
        watcher.phase(f"time is left for {n_tasks} of {bench.study.evaluation.report_tasks} fresh tasks")
    return chosen, n_tasks, longer


def _finalists(
    bench: Bench, ledger: Ledger, crew: Crew, watcher: Watcher, stopped: Callable[[], bool], end: float
) -> tuple[list[Finalist], list[TrialResult]]:
    """Meta-train the best few pipelines anew, with fresh seeds, score them on fresh tasks, and rank them by that.

    Returns beside them what failed on that way.
    """
    evaluation, folder = bench.study.evaluation, ledger.folder
    chosen = leaderboard.candidates(bench, leaderboard.ranked(bench, ledger.results))
    if stopped() or not chosen:
        _refuse_bounds(bench, ledger.results)
        return [], []
    chosen, n_tasks, longer = _fitting(bench, chosen, crew, watcher, end - time.monotonic())
    times = f", {evaluation.repeats} times each" if evaluation.repeats > 1 else ""
    times += f", {longer} times as long" if longer > 1 else ""
    watcher.phase(f"meta-training {len(chosen)} finalists anew{times}, for {n_tasks} fresh tasks")
    (folder / FINALISTS).mkdir(exist_ok=True)
    waiting = [
        _again(bench, result, repeat, n_tasks, longer, folder)
        for result in chosen
        for repeat in range(evaluation.repeats)
    ]
    files = {job.seed: job.save_to for job in waiting if job.save_to}
    again = {job.seed: [job] * (ATTEMPTS - 1) for job in waiting}
    came: dict[int, Done] = {}
    fallen: dict[int, TrialResult] = {}
    while (waiting and not stopped()) or crew.busy:
        while waiting and crew.idle and not stopped():
            crew.start(waiting.pop(0))
        for done in crew.wait():
            fresh = done.result
            came[fresh.seed] = done
            if fresh.state == "complete":
                write_scores(files[fresh.seed].with_suffix(".npy"), done.per_task, done.others)
            elif _is_lost(fresh) and again[fresh.seed]:
                waiting.append(again[fresh.seed].pop())
            elif fresh.reason != INTERRUPTED:
                fallen[fresh.number] = replace(fresh, reason=f"as a finalist: {fresh.reason}")
                watcher.phase(f"finalist of trial {fresh.number} fell out: {fresh.reason}")
    finalists = []
    for result in chosen:
        own = [finalist_seed(bench, result.number, repeat) for repeat in range(evaluation.repeats)]
        repeats = tuple(came[seed] for seed in own if seed in came and came[seed].result.state == "complete")
        if len(repeats) == evaluation.repeats:
            finalists.append(Finalist(result, repeats, files[own[0]], _mean(bench, repeats)))
    if evaluation.ensemble and len(finalists) > 1 and not stopped():
        finalists += _ensemble(bench, finalists, n_tasks, crew, watcher, folder)
    sign = -1 if bench.decisive.direction == "maximize" else 1
    # Of equal ones the simpler: a trial before an ensemble.
    finalists.sort(key=lambda one: (sign * bench.decided(one.fresh).mean, bool(one.members), one.search.number))
    return finalists, list(fallen.values())


def _ensemble(
    bench: Bench, finalists: Sequence[Finalist], n_tasks: int, crew: Crew, watcher: Watcher, folder: Path
) -> list[Finalist]:
    """Return an ensemble of the finalists as one more, chosen by other tasks than they are ranked by; none or one."""
    most, path = bench.study.evaluation.ensemble, folder / FINALISTS / f"{Ensemble.name}.safetensors"
    watcher.phase(f"choosing an ensemble of {len(finalists)} finalists")
    sign = -1 if bench.decisive.direction == "maximize" else 1
    kept = sorted(finalists, key=lambda one: (sign * bench.decided(one.fresh).mean, one.search.number))
    members = tuple(
        Member(one.search.number, one.search.params, one.repeats[0].result.seed, one.weights) for one in kept
    )
    done = _one(crew, Job(
        NO_TRIAL, {"learner": Ensemble.name}, seeds.derive(bench.study.seed, "ensemble"), Budget(tasks=1),
        bench.study.search_on, "finalists", n_tasks, members=members, choose=most, save_to=path,
    ))  # fmt: skip
    if done.result.state != "complete":
        if done.result.reason != INTERRUPTED:
            watcher.phase(f"no ensemble: {done.result.reason}")
        return []
    if len(done.members) == 1:
        watcher.phase(f"no ensemble does better than trial {done.members[0].number} alone")
        return []
    write_scores(path.with_suffix(".npy"), done.per_task, done.others)
    of = [one.repeats[0].result for one in kept if one.search.number in {member.number for member in done.members}]
    result = replace(
        done.result,
        trained_tasks=sum(one.trained_tasks for one in of),
        planned_tasks=sum(one.planned_tasks for one in of),
        cpu_seconds=sum(one.cpu_seconds for one in of),
    )
    return [Finalist(result, (replace(done, result=result),), path, _mean(bench, [done]), done.members)]


def _one(crew: Crew, job: Job) -> Done:
    """Carry out one job, while nothing else runs; again where its worker dies."""
    for _ in range(ATTEMPTS):
        crew.start(job)
        done: list[Done] = []
        while crew.busy:
            done += crew.wait()
        if not _is_lost(done[0].result):
            break
    return done[0]


def _is_lost(result: TrialResult) -> bool:
    """Tell whether a job failed because its worker died, which is no fault of it until it happens again."""
    return result.reason is not None and result.reason.startswith(LOST)


def _refuse_bounds(bench: Bench, results: list[TrialResult]) -> None:
    """Raise UserError where trials came to scores, and none of them meets what the study prefers."""
    found = [leaderboard.values(bench, result) for result in leaderboard.front(bench, results)]
    for name, sign, bound in bench.study.prefer.bounds if found else ():
        nearest = (min if sign == "<=" else max)(values[name] for values in found)
        if not Preference(name, ((name, sign, bound),)).met({name: nearest}):
            raise UserError(
                f"no trial has {name}{sign}{bound:g}, the nearest has {nearest:g}; every trial is kept, so run the "
                "study again with other bounds in --prefer"
            )


def _again(bench: Bench, result: TrialResult, repeat: int, n_tasks: int, longer: int, folder: Path) -> Job:
    """Return the job that meta-trains a trial's pipeline once more, with a fresh seed, for fresh tasks."""
    return Job(
        number=result.number,
        params=result.params,
        seed=finalist_seed(bench, result.number, repeat),
        budget=Budget(tasks=longer * result.trained_tasks, planned=longer * result.planned_tasks),
        pool=bench.study.search_on,
        purpose="finalists",
        n_tasks=n_tasks,
        save_to=folder / FINALISTS / f"{result.number:05d}-{repeat}.safetensors",
        checkpoint=checkpoint.File(folder / CHECKPOINTS / f"{result.number:05d}-{repeat}.safetensors"),
    )


def finalist_seed(bench: Bench, trial: int, repeat: int) -> int:
    """Return the seed from which a finalist is meta-trained for the time `repeat`, counted from 0."""
    return seeds.derive(bench.study.seed, "finalist", trial, repeat)


def _mean(bench: Bench, repeats: Sequence[Done]) -> Scores:
    not_finite = sum(done.result.not_finite for done in repeats)

    def mean(objective: MetaObjective, scores: Sequence[Sequence[float]]) -> Scores:
        per_task = torch.tensor(scores, dtype=torch.float64).mean(0)
        return Scores(per_task, not_finite, objective.contributions(per_task))

    others = {other.name: mean(other, [done.others[other.name] for done in repeats]) for other in bench.others}
    return replace(mean(bench.objective, [done.per_task for done in repeats]), others=others)


def _report(bench: Bench, winner: Finalist, crew: Crew, folder: Path, fallen: list[TrialResult]) -> Done | None:
    """Score the winner on test tasks and record it; None where that was interrupted or failed, which joins `fallen`.

    Where the study says `final`, the winner is meta-trained once more for that, on all classes that it may see.
    """
    kept, n_tasks, study = winner.repeats[0].result, len(winner.fresh.per_task), bench.study
    job = Job(kept.number, kept.params, kept.seed, Budget(tasks=1), "test", "report", n_tasks, weights=winner.weights,
              members=winner.members)  # fmt: skip
    if study.final:
        seed, path = finalist_seed(bench, kept.number, study.evaluation.repeats), final_weights(folder)
        job = replace(
            job, seed=seed, budget=study.final, final=True, weights=None, save_to=path,
            checkpoint=checkpoint.File(folder / CHECKPOINTS / path.name),
        )  # fmt: skip
    scored = _one(crew, job)
    if scored.result.state != "complete":
        if scored.result.reason != INTERRUPTED:
            fallen.append(replace(scored.result, reason=f"as the winner: {scored.result.reason}"))
        return None
    write_scores(folder / REPORT_SCORES, scored.per_task, scored.others)
    tested.begin(folder)
    tested.note(folder, "report", trial=kept.number, tasks=n_tasks)
    return scored


def final_weights(folder: Path) -> Path:
    """Return the file for the weights of a winner that was meta-trained once more."""
    return folder / FINALISTS / "final.safetensors"
