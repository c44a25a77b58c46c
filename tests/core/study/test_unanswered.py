"""Whatever the storage is asked and does not answer, whether it did it or not, every trial is run and counted once.

A study is worked on once to see from where in our code statements and commits come. Then it is worked on once for each
such place: the server ends the connection before the statement, or right after the commit, of which nothing is heard.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import cluster, file, patience, search, worker
from metaopt.study.trial import Bench

psycopg = pytest.importorskip("psycopg", reason="needs the extra [postgres]")

STUDY: dict[str, Any] = {
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"protonet": {"temperature": None}, "pixels": None},
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"lr": None},
    "executor": "loop",
    "trials": 4,
    "timeout": "1h",
    "budget": {"tasks": 16},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 10},
}
Place = tuple[str, int, str]
"""A line of ours, by file and number, and what it came to: "statement" or "commit"."""


class Silent(search.Watcher):
    """Hears everything and says nothing."""

    def began(self, bench: Bench, results: Any) -> None: ...
    def started(self, job: Any) -> None: ...
    def finished(self, result: Any, best: Any) -> None: ...
    def phase(self, text: str) -> None: ...


class Server:
    """A PostgreSQL server that ends a connection at one place."""

    def __init__(self, url: str) -> None:
        self.url, self.places, self.at = url, dict[Place, None](), None

    at: Place | None

    def heard(self, connection: Any, what: str) -> bool:
        """Note where this came from; end the connection if that is the place, and say so."""
        if (place := _place(what)) is None:
            return False
        self.places[place] = None
        if place != self.at:
            return False
        self.at = None
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        return True


def _place(what: str) -> Place | None:
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "study" and path.parent.parent.name == "metaopt":
            return path.name, frame.f_lineno, what
    return None


@contextmanager
def listening(server: Server) -> Iterator[None]:
    commit = DefaultDialect.do_commit

    def before(connection: Any, *_: object) -> None:
        server.heard(connection.connection.dbapi_connection, "statement")

    def committed(dialect: Any, connection: Any) -> None:
        commit(dialect, connection)
        if server.heard(connection.dbapi_connection, "commit"):
            raise psycopg.OperationalError("the server closed the connection unexpectedly")

    event.listen(Engine, "before_cursor_execute", before)
    DefaultDialect.do_commit = committed  # type: ignore[method-assign]
    try:
        yield
    finally:
        DefaultDialect.do_commit = commit  # type: ignore[method-assign]
        event.remove(Engine, "before_cursor_execute", before)


def study(name: str) -> Bench:
    registry = plugins.load()
    return Bench(file.resolve(STUDY | {"name": name}, name, registry), registry, torch.device("cpu"))


def run(server: Server, name: str, folder: Path) -> None:
    late = time.monotonic() + 20
    with listening(server):
        search.run(study(name), folder / name, Silent(), storage=server.url, stopped=lambda: time.monotonic() > late)


def work(server: Server, name: str, folder: Path) -> None:
    late = time.monotonic() + 20
    cluster.create(study(name), server.url)
    with listening(server):
        cpu = torch.device("cpu")
        worker.work(server.url, name, cpu, Silent(), lambda: time.monotonic() > late, beat=0.05)


def from_outside(server: Server, name: str, folder: Path) -> None:
    with listening(server):
        cluster.create(study(name), server.url)
    cpu = torch.device("cpu")
    worker.work(server.url, name, cpu, Silent(), lambda: False, beat=0.05)
    with listening(server):
        cluster.status(server.url, name)
        board, _ = cluster.finish(server.url, name, folder / name, cpu, Silent(), workers=1, stopped=lambda: False)
    assert board["status"] == "finished"


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # by Optuna, of a failed opening
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("act", [run, work, from_outside])
def test_whatever_the_storage_does_not_answer_every_trial_is_run_and_counted_once(
    act: Callable[[Server, str, Path], None],
    every: int,
    postgres: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01))
    postgres.empty()
    server, wrong = Server(postgres.url), {}
    act(server, "undisturbed", tmp_path)
    as_it_is = states(server.url, "undisturbed")
    assert len(as_it_is) == STUDY["trials"]
    assert len(server.places) > 20
    for number, place in enumerate([*server.places][::every]):
        server.at = place
        try:
            try:
                act(server, f"s{number}", tmp_path)
            except UserError as error:
                if not re.search(r"cannot open that storage|the storage does not answer", str(error)):
                    raise
                act(server, f"s{number}", tmp_path)  # as its user does who was told so
        except Exception as error:
            wrong[place] = repr(error)
            continue
        if (found := states(server.url, f"s{number}")) != as_it_is or server.at:
            wrong[place] = f"{found}, {server.at} not met"
    assert not wrong


def states(url: str, study: str) -> list[tuple[str, str]]:
    """Return the state of each trial and of its result, in the order of their numbers."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return list(connection.execute(
            "SELECT t.state::text, coalesce(a.value_json::json->>'state', '') FROM trials t JOIN studies s USING "
            "(study_id) LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'result' "
            "WHERE s.study_name = %s ORDER BY t.number", [study],
        ))  # fmt: skip
