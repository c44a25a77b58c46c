"""Where the time of a study goes: its CPU time by what is done, from the first import to the leaderboard.

    make bench-share            # of studies/quickstart.yaml; arguments are those of `metaopt study run`

One worker in this process, under whose functions a clock is laid: each second counts for the innermost of them.
"""

import sys
import tempfile
import time

BEGAN = time.process_time()  # before anything large is imported

from collections import Counter  # noqa: E402 - below the clock
from collections.abc import Callable  # noqa: E402 - likewise
from functools import wraps  # noqa: E402 - likewise
from typing import Any  # noqa: E402 - likewise

spent: Counter[str] = Counter()
under = ["start, data and the rest"]
since = BEGAN


def switch(enter: str | None) -> None:
    """Count the time since the last switch for what was under way; enter something else, or leave it."""
    global since  # noqa: PLW0603 - the clock
    now = time.process_time()
    spent[under[-1]] += now - since  # type: ignore[assignment] # seconds
    since = now
    if enter is None:
        under.pop()
    else:
        under.append(enter)


def clocked(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        switch(what)
        try:
            return function(*args, **kwargs)
        finally:
            switch(None)

    return run


def main() -> None:
    switch("imports")
    from metaopt import cli, executor, terminal, train
    from metaopt.study import leaderboard, ledger, model, search, trial
    from metaopt.study.report import figures  # noqa: F401 - what a report needs, too

    switch(None)
    for owner, name, what in (
        (trial, "meta_train", "meta-training"),
        (trial, "meta_test", "evaluation"),
        (train, "draw_batch", "meta-training: drawing tasks"),
        (executor, "record", "recording operators"),
        (ledger.Ledger, "__init__", "search and storage"),
        (ledger.Ledger, "ask", "search and storage"),
        (ledger.Ledger, "tell", "search and storage"),
        (ledger.Ledger, "report", "search and storage"),
        (search, "open_storage", "search and storage"),
        (search, "write_scores", "search and storage"),
        (search, "write_json", "search and storage"),
        (leaderboard, "build", "display and reporting"),
        (model, "save", "display and reporting"),
        *((terminal.Lines, name, "display and reporting") for name in shown(terminal.Lines)),
    ):
        setattr(owner, name, clocked(what, getattr(owner, name)))
    arguments = sys.argv[1:] or ["quickstart"]
    with tempfile.TemporaryDirectory() as scratch:
        code = cli.main(["study", "run", *arguments, "--output", f"{scratch}/run"])
    switch("")
    total = sum(spent.values())
    for what, seconds in spent.most_common():
        print(f"{what:<30} {seconds:>8.2f} s {seconds / total:>7.1%}")
    sys.exit(code)


def shown(cls: type) -> list[str]:
    return [name for name, value in vars(cls).items() if callable(value) and not name.startswith("_")]


if __name__ == "__main__":
    main()
