"""How often a study's test pool was scored: once is a report, and choosing by a second look is no longer one."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = "tested.jsonl"


def begin(folder: Path) -> None:
    """Begin the record of a run folder where there is none."""
    (folder / FILE).touch()


def note(folder: Path, what: str, *, trial: int, tasks: int) -> None:
    """Append to a run folder's record that a trial's model was scored on so many test tasks, and what these are.

    `folder` may also be the model's own in it. Where there is no record, or it may not be written, that is no error: a
    model may be anywhere.
    """
    run = next(
        (run for run in (folder, folder.parent) if os.access(run / FILE, os.W_OK) and not (run / FILE).is_symlink()),
        None,
    )
    if run is None:
        return
    line = {"what": what, "trial": trial, "tasks": tasks, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    with (run / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return that record, oldest first, without the times.

    The same model on the same tasks again, as after a crash, tells nothing new and stands there once. Lines that a
    crash cut short are left out.
    """
    record: list[dict[str, Any]] = []
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        try:
            entry = {key: json.loads(line)[key] for key in ("what", "trial", "tasks")}
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if entry not in record:
            record.append(entry)
    return record
