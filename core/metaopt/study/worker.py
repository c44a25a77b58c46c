"""A worker: takes trials of a shared study from its storage, runs them and stores what came of it, until all are done.

It keeps nothing of its own, so it may be killed at any moment and started anywhere. Where the storage does not answer
it waits and tries again; `supervise` starts another in the place of one that died.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import artifacts, crew, file, versions
from metaopt.study.patience import AWAY, Patient
from metaopt.study.search import Watcher
from metaopt.study.shared import Shared
from metaopt.study.stores import BEAT, Store, open_store
from metaopt.study.trial import Bench

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between looks at a study of which all trials are taken, at most: many workers look."""


def names(store: Store) -> list[str]:
    """Return the names of all studies in a storage."""
    return optuna.get_all_study_names(store.storage)


def described(store: Store, name: str) -> Mapping[str, Any]:
    """Return what the storage knows of a study beside its trials. UserError where there is no such shared study."""
    known = names(store)
    attrs = optuna.load_study(study_name=name, storage=store.storage).user_attrs if name in known else {}
    if "study" in attrs and attrs.get("shared"):
        return attrs
    if "study" in attrs:
        raise UserError(f"the study {name!r} was begun by `metaopt study run`, which alone goes on with it")
    raise UserError(
        f"the storage holds no study {name!r} made by `metaopt study create` (its studies: "
        f"{', '.join(sorted(known)) or 'none'}); create it first"
    )


def make_bench(attrs: Mapping[str, Any], device: torch.device) -> Bench:
    """Return a shared study ready to run here. Raises UserError where this machine lacks its plugins or its data."""
    name, registry = attrs["study"]["name"], plugins.load()
    try:
        study = file.resolve(attrs["study"], f"study {name}", registry)
    except UserError as error:
        raise versions.explained(error, attrs["versions"]) from None
    try:
        # What was to be tried first of earlier studies waits in the storage; their folders may be elsewhere.
        bench = Bench(replace(study, warm_start=()), registry, device)
        crew.check(bench)
    except UserError as error:
        raise UserError(f"study {name}: {error}") from None
    if said := versions.changed(attrs["versions"]):
        log.warning("study %s: %s", name, said)
    return bench


def work(
    url: str,
    name: str,
    device: torch.device,
    watcher: Watcher,
    stopped: Callable[[], bool],
    *,
    beat: float = BEAT,
) -> int:
    """Work on a study until it is done or `stopped()`; return how many trials this worker has finished."""
    patient = Patient(url, stopped)
    with closing(patient(open_store, url, name)) as store:
        return _work_in(store, patient, name, device, watcher, stopped, beat)


def _work_in(
    store: Store,
    patient: Patient,
    name: str,
    device: torch.device,
    watcher: Watcher,
    stopped: Callable[[], bool],
    beat: float,
) -> int:
    attrs = patient(described, store, name)
    artifacts.require(attrs.get("artifacts"))
    bench = make_bench(attrs, device)
    ledger = patient(Shared, bench, store, Path("runs") / name, beat=beat)
    watcher.began(bench, ledger.results)
    with _Pulse(ledger) as pulse:

        def ended() -> bool:
            return stopped() or bool(ledger.gone)

        hands: crew.Crew = (
            crew.Workers(bench, 1, ledger.report, ended)
            if bench.study.isolation == "process"
            else crew.Alone(bench, ledger.report, ended)
        )
        try:
            return _work(patient, ledger, hands, watcher, stopped)
        finally:
            pulse.stop()
            hands.close()


def _work(patient: Patient, ledger: Shared, hands: crew.Crew, watcher: Watcher, stopped: Callable[[], bool]) -> int:
    finished, looks = 0, 0
    while not stopped():
        job = patient(ledger.claim)
        if job is None:
            if patient(lambda: ledger.over):
                break
            time.sleep(min(LOOK, ledger.beat, 0.25 * 2**looks) * random.uniform(0.5, 1.0))
            looks = min(looks + 1, 10)
            patient(ledger.watch)
            continue
        looks = 0
        watcher.started(job)
        hands.start(job)
        while hands.busy:
            for done in hands.wait():
                if patient(ledger.tell, done):
                    finished += 1
                    bench = ledger.bench
                    bench.registry.trial_finished(done.result, bench.study.to_dict(), ledger.folder)
                    watcher.finished(done.result, next(iter(ledger.best()), None))
    return finished


class _Pulse:
    """A thread that gives a worker's signs of life and looks for those of others, while a trial runs."""

    def __init__(self, ledger: Shared) -> None:
        self.ledger, self.over = ledger, threading.Event()
        self.thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> "_Pulse":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.over.set()
        self.thread.join(timeout=5)

    def _beat(self) -> None:
        while not self.over.wait(self.ledger.beat):
            with suppress(*AWAY):  # the next beat may be heard
                if self.ledger.claims:
                    self.ledger.live()
                    self.ledger.watch()
