"""A storage that does not answer is waited for, with longer and longer pauses: a database is started anew at times."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from metaopt.errors import UserError
from metaopt.study.storage import first_line

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

PAUSES = (1.0, 30.0)
"""Seconds to wait for a storage that is away: at first, and at most."""
PATIENCE = 1800.0
"""Seconds after which a storage that is away is given up."""


class LockLostError(Exception):
    """The connection that held the storage's lock ended while it was needed."""


class UnansweredError(UserError):
    """A storage that does not answer when it is opened, which may be a user's mistake."""


AWAY = (StorageInternalError, SQLAlchemyError, LockLostError, UnansweredError)
"""What a storage raises that does not answer: it may be back in a moment."""


@dataclass
class Patient:
    """Does what needs the storage, again after longer and longer pauses where that does not answer."""

    url: str
    stopped: Callable[[], bool]

    def __call__(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `act` does with these arguments, which may be called again after it was broken off anywhere.

        Raises UserError where the storage stays away, or is there and cannot be read.
        """
        pause, until, away = PAUSES[0], time.monotonic() + PATIENCE, False
        while True:
            try:
                done = act(*args, **kwargs)
                if away:
                    log.warning("the storage answers again")
                return done
            except AWAY as error:
                cause = error.__cause__ or error
                reason = first_line(cause, self.url)
                if type(cause).__name__ == "DatabaseError":  # and none of its kinds: SQLite's file is damaged
                    raise UserError(f"the storage cannot be read ({reason}); restore it, or give another") from None
                if self.stopped() or time.monotonic() > until:
                    if isinstance(error, UserError):  # which says all
                        raise
                    raise UserError(
                        f"the storage does not answer ({reason}); what was finished is kept, so give the same command "
                        "again when it does"
                    ) from None
                wait = pause * random.uniform(0.5, 1.0)
                log.warning("the storage does not answer (%s); again in %.1f s", reason, wait)
                away = True
            end = time.monotonic() + wait
            while time.monotonic() < end and not self.stopped():
                time.sleep(0.1)
            pause = min(2 * pause, PAUSES[1])
