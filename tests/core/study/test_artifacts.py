"""A long trial of a shared study, taken over by another machine, goes on from where it was, through a folder or S3."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt import checkpoint, cli, plugins
from metaopt.errors import UserError
from metaopt.study import artifacts
from metaopt.study import cluster as shared_studies
from metaopt.study.artifacts import Artifact
from metaopt.study.file import resolve
from metaopt.study.shared import Shared
from metaopt.study.stores import open_store
from metaopt.study.trial import Bench, Job

REGISTRY = plugins.load()
STUDY: dict[str, Any] = {
    "name": "long",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": ["protonet"],
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"tasks_per_step": 2},
    "executor": "loop",
    "trials": 1,
    "budget": {"tasks": 60},
    "evaluation": {"tasks": 10},
}
BEAT = 0.05


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Serve S3 as moto does, over HTTP on this machine, with one bucket in it."""
    pytest.importorskip("boto3", reason="needs the extra [s3]")
    server_of = pytest.importorskip("moto.server", reason="needs moto")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="laboratory")
        yield "s3://laboratory"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where artifacts may be kept, of each kind."""
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def content(artifact: Artifact) -> bytes | None:
    with artifact.opened() as path:
        return path.read_bytes() if path else None


def test_what_is_kept_is_read_again_replaced_and_removed_by_name(place: str) -> None:
    one, other = Artifact(place, "a-1"), Artifact(place, "a-2")
    assert content(one) is None
    one.write(b"first")
    one.write(b"second" * 10**6)
    other.write(b"other")
    assert content(one) == b"second" * 10**6
    one.remove()
    one.remove()
    assert content(one) is None
    assert content(other) == b"other"


def test_a_bucket_needs_no_prefix(bucket: str) -> None:
    one = Artifact(bucket, "without")
    one.write(b"first")
    assert content(one) == b"first"


def test_a_file_that_is_read_is_gone_afterwards(place: str) -> None:
    one = Artifact(place, "a-1")
    one.write(b"first")
    with one.opened() as path:
        assert path
        assert path.exists()
    assert not path.exists() or path.parent == Path(place)


def bench() -> Bench:
    return Bench(resolve(STUDY, "a.yaml", REGISTRY), REGISTRY, torch.device("cpu"))


def on_each_step(made: Bench, act: Callable[[int], None]) -> Bench:
    """Call `act` with the number of every outer step that begins."""
    draw, steps = made.sampler.draw, 0

    def drawing(pool: Any, *rest: Any) -> Any:
        nonlocal steps
        if pool == "train":
            steps += 1
            act(steps)
        return draw(pool, *rest)

    vars(made.sampler)["draw"] = drawing  # of this bench alone
    return made


def taken(worker: Shared, within: float = 20) -> Job:
    """Take a trial, when those that others have are given up for dead."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        worker.watch()
        if job := worker.claim():
            return job
        time.sleep(BEAT)
    pytest.fail("no trial to be taken")


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", -1.0)
    monkeypatch.setattr(checkpoint, "COST", float("inf"))


def dies_at_step(step: int, journal: str) -> None:
    """Work on the study in a copy of this process, which is killed in the middle of a step."""
    child = os.fork()
    if not child:
        made = on_each_step(bench(), lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == step else None)
        job = Shared(made, open_store(journal, "long"), Path(), beat=BEAT).claim()
        assert job
        made.run(job)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="a copy of this process is killed")
