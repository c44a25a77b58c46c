"""A shared study from outside: make it, tell how it stands, and end it with finalists and a report."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from metaopt.errors import UserError
from metaopt.study import fastest, search, tested, worker
from metaopt.study.folder import owned
from metaopt.study.ledger import SCORES, write_scores
from metaopt.study.patience import Patient
from metaopt.study.shared import Shared, is_expired, kept_scores
from metaopt.study.stores import open_store
from metaopt.study.trial import Bench, TrialResult


def create(bench: Bench, url: str, artifacts: str | None = None) -> dict[str, Any]:
    """Make a shared study in the storage at `url`, or give one that is there another number of trials, or more time.

    `artifacts`, of `metaopt.study.artifacts.checked`, is where its long trials are kept on their way. Raises UserError
    where the study is there and differs in what makes trials compare.
    """
    return _at_once(url)(_create, bench, url, artifacts)


def _create(bench: Bench, url: str, artifacts: str | None) -> dict[str, Any]:
    with closing(open_store(url, bench.study.name, new=True)) as store, store.alone():
        fastest.settle(bench, store.storage)
        study = bench.study
        ledger = Shared(bench, store, Path("runs") / study.name)
        before, now = ledger.optuna.user_attrs["study"], study.to_dict()
        if before != now:
            ledger.optuna.set_user_attr("study", now)
        if artifacts:
            ledger.optuna.set_user_attr("artifacts", artifacts)
        done = sum(trial.state.is_finished() for trial in ledger.optuna.get_trials(deepcopy=False))
    return {"study": study.name, "trials": study.trials, "done": done}


def status(url: str, name: str | None) -> dict[str, Any]:
    """Return how the shared studies in a storage stand, or that one. UserError where it does not answer."""
    return _at_once(url)(_looked_at, url, name)


def _at_once(url: str) -> Patient:
    """Return who does what needs the storage once: a command that is given again as easily need not wait."""
    return Patient(url, stopped=lambda: True)


def _looked_at(url: str, name: str | None) -> dict[str, Any]:
    with closing(open_store(url, name or "")) as store:
        kept = {one: optuna.load_study(study_name=one, storage=store.storage) for one in worker.names(store)}
        chosen = [worker.described(store, name)["study"]["name"]] if name else sorted(kept)
        return {
            "studies": [
                _status(attrs, kept[one].get_trials(deepcopy=False), kept[one].directions[0].name == "MAXIMIZE")
                for one in chosen
                if "study" in (attrs := kept[one].user_attrs) and attrs.get("shared")
            ]
        }


def _status(attrs: Mapping[str, Any], trials: list[FrozenTrial], maximize: bool) -> dict[str, Any]:
    results = [TrialResult(**trial.user_attrs["result"]) for trial in trials if "result" in trial.user_attrs]
    states = Counter(result.state for result in results)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING and "result" not in trial.user_attrs]
    best: dict[str, TrialResult] = {}
    for result in sorted(
        (result for result in results if result.state == "complete"),
        key=lambda result: (-1 if maximize else 1) * (result.mean or 0.0),
    ):
        best.setdefault(result.learner, result)
    left = max(0, attrs["study"]["trials"] - len(results) - len(running))
    board = attrs.get("leaderboard")
    if board and sum(board["trials"].values()) != len(results):
        board = None  # of before there were more trials
    expired = is_expired(dict(attrs))
    is_open = bool(running) or (left > 0 and not expired)
    return {
        "study": attrs["study"]["name"],
        "status": "open" if is_open else "finished" if board else "to be finished",
        "trials": attrs["study"]["trials"],
        "complete": states["complete"],
        "pruned": states["pruned"],
        "failed": states["failed"],
        "running": [
            {
                "trial": trial.number,
                "learner": trial.params.get("learner"),
                "attempt": trial.user_attrs.get("claim", {}).get("attempts"),
            }
            for trial in running
        ],
        "left": left,
        "expired": expired,
        "seconds": time.time() - attrs["began"] if "began" in attrs else 0.0,
        "objectives": [*attrs["study"]["objective"]]
        if isinstance(attrs["study"]["objective"], list | dict)
        else [attrs["study"]["objective"]],
        "best": [
            {"learner": learner, "trial": result.number, "mean": result.mean, "ci95": result.ci95}
            for learner, result in best.items()
        ],
        "winner": _winner(board) if board else None,
    }


def _winner(board: Mapping[str, Any]) -> dict[str, Any]:
    first = board["finalists"][0]
    return {"trial": first["trial"], "learner": first["learner"]} | {
        key: first["report"][key] for key in ("mean", "ci95", "tasks")
    }


def finish(
    url: str,
    name: str,
    folder: Path | None,
    device: torch.device,
    watcher: search.Watcher,
    *,
    workers: int,
    stopped: Callable[[], bool],
) -> tuple[dict[str, Any], Path]:
    """Meta-train the finalists of a shared study here, and report the winner, in a run folder; return its leaderboard.

    Raises UserError where trials are still to be done.
    """
    attrs, trials = Patient(url, stopped)(_read, url, name)
    now = _status(attrs, trials, maximize=True)
    if now["status"] == "open":
        done = now["complete"] + now["pruned"] + now["failed"]
        raise UserError(
            f"of the study {name!r} {done} of {now['trials']} trials are done and {len(now['running'])} run; start "
            "workers (`metaopt worker`) or wait for them, or ask for fewer by `metaopt study create` with --trials"
        )
    bench = worker.make_bench(attrs, device)
    # The time was for the search. The trials that it came to are all that there are.
    bench.study = replace(
        bench.study, timeout=None, trials=max(1, sum("result" in trial.user_attrs for trial in trials))
    )
    folder = folder or Path("runs") / name
    with owned(folder):
        search.refuse_another(name, folder / "study.yaml")
        for trial in trials:
            if found := kept_scores(trial):
                first = found.pop("")
                write_scores(
                    folder / SCORES / f"{trial.number:05d}.npy",
                    first.tolist(),
                    {other: scores.tolist() for other, scores in found.items()},
                )
        for entry in (attrs.get("leaderboard") or {}).get("tested", []):
            tested.begin(folder)  # by a finish elsewhere, which counts
            tested.note(folder, entry["what"], trial=entry["trial"], tasks=entry["tasks"])
    board = search.run(bench, folder, watcher, workers=workers, storage=url, stopped=stopped)
    if board["status"] == "finished":
        Patient(url, stopped)(_keep, board, url, name)
    return board, folder


def _read(url: str, name: str) -> tuple[Mapping[str, Any], list[FrozenTrial]]:
    with closing(open_store(url, name)) as store:
        attrs = worker.described(store, name)
        return attrs, optuna.load_study(study_name=name, storage=store.storage).get_trials(deepcopy=False)


def _keep(board: dict[str, Any], url: str, name: str) -> None:
    with closing(open_store(url, name)) as store:
        optuna.load_study(study_name=name, storage=store.storage).set_user_attr("leaderboard", board)
