"""Checkpoints of a shared study's trials where every machine finds them: in a folder that all see, or in S3.

They go through Optuna's artifact stores. What cannot be kept or fetched costs the trial the time that it would have
saved, and nothing else: a warning says so.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from metaopt.errors import UserError
from metaopt.files import whole

log = logging.getLogger(__name__)

S3 = "s3://"
PATIENCE = 10
"""Seconds to wait for S3's next sign, once more where there is none: meta-training stands still meanwhile."""


@dataclass(frozen=True)
class Artifact:
    """A checkpoint in the artifact store at `url`."""

    url: str
    name: str

    def __str__(self) -> str:
        return f"{self.url}/{self.name}"

    def write(self, content: bytes) -> None:
        with self._warning("kept"):
            store, key = self._found()
            store.write(key, io.BytesIO(content))

    @contextmanager
    def opened(self) -> Iterator[Path | None]:
        content = None
        with self._warning("fetched"), suppress(ArtifactNotFound):
            store, key = self._found()
            with store.open_reader(key) as kept:
                content = kept.read()
        if content is None:
            yield None
            return
        with TemporaryDirectory(prefix="metaopt-") as folder:
            path = Path(folder) / self.name
            path.write_bytes(content)
            yield path

    def put_aside(self) -> str:
        self.remove()
        return "it is removed"

    def remove(self) -> None:
        with self._warning("removed"), suppress(ArtifactNotFound):
            store, key = self._found()
            store.remove(key)

    def _found(self) -> tuple[FileSystemArtifactStore | Boto3ArtifactStore, str]:
        if not self.url.startswith(S3):
            return _Folder(self.url), self.name
        bucket, _, prefix = self.url.removeprefix(S3).partition("/")
        return _bucket(bucket, os.getpid()), f"{prefix}/{self.name}".lstrip("/")

    @contextmanager
    def _warning(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # those of boto3 and of a disk have no common kind
            log.warning("the checkpoint %s was not %s: %s", self, what, error)


def checked(given: str) -> str:
    """Return what `--artifacts` was given as every machine may read it. Raises UserError where nothing can be kept."""
    in_s3 = given.startswith(S3) and given.removeprefix(S3).strip("/")
    if "://" in given and not in_s3:
        raise UserError(f"--artifacts: {given} is neither a folder nor s3://BUCKET/PREFIX; give one of these")
    url = given.rstrip("/") if in_s3 else str(Path(given).resolve())
    require(url)
    probe = Artifact(url, f"metaopt-{os.getpid()}")
    try:
        store, key = probe._found()
        store.write(key, io.BytesIO(b"Can anything be kept here?"))
        store.remove(key)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"--artifacts: nothing can be kept in {url} ({reason}); give a folder that all machines see, or "
            "s3://BUCKET/PREFIX, which boto3's own settings let you write to"
        ) from None
    return url


def require(url: str | None) -> None:
    """Raise UserError where what is needed for checkpoints at `url` is not installed here."""
    if url and url.startswith(S3) and find_spec("boto3") is None:
        raise UserError(f"checkpoints in {url} need boto3; pip install 'metaopt-fewshot[s3]'")


class _Folder(FileSystemArtifactStore):
    """Optuna's, but what is written is there whole or not at all."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        path = self._get_filepath(artifact_id)
        path.parent.mkdir(exist_ok=True)
        with whole(path) as temporary:
            super().write(temporary.name, content_body)


@cache
def _bucket(name: str, process: int) -> Boto3ArtifactStore:
    """Return a bucket, each process with connections of its own."""
    import boto3
    from botocore.config import Config

    settings = Config(connect_timeout=PATIENCE, read_timeout=PATIENCE, retries={"total_max_attempts": 2})
    return Boto3ArtifactStore(name, boto3.client("s3", config=settings))
