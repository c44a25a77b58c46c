"""What needs the storage waits for it: see test_faults.py and test_worker.py for databases that are stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from metaopt.errors import UserError
from metaopt.study import cluster, patience
from metaopt.study.patience import Patient, UnansweredError
from metaopt.study.storage import open_storage
from metaopt.study.stores import open_store


def test_what_needs_the_storage_is_tried_again_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.02))
    answers: Iterator[Any] = iter(
        [patience.AWAY[0]("postgresql://me:hunter2@x/y is gone"), patience.AWAY[1]("gone"), 7]
    )

    def act() -> Any:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    assert Patient("postgresql://me:hunter2@x/y", lambda: False)(act) == 7
    assert [record.message.partition("; again")[0] for record in caplog.records] == [
        "the storage does not answer (it is gone)", "the storage does not answer (gone)", "the storage answers again"
    ]  # fmt: skip


def test_a_storage_that_stays_away_is_given_up_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.0)

    def act() -> None:
        raise patience.AWAY[0]("gone")

    with pytest.raises(UserError, match=r"^the storage does not answer \(gone\); what was finished is kept, so"):
        Patient("x", lambda: False)(act)


def test_what_opening_says_is_said_as_it_is_by_a_command_that_does_not_wait() -> None:
    pytest.importorskip("psycopg", reason="needs the extra [postgres]")
    with pytest.raises(UserError, match=r"^--storage: cannot open that storage \(.*refused.*as by psql$"):
        cluster.status("postgresql+psycopg://me@127.0.0.1:1/x", None)


def test_a_database_file_that_is_damaged_is_not_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=open_storage(tmp_path, url), study_name="s")
    study.set_user_attr("what", "x" * 2000)
    other = open_storage(tmp_path, url)
    file = tmp_path / "study.db"
    content = bytearray(file.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"^the storage cannot be read \(.*malformed.*\); restore it, or give another$"):
        Patient(url, lambda: False)(lambda: optuna.load_study(storage=other, study_name="s").trials)


def test_a_server_that_refuses_is_a_mistake_and_one_that_does_not_answer_may_be_back(postgres: Any) -> None:
    with pytest.raises(UserError) as refused:
        open_store(postgres.url.rpartition("/")[0] + "/nowhere", "s")
    assert not isinstance(refused.value, UnansweredError)
    postgres.stop()
    try:
        with pytest.raises(UnansweredError, match="cannot open that storage"):
            open_store(postgres.url, "s")
    finally:
        postgres.start()