@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("given", [True, False])
def test_a_trial_whose_worker_died_is_gone_on_with_by_another_to_the_same_end(
    place: str, tmp_path: Path, given: bool
) -> None:
    journal = str(tmp_path / "shared.log")  # beside which checkpoints are kept, where no place is given
    shared_studies.create(bench(), journal, place if given else None)
    dies_at_step(9, journal)
    assert (tmp_path / "shared.artifacts").exists() is not given
    begun: list[int] = []
    made = on_each_step(bench(), begun.append)
    with closing(open_store(journal, "long")) as store:
        other = Shared(made, store, tmp_path, beat=BEAT)
        job = taken(other)
        done = made.run(job)
        assert len(begun) == 30 - 8
        whole = bench().run(replace(job, checkpoint=None))
        assert (done.result.mean, done.per_task) == (whole.result.mean, whole.per_task)
        assert isinstance(job.checkpoint, Artifact)
        assert job.checkpoint.url == (place if given else str(tmp_path / "shared.artifacts"))
        assert content(job.checkpoint)
        assert other.tell(done)
        assert content(job.checkpoint) is None, "it is done"


@pytest.mark.usefixtures("every_step")
def test_a_damaged_checkpoint_is_removed_and_its_trial_begins_anew(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = bench()
    kept = Artifact(place, "long-00000.safetensors")
    kept.write(b"nonsense")
    job = Job(
        0, made.study.space.default("protonet"), 3, made.study.budget, "validation", "search", 10, checkpoint=kept
    )
    assert made.run(job).result.state == "complete"
    [said] = [record.getMessage() for record in caplog.records if record.name == "metaopt.checkpoint"]
    assert said.startswith(f"{kept} cannot be gone on from (")
    assert said.endswith("): its trial begins anew; it is removed")


@pytest.mark.usefixtures("every_step")
def test_a_trial_goes_on_where_nothing_answers_and_says_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
    artifacts._bucket.cache_clear()
    made = bench()
    kept = Artifact(bucket, "long-00000.safetensors")
    job = Job(
        0, made.study.space.default("protonet"), 3, replace(made.study.budget, tasks=4), "validation", "search", 10
    )
    whole, alone = (made.run(replace(job, checkpoint=place)) for place in (kept, None))
    assert (whole.result.state, whole.per_task) == ("complete", alone.per_task)
    said = [record.getMessage() for record in caplog.records if record.name == "metaopt.study.artifacts"]
    assert [line.partition(": ")[0] for line in said] == [
        f"the checkpoint {kept} was not fetched", *[f"the checkpoint {kept} was not kept"] * 2
    ]  # fmt: skip
    artifacts._bucket.cache_clear()


@pytest.mark.parametrize("given", ["gs://laboratory", "s3://", "s3:///", "https://laboratory/x"])
def test_what_is_no_place_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=rf"^--artifacts: {given} is neither a folder nor s3://BUCKET/PREFIX; give"):
        artifacts.checked(given)


def test_a_place_where_nothing_can_be_kept_is_refused(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for given in (str(tmp_path / "file"), str(tmp_path / "no" / "folder"), "s3://another-laboratory/x"):
        with pytest.raises(
            UserError, match=rf"^--artifacts: nothing can be kept in {given} \(.+\); give a folder that"
        ):
            artifacts.checked(given)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_a_place_is_looked_at_once_and_left_empty(place: str) -> None:
    assert artifacts.checked(f"{place}/") == place
    if not place.startswith("s3"):
        assert list(Path(place).iterdir()) == []


def test_a_folder_is_kept_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifacts.checked("here") == str(tmp_path / "here")


def test_without_boto3_s3_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^checkpoints in s3://x need boto3; pip install 'metaopt-fewshot\[s3\]'$"):
        artifacts.checked("s3://x")
    artifacts.require(None)
    artifacts.require("/shared")


def test_create_keeps_the_place_until_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAOPT_STORAGE", str(tmp_path / "shared.log"))
    for given, kept in ((["--artifacts", "here"], "here"), ([], "here"), (["--artifacts", "there"], "there")):
        assert cli.main(["study", "create", "quickstart", *given]) == 0
        with closing(open_store(str(tmp_path / "shared.log"), "quickstart")) as store:
            [study] = store.storage.get_all_studies()
            assert store.storage.get_study_user_attrs(study._study_id)["artifacts"] == str(tmp_path / kept)
    assert cli.main(["study", "create", "quickstart", "--artifacts", "no/where"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("metaopt: --artifacts: nothing can be kept in ")
