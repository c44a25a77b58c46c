"""A proxy before a database: its lock is the database's, and what is written under a lost one is refused."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from metaopt.errors import UserError
from metaopt.study.patience import AWAY, UnansweredError
from metaopt.study.stores import open_store

pytest.importorskip("grpc", reason="needs the extra [grpc]")

from metaopt.study import proxy


@pytest.fixture
def address(postgres: Any) -> Iterator[str]:
    postgres.empty()
    port, stop = proxy.serve(postgres.url, "127.0.0.1", 0)
    yield f"grpc://127.0.0.1:{port}"
    stop()


def began(url: str) -> int:
    """Make a study; return its number."""
    with closing(open_store(url, "s", new=True)) as store:
        return optuna.create_study(study_name="s", storage=store.storage)._study_id


def test_its_lock_is_the_one_that_those_take_who_need_no_proxy(address: str, postgres: Any) -> None:
    began(address)
    script = (
        "import sys, time; from metaopt.study.stores import open_store\n"
        "store = open_store(sys.argv[1], 's')\n"
        "with store.alone():\n    print('has it', flush=True); time.sleep(float(sys.argv[2]))\n"
        "print('gave it back', flush=True); store.close()"
    )
    for first, second in ((address, postgres.url), (postgres.url, address)):
        holder = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, first, "1"], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout
        assert holder.stdout.readline() == "has it\n"
        with closing(open_store(second, "other")) as other, other.alone():
            pass  # that of another study is free
        with closing(open_store(second, "s")) as store, store.alone():
            assert holder.wait(10) == 0, "only then"
        holder.stdout.close()


def test_the_lock_of_one_who_is_killed_is_free_at_once(address: str) -> None:
    began(address)
    script = (
        "import sys, time; from metaopt.study.stores import open_store\n"
        "with open_store(sys.argv[1], 's').alone():\n    print('has it', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, address], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "has it\n"
    os.kill(holder.pid, signal.SIGKILL)
    began_at = time.monotonic()
    with closing(open_store(address, "s")) as store, store.alone():
        assert time.monotonic() - began_at < proxy.LEASE / 2
    holder.wait()
    holder.stdout.close()


def test_what_is_written_under_a_lock_that_has_ended_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study_id = began(address)
    monkeypatch.setattr(proxy, "LEASE", 0.3)
    with closing(open_store(address, "s")) as store:
        with store.alone():
            store.storage.create_new_trial(study_id)
            time.sleep(1)  # as one that is frozen does
            with pytest.raises(AWAY, match="the lock was lost"):
                store.storage.create_new_trial(study_id)
        with store.alone():
            store.storage.create_new_trial(study_id)
        assert len(store.storage.get_all_trials(study_id)) == 2


def test_a_proxy_that_went_away_is_waited_for_and_found_again(postgres: Any) -> None:
    postgres.empty()
    port, stop = proxy.serve(postgres.url, "127.0.0.1", 0)
    address = f"grpc://127.0.0.1:{port}"
    study_id = began(address)
    store = open_store(address, "s")
    trial = store.storage.create_new_trial(study_id)
    stop()
    with pytest.raises(AWAY):
        store.storage.create_new_trial(study_id)
    with pytest.raises(AWAY), store.alone():
        pass
    with pytest.raises(UnansweredError, match=rf"^--storage: no proxy answers at 127.0.0.1:{port}; start one where"):
        proxy.Client.at(address, seconds=0.2)
    _, stop = proxy.serve(postgres.url, "127.0.0.1", port)
    for _ in range(50):
        try:
            with store.alone():
                assert store.storage.set_trial_state_values(trial, TrialState.RUNNING) in (True, False)
            break
        except AWAY:
            time.sleep(0.2)  # as Patient does
    else:
        pytest.fail("it does not answer")
    assert [one.state for one in store.storage.get_all_trials(study_id)] == [TrialState.RUNNING]
    store.close()
    stop()


def test_a_database_that_went_away_is_one_that_does_not_answer(address: str, postgres: Any) -> None:
    study_id = began(address)
    with closing(open_store(address, "s")) as store:
        postgres.stop()
        try:
            with pytest.raises(AWAY):
                store.storage.create_new_trial(study_id)
            with pytest.raises(AWAY), store.alone():
                pass
        finally:
            postgres.start()
        with store.alone():
            store.storage.create_new_trial(study_id)


def test_a_port_that_cannot_be_had_is_refused_in_a_sentence(address: str, postgres: Any) -> None:
    taken = int(address.rpartition(":")[2])
    for host, port in (("127.0.0.1", taken), ("192.0.2.1", 13_000), ("no.such.host", 13_000)):
        with pytest.raises(UserError, match=rf"^cannot listen at {host}, port {port}; give another with --port, or 0"):
            proxy.serve(postgres.url, host, port)


@pytest.mark.parametrize("url", ["grpc://h:13000", "journal.log"])
def test_a_proxy_is_of_a_database(url: str) -> None:
    with pytest.raises(UserError, match=rf"^--storage: a proxy answers for a PostgreSQL database, and {url} is none"):
        proxy.serve(url, "localhost", 13000)


def test_the_command_answers_until_it_is_interrupted(postgres: Any) -> None:
    postgres.empty()
    command = [sys.executable, "-m", "metaopt", "proxy", "--port", "0"]
    process = subprocess.Popen(
        command, env=os.environ | {"METAOPT_STORAGE": postgres.url}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    said = re.fullmatch(
        r"workers find the storage at (grpc://127\.0\.0\.1:\d+); Ctrl-C ends it\n", process.stderr.readline()
    )
    assert said
    assert began(said[1]) > 0
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stderr.close()
