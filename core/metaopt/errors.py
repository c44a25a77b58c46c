"""The two ways things go wrong: a user's mistake, and a trial that cannot go on."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake its user can mend. The message says what, where, which values are allowed, and what to do.

    The command line prints it as one sentence and exits with code 2; nothing is half-written.
    """

    def __str__(self) -> str:
        """Return the message in one line, whatever line breaks a name in it brings along."""
        return " ".join(super().__str__().splitlines())


class InputError(UserError, ValueError):
    """The same, of what is given to a model in Python, where scikit-learn's users expect a ValueError."""


class TrialError(Exception):
    """One trial cannot go on (it diverged, say). The trial fails with this reason; the study goes on."""


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def of_disk(error: BaseException) -> bool:
    """Tell whether an error is that a disk is full, cannot be written any more, or fails: no fault of any trial."""
    return isinstance(error, OSError) and error.errno in DISK


def plain(text: str) -> str:
    """Return a text that may come from a stranger's file without what moves a terminal's cursor or recolours it."""
    return "".join(sign if sign in "\n\t\xa0" or sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Say that `name` is not one of the `allowed` names of a `kind`, with the nearest one where one is near."""
    choices = sorted(allowed)
    near = get_close_matches(str(name), choices, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(choices) or '(none)'}"
    return f"no {kind} named {str(name)!r}; {remedy}"
