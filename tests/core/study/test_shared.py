"""Many workers on one storage: exactly as many trials as were asked for, none lost, none double, whoever dies."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import cluster as shared_studies
from metaopt.study import stores
from metaopt.study.crew import LOST
from metaopt.study.file import resolve
from metaopt.study.ledger import ATTEMPTS, Ledger
from metaopt.study.patience import AWAY, LockLostError
from metaopt.study.shared import SILENT, Shared
from metaopt.study.storage import open_storage
from metaopt.study.stores import Store, open_store
from metaopt.study.trial import INTERRUPTED, TIMEOUT, Bench, Done, Job, TrialResult

REGISTRY = plugins.load()
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"protonet": {"temperature": None}, "relation": None},
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"lr": None},
    "executor": "loop",
    "trials": 6,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 2, "report_tasks": 20},
}
BEAT = 0.05

Workers = Callable[..., Shared]


def bench(**changes: Any) -> Bench:
    return Bench(resolve(STUDY | changes, "a.yaml", REGISTRY), REGISTRY, torch.device("cpu"))


@pytest.fixture
def worker(url: str, tmp_path: Path) -> Iterator[Workers]:
    """Begin to work on a study, each time as another process would, with a storage opened anew."""

    stores = []

    def begin(beat: float = BEAT, **changes: Any) -> Shared:
        made = bench(**changes)
        shared_studies.create(made, url)
        stores.append(open_store(url, made.study.name))
        return Shared(made, stores[-1], tmp_path, beat=beat)

    yield begin
    for store in stores:
        store.close()


def done(job: Job, state: Any = "complete", mean: float = 0.5, **more: Any) -> Done:
    complete = state == "complete"
    result = TrialResult(
        job.number,
        state,
        job.params["learner"],
        job.params,
        job.seed,
        mean=mean if complete else None,
        ci95=0.1,
        tasks=10 if complete else 0,
        **more,
    )
    return Done(result, tuple(np.linspace(mean - 0.3, mean + 0.3, 10)) if complete else ())


def taken(worker: Shared) -> Job:
    job = worker.claim()
    assert job is not None
    return job


def dies(worker: Shared, sees: Shared) -> None:
    """Let a worker fall silent until another takes it for dead."""
    for _ in range(SILENT + 3):
        sees.watch()
        time.sleep(BEAT)
    sees.watch()


# As many as were asked for


def test_two_workers_never_have_the_same_trial_and_together_make_as_many_as_were_asked_for(worker: Workers) -> None:
    a, b = worker(), worker()
    numbers = []
    for one in (a, b, b, a, a, b):
        numbers.append((job := taken(one)).number)
        if one is a:
            assert one.tell(done(job))
    assert sorted(numbers) == list(range(6))
    assert (a.claim(), b.claim()) == (None, None)
    assert (a.over, b.over) == (False, False), "b has three trials still"


def test_workers_that_take_trials_at_the_same_moment_make_no_trial_too_many(worker: Workers) -> None:
    crowd = [worker(trials=12) for _ in range(4)]
    numbers, start = list[int](), threading.Barrier(4)

    def work(one: Shared) -> None:
        start.wait()
        while job := one.claim():
            numbers.append(job.number)
            one.tell(done(job))

    threads = [threading.Thread(target=work, args=(one,)) for one in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(12))
    assert len(crowd[0].optuna.trials) == 12
    assert all(one.over for one in crowd)


def test_a_trials_seed_and_the_first_trials_are_those_of_a_study_of_one_process(
    worker: Workers, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    alone, a, b = Ledger(bench(), open_storage(tmp_path / "one"), tmp_path / "one"), worker(), worker()
    for one in (a, b, a):
        job, expected = taken(one), alone.ask()
        assert (job.number, job.seed) == (expected.number, expected.seed)
        if job.number < 2:
            assert job.params == expected.params, "a learner's default"
        assert job == replace(expected, params=job.params, checkpoint=job.checkpoint)
        one.tell(done(job))
        alone.tell(done(expected))


def test_one_worker_tries_what_a_study_of_one_process_tries(worker: Workers, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    alone, a = Ledger(bench(), open_storage(tmp_path / "one"), tmp_path / "one"), worker()
    for _ in range(6):
        job, expected = taken(a), alone.ask()
        assert job == replace(expected, checkpoint=job.checkpoint)
        a.tell(done(job, mean=0.1 * job.number))
        alone.tell(done(expected, mean=0.1 * job.number))


def test_another_number_of_trials_is_noticed_by_workers_that_are_at_it(worker: Workers) -> None:
    a = worker(trials=2)
    for _ in range(2):
        a.tell(done(taken(a)))
    assert a.claim() is None
    worker(trials=3)
    assert not a.over
    a.tell(done(taken(a)))
    assert a.claim() is None
    assert a.over


# Who dies


def test_the_trial_of_a_silent_worker_is_taken_over_with_its_seed_and_what_it_chose(worker: Workers) -> None:
    a, b = worker(), worker()
    for _ in range(2):
        a.tell(done(taken(a)))
    job = taken(a)
    dies(a, b)
    again = taken(b)
    assert again == job
    assert b.claims[job.number].attempts == 2


def test_a_trial_is_begun_so_many_times_and_then_fails(worker: Workers) -> None:
    a = worker()
    numbers = [taken(a).number]
    for _ in range(ATTEMPTS - 1):
        b = worker()
        dies(a, b)
        numbers.append(taken(b).number)
        a = b
    c = worker()
    dies(a, c)
    assert taken(c).number == 1, "it goes on with the next"
    assert numbers == [0] * ATTEMPTS
    c.refresh()
    [failed] = c.results
    assert (failed.number, failed.state, failed.learner) == (0, "failed", "protonet")
    assert failed.reason == f"{LOST}its worker died {ATTEMPTS} times"


def test_a_worker_that_gives_signs_of_life_keeps_its_trial_however_long_it_takes(worker: Workers) -> None:
    a, b = worker(), worker()
    job = taken(a)
    for _ in range(2 * SILENT):
        a.live()
        b.watch()
        time.sleep(BEAT)
    b.watch()
    assert taken(b).number != job.number
    assert a.tell(done(job))


def test_who_did_not_look_for_a_while_takes_nobody_for_dead(worker: Workers) -> None:
    a, b = worker(), worker()
    job = taken(a)
    b.watch()
    time.sleep((SILENT + 1) * BEAT)
    b.looked -= 10 * 60  # as after being frozen, or without the database
    b.watch()
    assert taken(b).number != job.number


def test_what_a_worker_makes_of_a_trial_that_others_took_over_is_dropped(worker: Workers) -> None:
    a, b = worker(), worker()
    job = taken(a)
    dies(a, b)
    again = taken(b)
    a.live()
    assert a.gone == {job.number}
    assert not a.tell(done(job, mean=0.9))
    assert b.tell(done(again, mean=0.4))
    assert not a.gone
    trial = b.optuna.trials[job.number]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)


def test_a_sign_of_life_at_the_moment_its_trial_is_told_leaves_nothing_behind(
    worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = worker()
    job, look = taken(a), a.store.storage.get_trial

    def told_meanwhile(trial_id: int) -> Any:
        trial = look(trial_id)
        monkeypatch.setattr(a.store.storage, "get_trial", look)
        assert a.tell(done(job))
        return trial

    monkeypatch.setattr(a.store.storage, "get_trial", told_meanwhile)
    a.live()
    assert not a.claims
    assert not a.gone
    assert taken(a).number == 1


def test_a_trial_that_was_taken_and_never_claimed_is_taken_at_once(worker: Workers) -> None:
    a, b = worker(), worker()
    a.store.storage.set_trial_state_values(a.optuna.trials[0]._trial_id, TrialState.RUNNING)
    assert taken(b).number == 0


def test_a_trial_whose_taking_was_not_answered_to_the_end_is_what_the_next_call_gives(
    worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, answers = worker(), Shared._deadline
    monkeypatch.setattr(Shared, "_deadline", lambda self: (_ for _ in ()).throw(LockLostError("gone")))
    with pytest.raises(LockLostError):
        a.claim()
    assert not a.claims, "no sign of life is given for what nobody runs"
    monkeypatch.setattr(Shared, "_deadline", answers)
    assert taken(a).number == 0


def test_a_result_whose_worker_died_before_it_was_closed_is_kept(worker: Workers, monkeypatch: Any) -> None:
    a, b = worker(), worker()
    job = taken(a)

    def die(result: TrialResult) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(a, "_close", die)
    with pytest.raises(KeyboardInterrupt):
        a.tell(done(job, mean=0.7))
    dies(a, b)
    assert taken(b).number == 1
    assert b.optuna.trials[0].value == 0.7
    assert a.tell(done(job, mean=0.7)), "asked again, it is told that this is done"


def test_an_interrupted_trial_is_given_back_and_counts_no_attempt(worker: Workers) -> None:
    a, b = worker(), worker()
    for _ in range(ATTEMPTS + 1):
        job = taken(a)
        assert not a.tell(done(job, "pruned", reason=INTERRUPTED))
    assert taken(b) == job
    assert b.claims[0].attempts == 1


def test_a_trial_whose_process_was_killed_is_run_again_by_anybody(worker: Workers) -> None:
    a, b = worker(), worker()
    for attempt in range(ATTEMPTS - 1):
        assert not a.tell(done(taken(a), "failed", reason=f"{LOST}its worker process was killed by SIGKILL"))
        assert a.optuna.trials[0].user_attrs["claim"]["attempts"] == attempt + 1
    assert b.tell(done(taken(b), "failed", reason=f"{LOST}its worker process was killed by SIGKILL"))
    assert b.optuna.trials[0].state == TrialState.FAIL


# What they know of each other


def test_scores_task_by_task_are_kept_exactly_and_race_the_trials_of_others(worker: Workers) -> None:
    a, b = worker(trials=8), worker(trials=8)
    for mean in (0.5, 0.9):
        a.tell(best := done(taken(a), mean=mean))
    job = taken(b)
    assert b.tell(done(job))
    job = taken(b)
    b.refresh()
    assert np.array_equal(b._best(), best.per_task)  # type: ignore[arg-type]
    assert b.report(job.number, 1.0, [score - 0.8 for score in best.per_task])
    assert not b.report(job.number, 1.0, best.per_task)


def test_rungs_are_held_against_the_trials_of_others(worker: Workers) -> None:
    a, b = worker(trials=12), worker(trials=12)
    for mean in (0.5, 0.5, 0.6, 0.7, 0.8):
        job = taken(a)
        a.report(job.number, 0.5, [mean] * 10)
        a.tell(done(job, mean=mean))
    job = taken(b)
    assert b.report(job.number, 0.5, [0.1] * 10)
    assert taken(b).number != job.number


def test_a_bandit_does_not_count_what_another_worker_is_still_choosing(worker: Workers) -> None:
    a, b = worker(), worker()
    for _ in range(2):
        a.tell(done(taken(a)))
    a.store.storage.create_new_trial(a.optuna._study_id)  # chosen by nobody yet
    taken(b)
    arms = b.optuna.sampler.arms  # type: ignore[attr-defined]
    assert sum(len(arm.trials) for arm in arms.values()) == 3, "two that are done, and its own"


def test_the_time_of_a_study_is_one_for_all_and_begins_with_the_first_trial(worker: Workers) -> None:
    a, b = worker(timeout="100s"), worker(timeout="100s")
    assert "began" not in a.optuna.user_attrs
    job, other = taken(a), taken(b)
    assert abs(job.deadline - other.deadline) < 1
    assert 90 < job.deadline - time.monotonic() <= 100
    a.optuna.set_user_attr("began", time.time() - 101)
    assert b.claim() is None
    assert not b.over
    assert a.tell(done(job))
    dies(b, a)
    assert a.claim() is None
    a.refresh()
    assert [(one.state, one.reason) for one in a.results] == [("complete", None), ("pruned", TIMEOUT)]
    assert a.over


# The lock


def test_a_lock_that_was_lost_lets_nothing_be_written(postgres: Any, tmp_path: Path) -> None:
    made = bench(name="lock")
    shared_studies.create(made, postgres.url)
    store = open_store(postgres.url, "lock")
    study = optuna.load_study(study_name="lock", storage=store.storage)
    with pytest.raises(AWAY), store.alone():  # noqa: PT012 - as a claim does
        postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'metaopt'")
        store.storage.create_new_trial(study._study_id)
    assert len(study.trials) == 2, "the defaults"
    with store.alone():
        store.storage.create_new_trial(study._study_id)
    assert len(study.trials) == 3
    store.close()


def test_who_has_the_lock_has_it_alone(url: str) -> None:
    with closing(open_store(url, "s", new=True)) as a, closing(open_store(url, "s")) as b:
        with a.alone():
            waits = threading.Thread(target=lambda: _within(b), daemon=True)
            waits.start()
            waits.join(timeout=0.3)
            assert waits.is_alive()
        waits.join(timeout=5)
        assert not waits.is_alive()


def _within(store: Store) -> None:
    with store.alone():
        pass


# Mistakes


def test_a_study_of_study_run_is_refused_and_theirs_is_refused_by_study_run(tmp_path: Path) -> None:
    made = bench()
    Ledger(made, open_storage(tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"^the study 's' in this storage was begun by `metaopt study run`"):
        shared_studies.create(made, str(tmp_path / "journal.log"))
    shared_studies.create(made, str(tmp_path / "other.log"))
    with pytest.raises(UserError, match=r"^the study 's' was made by `metaopt study create`, and 0 of its trials are"):
        Ledger(made, open_storage(tmp_path, str(tmp_path / "other.log")), tmp_path)


def test_a_study_over_another_space_is_refused(worker: Workers) -> None:
    worker()
    with pytest.raises(UserError, match=r"^this study was begun with budget\.tasks = 8, not 9"):
        worker(budget={"tasks": 9})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///a.db", "--storage: many workers share a PostgreSQL database (postgresql+psycopg://USER@HOST/"),
        ("nonsense", "--storage: many workers share a PostgreSQL database"),
        ("/no/such/folder/journal.log", "--storage: there is no folder /no/such/folder; make it"),
        ("grpc://", "--storage: grpc:// is no address of a proxy; give one as grpc://HOST:13000"),
        ("grpc://h:99999", "--storage: grpc://h:99999 is no address of a proxy"),
        ("missing.log", "--storage: there is no file missing.log; `metaopt study create` makes it"),
        ("postgresql://me:hunter2@127.0.0.1:1/x", "--storage: cannot open that storage ("),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(url: str, said: str) -> None:
    if "postgres" in url:
        pytest.importorskip("psycopg", reason="needs the extra [postgres]")
    with pytest.raises(UserError) as refused:
        open_store(url, "s")
    assert str(refused.value).startswith(said)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'metaopt-fewshot\[postgres\]'$"):
        open_store("postgresql://localhost/x", "s")
