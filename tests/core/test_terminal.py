"""What people see is what was found: names as they are, plain where it is no terminal, one line a trial."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt import plugins, terminal
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, Job, TrialResult
from metaopt.terminal import Lines, Quiet, watcher
from metaopt.train import Budget

MARKUP = "[red]no[/red] [/such] luck :smile: [link=x]"
SCORE = {"pool": "validation", "mean": 0.61234, "ci95": 0.01, "tasks": 20, "median": 0.6, "not_finite": 0}
ENTRY = {
    "rank": 1, "trial": 7, "learner": "maml", "transductive": False, "trained_tasks": 4000,
    "cpu_seconds": 61.4, "parameters": 112_005,
    "params": {"learner": "maml", "maml.inner_lr": 0.000316228, "maml.first_order": True, "outer.lr": 3.2e-5},
    "search": SCORE, "fresh": SCORE, "report": SCORE | {"pool": "test", "mean": 0.59},
    "behind": None,
}  # fmt: skip
BEHIND = {"mean": 0.0123, "ci95": 0.004, "p": 0.001, "told_apart": True}
BOARD: dict[str, Any] = {
    "study": "s", "status": "finished", "seed": 0, "objective": "accuracy", "direction": "maximize",
    "search_on": "validation", "transductive": False, "trials": {"complete": 3, "pruned": 2, "failed": 1},
    "finalists": [ENTRY, ENTRY | {"rank": 2, "trial": 4, "report": SCORE, "behind": BEHIND}],
    "learners": {"maml": ENTRY},
    "failures": [], "tested": [{"what": "report", "trial": 7, "tasks": 20}], "versions": {}, "seconds": 61.7,
}  # fmt: skip


@pytest.fixture
def bench() -> Bench:
    registry = plugins.load()
    raw = {"name": "s", "tasks": {"sampler": "glyphs", "n_way": 5, "n_shot": 1}, "learners": ["maml"], "trials": 4}
    return Bench(resolve(raw | {"timeout": "2m"}, "s.yaml", registry), registry, torch.device("cpu"))


def result(number: int, state: Any = "complete", reason: str | None = None) -> TrialResult:
    mean = 0.5 + number / 10 if state == "complete" else None
    return TrialResult(number, state, "maml", {}, 0, reason, mean=mean, ci95=0.01, seconds=1.25)


def job(number: int) -> Job:
    return Job(number, {"learner": "maml"}, 0, Budget(tasks=1), "validation", "search", 1)


def shown(capsys: pytest.CaptureFixture[str], board: dict[str, Any], folder: Path = Path("runs/s")) -> str:
    terminal.show_board(board, folder)
    return capsys.readouterr().out


def test_the_leaderboard_shows_trials_finalists_winner_and_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, BOARD)
    assert "s: 3 trials complete, 2 pruned, 1 failed, in 62 s; accuracy, maximized\n" in out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "ahead of trial 4 by 0.0123 ± 0.0040 on the same fresh tasks: told apart (p = 0.001)" in rows
    assert "1 maml 7 0.6123 ± 0.0100 0.6123 ± 0.0100 0.5900 ± 0.0100 – 61 112,005" in rows
    assert "2 maml 4 0.6123 ± 0.0100 0.6123 ± 0.0100 – yes 61 112,005" in rows, "only the winner has a test score"
    assert (
        "winner: maml (trial 7), accuracy 0.5900 ± 0.0100 on 20 test tasks that no trial has touched, inductive\n"
        in out
    )
    assert "written to runs/s; score the winner again: metaopt evaluate runs/s/best --tasks 1000\n" in out


def test_hyperparameters_are_shown_to_four_digits_however_small(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, BOARD)
    for line in ("maml.inner_lr: 0.0003162", "outer.lr: 3.2e-05", "maml.first_order: True"):
        assert f"  {line}\n" in out


def test_a_transductive_winner_and_a_search_on_the_test_pool_are_said_to_be_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "transductive\n" not in (plain := shown(capsys, BOARD))
    assert "too good" not in plain
    out = shown(capsys, BOARD | {"search_on": "test", "finalists": [ENTRY | {"transductive": True}]})
    assert "maml (transductive)" in out
    assert "tasks that no trial has touched, transductive\n" in out
    assert "This study searched on the test pool itself, so its scores are too good for new classes.\n" in out
    assert "search and fresh: test tasks" in out


@pytest.mark.parametrize(
    ("status", "last"),
    [
        ("interrupted", "interrupted; what is done is in runs/s; the same command goes on from here\n"),
        ("failed", "nothing came to a final score; mend the failures above, or give more time\n"),
    ],
)
@pytest.mark.parametrize("finalists", [[], [ENTRY | {"fresh": None, "report": None}]])
def test_a_study_without_a_winner_names_none(
    capsys: pytest.CaptureFixture[str], status: str, last: str, finalists: list[Any]
) -> None:
    out = shown(capsys, BOARD | {"status": status, "finalists": finalists})
    assert out.endswith(last)
    assert "winner" not in out


def test_markup_in_names_reasons_and_paths_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [{"learner": "maml", "reason": MARKUP, "trials": 2}]
    out = shown(capsys, BOARD | {"failures": failures}, Path("runs") / "[bold]a[/bold]")
    assert f"2 failed: maml: {MARKUP}\n" in out
    assert "written to runs/[bold]a[/bold]; " in out
    thing = {"name": MARKUP, "kind": "learner", "plugin": MARKUP, "distribution": MARKUP, "version": "1"}
    text = {"range": MARKUP, "default": MARKUP}
    terminal.show_description(thing | {"about": MARKUP, "paper": MARKUP, "parameters": {"x": text}})
    kinds = {"task_samplers": [], "encoders": [], "learners": [], "meta_objectives": [MARKUP]}
    notes = {"observes": [], "note": MARKUP}
    terminal.show_plugins([thing | kinds | notes | {"status": "broken", "error": MARKUP}])
    terminal.show_studies([{"name": "s", "about": MARKUP}])
    out = capsys.readouterr().out
    assert out.count(MARKUP) == 7 + 6 + 1


def test_progress_shows_reasons_as_they_are(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(None)
    lines.began(bench, [])
    lines.started(job(0))
    lines.finished(result(0, "failed", MARKUP), None)
    lines.phase(f"finalist of trial 3 fell out: {MARKUP}")
    err = capsys.readouterr().err
    assert f"({MARKUP})\n" in err
    assert f"fell out: {MARKUP}\n" in err


def test_a_line_is_never_broken_where_it_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/".join(["a_rather_long_folder_name"] * 20))
    failures = [{"learner": "maml", "reason": "word " * 100 + "end", "trials": 1}]
    out = shown(capsys, BOARD | {"failures": failures}, folder)
    assert f"metaopt evaluate {folder / 'best'} --tasks 1000\n" in out
    assert "word " * 100 + "end\n" in out


def test_output_is_plain_where_it_is_no_terminal(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with watcher(quiet=False) as lines:
        lines.began(bench, [])
        for number in range(2):
            lines.started(job(number))
            lines.finished(result(number), result(1))
        lines.phase("meta-training 2 finalists anew")
    terminal.show_board(BOARD | {"failures": [{"learner": "maml", "reason": "why", "trials": 2}]}, Path("runs/s"))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert err.splitlines() == [
        "study s: 1 learners, 4 trials or 120 s; accuracy on the validation pool",
        "trial   0  maml       0.5000 ± 0.0100      1.2 s   best 0.6000 ± 0.0100 maml",
        "trial   1  maml       0.6000 ± 0.0100      1.2 s   best 0.6000 ± 0.0100 maml",
        "meta-training 2 finalists anew",
    ]


def test_a_study_that_goes_on_says_how_much_was_done(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    Lines(None).began(bench, [result(0), result(1)])
    assert "4 trials or 120 s, 2 of them done before; " in capsys.readouterr().err


def test_quiet_says_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with watcher(quiet=True) as silent:
        assert type(silent) is Quiet
        silent.began(bench, [])
        silent.started(job(0))
        silent.finished(result(0), None)
        silent.phase("x")
    assert capsys.readouterr() == ("", "")


def on_a_terminal(show: Callable[[], None]) -> str:
    """Return what is seen where stderr is a terminal of 100 columns."""
    look, write = pty.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    seen = bytearray()

    def watch() -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(look, 4096):
                seen.extend(data)

    watching = threading.Thread(target=watch)
    watching.start()
    with os.fdopen(write, "w") as stream, redirect_stderr(stream):
        show()
    watching.join()
    os.close(look)
    return seen.decode()


def test_a_terminal_shows_trial_learner_best_so_far_and_time_left_live(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def show() -> None:
        with watcher(quiet=False) as lines:
            lines.began(bench, [])
            lines.started(job(0))
            lines.finished(result(0), result(0))
            lines.started(job(1))
            lines.phase("scoring [/the] winner")
            lines.finished(result(1, "failed", "[red]no[/such] luck"), result(0))
            lines.started(job(2))

    seen = on_a_terminal(show)
    assert "\x1b[" in seen, "it is drawn"
    assert "trial   0  maml       0.5000 ± 0.0100" in seen
    assert "[red]no[/such] luck" in seen
    assert "scoring [/the] winner" in seen
    assert "trial 2 maml" in seen
    assert "2/4  best 0.5000 ± 0.0100 maml" in seen
    assert re.search(r"[012]:\d\d left", seen)


def test_a_test_pool_that_was_scored_more_than_once_is_said_to_be_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "The test pool was scored" not in shown(capsys, BOARD)
    again = [*BOARD["tested"], {"what": "report", "trial": 4, "tasks": 20}]
    out = shown(capsys, BOARD | {"tested": again})
    assert "The test pool was scored 2 times (report of trial 7, report of trial 4)" in out
