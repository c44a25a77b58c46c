"""The journal survives whoever dies over it, and loses nothing that was acknowledged."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from metaopt.errors import UserError
from metaopt.study.storage import JOURNAL, open_storage


def study(folder: Path, url: str | None = None) -> optuna.Study:
    return optuna.create_study(
        storage=open_storage(folder, url),
        study_name="s",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(0),  # the default looks at what others wrote
    )


def add_trials(to: optuna.Study, n: int) -> None:
    for _ in range(n):
        trial = to.ask()
        trial.suggest_float("x", 0, 1)
        to.tell(trial, 0.5)


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a process in which `study` and `add_trials` are at hand."""
    code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_storage import *\n{code}"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_torn_last_line_is_cut_before_the_next_is_written_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    add_trials(study(tmp_path), 2)
    journal = tmp_path / JOURNAL
    acknowledged = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"a killed wri')
    assert len(study(tmp_path).trials) == 2, "reading does not mind it"
    add_trials(study(tmp_path), 1)
    assert journal.read_bytes().startswith(acknowledged + b'{"op_code"')
    assert b"killed wri" not in journal.read_bytes()
    assert [trial.value for trial in study(tmp_path).trials] == [0.5] * 3


@given(st.integers(0, 10_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
def test_wherever_a_journal_is_torn_its_whole_lines_are_kept(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    add_trials(study(folder), 1)
    journal = folder / JOURNAL
    torn = journal.read_bytes()[:length]
    journal.write_bytes(torn)
    add_trials(study(folder), 1)
    assert journal.read_bytes().startswith(torn[: torn.rfind(b"\n") + 1])
    assert study(folder).trials[-1].value == 0.5


def test_a_writer_killed_while_it_holds_the_lock_stalls_nobody(tmp_path: Path) -> None:
    add_trials(study(tmp_path), 1)
    code = (
        "import os, signal\nfrom metaopt.study.storage import MendingLock\n"
        "MendingLock(Path(sys.argv[1])).acquire()\n"
        "open(sys.argv[1], 'ab').write(b'half a line')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with python(code, tmp_path / JOURNAL) as writer:
        assert writer.wait() == -signal.SIGKILL
    assert (tmp_path / JOURNAL).read_bytes().endswith(b"half a line")
    began = time.monotonic()
    add_trials(study(tmp_path), 1)
    assert time.monotonic() - began < 10, "Optuna's own lock waits for 30 seconds here"
    assert len(study(tmp_path).trials) == 2


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    study(tmp_path)
    writers = [python("add_trials(study(Path(sys.argv[1])), 25)", tmp_path) for _ in range(3)]
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    trials = study(tmp_path).trials
    assert len(trials) == 75
    assert [trial.number for trial in trials] == list(range(75))
    assert {trial.value for trial in trials} == {0.5}


def test_the_disk_is_waited_for_at_a_result_and_not_at_what_a_trial_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    one = study(tmp_path)
    began = len(synced)
    assert began, "a study that is begun is on the disk"
    trial = one.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("attempts", 1)
    assert len(synced) == began
    trial.set_user_attr("result", {"mean": 0.5})
    assert synced[began:] == [(tmp_path / JOURNAL).stat().st_size], "once, all of it"


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    add_trials(study(tmp_path), 1)
    code = (
        "from metaopt.study.storage import MendingLock\nlock = MendingLock(Path(sys.argv[1]))\nlock.acquire()\n"
        "print('held', flush=True)\ntime.sleep(0.5)\nlock.release()"
    )
    with python(code, tmp_path / JOURNAL) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        add_trials(study(tmp_path), 1)
        assert time.monotonic() - began > 0.3
        assert holder.wait() == 0


def test_optuna_reads_and_writes_the_journal_by_itself(tmp_path: Path) -> None:
    add_trials(study(tmp_path), 2)
    theirs = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL))))
    assert [trial.value for trial in theirs.trials] == [0.5, 0.5]
    began = time.monotonic()
    theirs.set_user_attr("note", "by hand")  # as optuna-dashboard does
    assert time.monotonic() - began < 10, "no file of ours may stand where its lock is"
    assert study(tmp_path).user_attrs == {"note": "by hand"}


@pytest.mark.parametrize(
    "content",
    [b"not json\n{}\n", b"{}\n{}\n", b"5\n5\n", b"[]\n[]\n", b'{"op_code": 99, "worker_id": "a"}\n', b"\x80\x00\n\n",
     b'{"op_code": 0, "worker_id": "a"}\n', b'{"op_code": "x", "worker_id": "a"}\n', b"null\n1\n"],
)  # fmt: skip
def test_a_journal_that_is_none_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(UserError) as refused:
        open_storage(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / JOURNAL}: cannot be read as a journal (")
    assert str(refused.value).endswith("); restore it, or give another --output")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/study.db", "nonsense", "nosuchdb://x", "postgresql://localhost:1/x", "", ":"]
)
def test_a_url_that_cannot_be_opened_is_refused_in_one_sentence(tmp_path: Path, url: str) -> None:
    if not url:
        assert isinstance(open_storage(tmp_path, url), JournalStorage)
        return
    with pytest.raises(UserError) as refused:
        open_storage(tmp_path, url)
    assert str(refused.value).startswith("--storage: cannot open that storage (")
    assert str(refused.value).endswith("); give a URL such as sqlite:///study.db")
    assert len(str(refused.value).splitlines()) == 1


def test_a_database_works_as_the_journal_does(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    add_trials(study(tmp_path, url), 2)
    assert [trial.value for trial in study(tmp_path, url).trials] == [0.5, 0.5]
    assert not (tmp_path / JOURNAL).exists()
