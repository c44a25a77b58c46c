"""A PostgreSQL server of its own for the tests of studies that many workers share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """Return a running server; without PostgreSQL or its driver the test is skipped."""
    pytest.importorskip("psycopg", reason="needs the extra [postgres]")
    try:
        server = cluster.Postgres("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    yield server
    server.close()


@pytest.fixture(params=["journal", "postgres", "proxy"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return a storage with nothing in it, of each kind that workers share."""
    if request.param == "journal":
        yield str(tmp_path / "shared.log")
        return
    server = request.getfixturevalue("postgres")
    server.empty()
    if request.param == "postgres":
        yield server.url
        return
    pytest.importorskip("grpc", reason="needs the extra [grpc]")
    from metaopt.study import proxy

    port, stop = proxy.serve(server.url, "127.0.0.1", 0)
    yield f"grpc://127.0.0.1:{port}"
    stop()
