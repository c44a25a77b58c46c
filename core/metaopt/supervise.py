"""Keep worker processes running. Torch is not imported here: this is what stays when a worker dies of its memory."""

import ctypes
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

PAUSES = (1.0, 30.0)
"""Seconds before another worker starts: at first, and at most."""
GRACE = 15.0
"""Seconds that a worker has to put its trial back."""
SUPERVISED = "METAOPT_SUPERVISED"
"""The environment variable that tells a worker process the number of the process that watches it."""
FAILURES = 10
"""Times in a row that a worker may die at once, before its place is left empty."""
LIVED = 60.0
"""Seconds after which a worker did not die at once."""


def supervise(arguments: Sequence[str], workers: int, stopped: Callable[[], bool]) -> int:
    """Keep so many workers running, each a process of its own, until the study is done; return an exit code.

    One that dies is started again, after longer and longer pauses where it dies at once. A user's mistake, which the
    first start tells, is not tried again.
    """
    places = [_Place(arguments) for _ in range(workers)]
    try:
        while not stopped():
            waiting = [place for place in places if not place.done()]
            if not waiting:
                return max((place.code or 0) for place in places)
            time.sleep(0.1)
    finally:
        for place in places:
            place.end()
    return 130


def end_with(parent: int) -> None:
    """End this process when its parent does, however that ends, and even while this one is frozen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


class _Place:
    """A worker's place, in which one process follows the other."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.command = [sys.executable, "-m", "metaopt", *arguments]
        self.failures, self.code, self.due = 0, None, 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self._start()

    code: int | None
    """Of its last process, where no other follows."""

    def _start(self) -> None:
        environment = os.environ | {SUPERVISED: str(os.getpid())}
        # In a session of its own it hears Ctrl-C from here alone, and once.
        self.process = subprocess.Popen(self.command, env=environment, start_new_session=True)
        self.began = time.monotonic()

    def done(self) -> bool:
        """Look after the process; return whether the place is done."""
        if self.code is not None:
            return True
        if self.process is None:
            if time.monotonic() >= self.due:
                self._start()
            return False
        code = self.process.poll()
        if code is None:
            return False
        first, self.process = self.failures == 0, None
        self.failures = 1 if time.monotonic() - self.began > LIVED else self.failures + 1
        if code == 0 or (code == 2 and first) or self.failures > FAILURES:
            self.code = code if code >= 0 else 1
            return True
        wait = min(PAUSES[0] * 2 ** (self.failures - 1), PAUSES[1]) * random.uniform(0.5, 1.0)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        log.warning("a worker %s; another starts in %.1f s", how, wait)
        self.due = time.monotonic() + wait
        return False

    def end(self) -> None:
        """Ask the process to put its trial back, and wait for it to do so."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
