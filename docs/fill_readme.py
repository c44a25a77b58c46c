"""Fill the README's marked blocks with what the commands print: `make readme`.

A block stands behind a comment that names its source: a leaderboard kept in docs/results/, a command, or a source file.
tests/test_readme.py fails where a block is not what its source gives.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from metaopt import cli, terminal

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (leaderboard|command|source) (\S.*?) -->\n```\w*\n)(.*?)(```\n)", re.DOTALL)


def leaderboard(name: str) -> str:
    """Return what `metaopt study run` prints at the end, for a leaderboard kept in docs/results."""
    board = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return _printed(lambda: terminal.show_board(board, Path("runs") / board["study"])).strip() + "\n"


def command(line: str) -> str:
    """Return a command and what it prints."""
    return f"$ {line}\n" + _printed(lambda: cli.main(line.split()[1:]))


def source(path: str) -> str:
    """Return a source file."""
    return (ROOT / path).read_text(encoding="utf-8")


SOURCES: dict[str, Callable[[str], str]] = {"leaderboard": leaderboard, "command": command, "source": source}


def filled(text: str) -> str:
    """Return the README's text with each marked block made anew."""
    return BLOCK.sub(lambda found: found[1] + SOURCES[found[2]](found[3]) + found[5], text)


def _printed(call: Callable[[], object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        call()
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
