"""What scripts that run whole studies share: a study run as its user would run it, and said what came of it."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen, check_output
from typing import Any

METAOPT = [sys.executable, "-m", "metaopt"]


def study(file: str | Path, run: Path, settings: Sequence[str], *options: str) -> tuple[dict[str, Any], float]:
    """Run a study with these settings, "key=value" each; return its leaderboard and the CPU seconds of all of it."""
    given = [part for setting in settings for part in ("--set", setting)]
    command = [*METAOPT, "study", "run", str(file), *given, *options, "--output", str(run), "--quiet"]
    process = Popen(command, stdout=DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the study in {run} did not come to its end")
    return json.loads((run / "leaderboard.json").read_text(encoding="utf-8")), used.ru_utime + used.ru_stime


def evaluated(run: Path, *options: str) -> dict[str, Any]:
    """Return what `metaopt evaluate` says of a run's winner."""
    return dict(json.loads(check_output([*METAOPT, "evaluate", str(run / "best"), *options, "--json"])))


def say(text: str) -> None:
    """Print a line at once, as the next may be a quarter of an hour away."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
