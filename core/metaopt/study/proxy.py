"""A proxy before a database, for workers that cannot reach it: Optuna's storage over gRPC, and the lock of a study.

Optuna's service has no lock, so a call is added to it that lasts as long as its caller holds one. What the caller
writes meanwhile names that call, and is refused where it has ended: a worker that was frozen or cut off from the
network cannot write as if it still held the lock. The proxy holds it in the database, where workers that need no proxy
take it too.
"""

import json
import logging
import os
import threading
import uuid
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import GrpcStorageProxy

from metaopt.errors import UserError
from metaopt.study.patience import AWAY, LockLostError, UnansweredError
from metaopt.study.storage import is_journal, is_proxy
from metaopt.study.stores import LOCK_SECONDS, open_database

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said by what raises it
try:
    import grpc
    from optuna.storages._grpc import servicer
    from optuna.storages._grpc.auto_generated import api_pb2_grpc
except ImportError:  # an extra
    raise UserError("--storage: a proxy needs gRPC; pip install 'metaopt-fewshot[grpc]'") from None

PORT = 13000
SERVICE, HOLD = "metaopt.Lock", "Hold"
HELD = "metaopt-hold"
"""The metadata of a call by which a holder of the lock names that."""
LEASE = LOCK_SECONDS
"""For which one caller holds a lock at most: one that is cut off from the network does not give it back."""
WAITS, ANSWERS = 3 * LOCK_SECONDS, 2 * LOCK_SECONDS
"""Seconds for which a caller waits for a lock, its lease included, and for any other answer, which may wait for one."""
THREADS = 1000
"""Calls at the same time, at most: a worker that waits for the lock is one."""
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
"""What a call ends with where proxy or database do not answer; UNKNOWN is what the storage raised there."""


def serve(url: str, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Answer for the database at `url`; return the port and what ends it. Port 0 takes any free one.

    Raises UserError where the database cannot be opened, or the port is not free.
    """
    if is_proxy(url) or is_journal(url):
        raise UserError(f"--storage: a proxy answers for a PostgreSQL database, and {url} is none; give its URL")
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # a database that is away is told to who asked
    storage, lock, close = open_database(url)
    locks = _Locks(lock)
    # Where two processes share a port, each would answer for a part of the calls.
    server = grpc.server(ThreadPoolExecutor(THREADS), interceptors=[locks], options=[("grpc.so_reuseport", 0)])
    service: Any = api_pb2_grpc  # generated, without types
    service.add_StorageServiceServicer_to_server(servicer.OptunaStorageProxyService(storage), server)
    hold = grpc.unary_stream_rpc_method_handler(locks.hold)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {HOLD: hold})])
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        close()
        raise UserError(
            f"cannot listen at {host}, port {port}; give another with --port, or 0 for any free one, or another --host"
        ) from None
    server.start()

    def stop() -> None:
        server.stop(1).wait()
        locks.wait()
        close()

    return port, stop


class _Locks(grpc.ServerInterceptor):  # type: ignore[misc] # without types
    """The locks that are held through a proxy, by the calls that hold them."""

    def __init__(self, lock: Callable[[str], AbstractContextManager[None]]) -> None:
        self.lock = lock
        self.writing: dict[str, threading.Lock] = {}
        """By call; held while something is written under it."""
        self.keepers: set[threading.Thread] = set()

    def hold(self, request: bytes, context: Any) -> Iterator[bytes]:
        """Take a study's lock and say so; give it back when the caller ends the call or dies, or after LEASE."""
        study, name = json.loads(request)
        over, tried = threading.Event(), threading.Event()
        if not context.add_callback(over.set):
            return  # it has ended already
        keeper = threading.Thread(target=self._keep, args=(study, name, tried, over), daemon=True)
        self.keepers.add(keeper)
        keeper.start()
        tried.wait()
        if name not in self.writing:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the database gave no lock")
        yield b""
        over.wait(LEASE)

    def _keep(self, study: str, name: str, tried: threading.Event, over: threading.Event) -> None:
        try:
            with self.lock(study):
                if over.is_set():
                    return
                self.writing[name] = threading.Lock()
                tried.set()
                over.wait(LEASE)
                with self.writing[name]:
                    del self.writing[name]
        except AWAY:
            pass  # which `hold` tells
        finally:
            tried.set()
            self.keepers.discard(threading.current_thread())

    def wait(self) -> None:
        """Wait until all locks are given back, whose calls have ended."""
        for keeper in list(self.keepers):
            keeper.join(LEASE)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Let a call that names a lock through while that is held."""
        handler, name = continuation(details), dict(details.invocation_metadata).get(HELD)
        if handler is None or name is None:
            return handler

        def answer(request: Any, context: Any) -> Any:
            writing = self.writing.get(name, threading.Lock())
            with writing:
                if self.writing.get(name) is not writing:
                    context.abort(grpc.StatusCode.ABORTED, "the lock was lost while a trial was taken or closed")
                return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,  # type: ignore[misc] # without types
):
    """What a call is made with; gRPC has no class of its own that can be made."""


class Client(GrpcStorageProxy, grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc] # without types
    """A storage behind a proxy, and its locks."""

    def __init__(self, host: str, port: int) -> None:
        self.threads, self.held = threading.RLock(), threading.local()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(host=host, port=port)

    @classmethod
    def at(cls, url: str, seconds: float = 10.0) -> "Client":
        """Return the storage behind the proxy at grpc://HOST:PORT. UserError where it does not answer in that time."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or PORT
        except ValueError:
            host = port = None
        if not host or not port:
            raise UserError(f"--storage: {url} is no address of a proxy; give one as grpc://HOST:{PORT}")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        client = cls(host, port)
        try:
            client.wait_server_ready(timeout=seconds)
        except ConnectionError:
            client.close()
            raise UnansweredError(
                f"--storage: no proxy answers at {host}:{port}; start one where the database is reached, by "
                f"`metaopt proxy --host HOST --port {port}`"
            ) from None
        return client

    def _setup(self) -> None:
        super()._setup()
        service: Any = api_pb2_grpc  # generated, without types
        self._stub = service.StorageServiceStub(grpc.intercept_channel(self._channel, self))
        self._cache.grpc_client = self._stub
        self._hold = self._channel.unary_stream(f"/{SERVICE}/{HOLD}")

    @contextmanager
    def alone(self, study: str) -> Iterator[None]:
        """Hold the lock of the study of that name."""
        with self.threads:
            name = uuid.uuid4().hex
            call = self._hold(json.dumps([study, name]).encode(), timeout=WAITS)
            try:
                next(call)
            except grpc.RpcError as error:
                raise LockLostError(cast(Any, error).details()) from None
            self.held.by = name
            try:
                yield
            finally:
                self.held.by = None
                call.cancel()

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Name the lock that this thread holds, and raise StorageInternalError where nobody answers."""
        metadata = list(details.metadata or ())
        if by := getattr(self.held, "by", None):
            metadata.append((HELD, by))
        call = continuation(
            _Details(details.method, ANSWERS, metadata, details.credentials, details.wait_for_ready,
                     details.compression), request,
        )  # fmt: skip
        if call.code() in TRANSIENT:
            raise StorageInternalError(call.details())
        return call
