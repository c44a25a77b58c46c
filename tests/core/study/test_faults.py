"""Studies are killed, frozen, and their disks filled: nothing that was finished is lost or counted twice."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import torture
from metaopt import checkpoint
from metaopt.study import patience
from torture import Moment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are provoked by Linux's own means")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder in memory where there is one: a study writes to its disk some seventy times, and waits."""
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    folder = tmp_path_factory.mktemp("faults")
    if os.access(memory, os.W_OK):
        folder = memory / f"metaopt-faults-{os.getpid()}"
        folder.mkdir()
    before = os.environ.get("METAOPT_DISABLE_PLUGINS")
    os.environ["METAOPT_DISABLE_PLUGINS"] = "tensorboard,mlflow"
    yield folder
    os.environ.pop("METAOPT_DISABLE_PLUGINS")
    if before is not None:
        os.environ["METAOPT_DISABLE_PLUGINS"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(home: Path) -> Any:
    """Return studies that run in one process."""
    (home / "alone").mkdir()
    return torture.Victims(home / "alone")


@pytest.fixture(scope="module")
def long(home: Path) -> Any:
    """Return studies whose trials have steps enough to be killed between them."""
    (home / "long").mkdir()
    return torture.Victims(home / "long", torture.LONG)


@pytest.fixture(scope="module")
def two(home: Path) -> Any:
    """Return studies that have two workers."""
    (home / "two").mkdir()
    return torture.Victims(home / "two", workers=2)


def goes_on(victims: Any, folder: Path) -> None:
    """Go on with a study that was disturbed; it ends as if it had not been."""
    before = victims.records(folder)
    assert torture.end(victims.begin(folder)) == 0, victims.said(folder)
    assert victims.whole(folder) == []
    assert (victims.lost(before, folder), victims.doubled(folder)) == (0, 0)


# Killed


@pytest.mark.parametrize("moment", torture.STUDY_DIES.values(), ids=torture.STUDY_DIES)
def test_a_study_that_is_killed_goes_on_as_if_it_had_not_been(alone: Any, moment: Any) -> None:
    folder = alone.folder()
    assert torture.end(alone.begin(folder, moment)) == -signal.SIGKILL, alone.said(folder)
    goes_on(alone, folder)


@pytest.mark.parametrize("moment", torture.WORKER_DIES.values(), ids=torture.WORKER_DIES)
def test_a_worker_that_is_killed_is_replaced_and_its_trial_is_run_again(two: Any, moment: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, moment)
    assert torture.end(process) == 0, two.said(folder)
    assert two.acted(folder)
    assert torture.gone(process, within=5)
    goes_on(two, folder)


@pytest.mark.parametrize("moment", torture.WORKER_DIES.values(), ids=torture.WORKER_DIES)
def test_a_study_that_is_killed_leaves_no_worker_behind_and_goes_on(two: Any, moment: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, moment, torture.kill_study)
    assert torture.end(process) == -signal.SIGKILL, two.said(folder)
    assert torture.gone(process, within=5)
    goes_on(two, folder)


def test_a_study_that_is_killed_while_a_worker_is_frozen_leaves_nothing_running(two: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, Moment("Learner.outer_step", worker=True), torture.freeze)
    torture.until(lambda: two.acted(folder))
    os.kill(process, signal.SIGKILL)
    assert torture.end(process) == -signal.SIGKILL
    assert torture.gone(process, within=5)
    goes_on(two, folder)


# Killed, and gone on with from a checkpoint


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", -1.0)
    monkeypatch.setattr(checkpoint, "COST", float("inf"))


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("moment", torture.LONG_DIES.values(), ids=torture.LONG_DIES)
def test_a_study_of_long_trials_that_is_killed_goes_on_as_if_it_had_not_been(long: Any, moment: Any) -> None:
    folder = long.folder()
    assert torture.end(long.begin(folder, moment)) == -signal.SIGKILL, long.said(folder)
    kept = sorted(path.name for path in (folder / "checkpoints").glob("*.safetensors"))
    assert len(kept) <= 2, kept
    goes_on(long, folder)
    assert not (folder / "checkpoints").exists()


@pytest.mark.usefixtures("every_step")
def test_a_worker_that_is_killed_in_a_long_trial_is_replaced_and_goes_on_with_it(two: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, Moment("Checkpoint.keep", "return", nth=2, worker=True))
    assert torture.end(process) == 0, two.said(folder)
    assert two.acted(folder)
    assert two.whole(folder) == []
    assert not (folder / "checkpoints").exists()


@pytest.mark.usefixtures("every_step")
def test_a_long_trial_that_is_interrupted_goes_on(long: Any) -> None:
    folder = long.folder()
    act = partial(torture.signalled, signal.SIGINT)
    process = long.begin(folder, Moment("Learner.outer_step", nth=7), act)
    assert torture.end(process) == 130, long.said(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["00001.safetensors"]
    goes_on(long, folder)


@pytest.mark.usefixtures("every_step")
def test_a_disk_that_is_full_at_a_checkpoint_ends_a_study_in_a_sentence_and_it_goes_on(long: Any, disk: Path) -> None:
    folder = disk / "run"
    code = torture.end(long.begin(folder, Moment("Checkpoint.keep", nth=7), partial(torture.fill, disk)))
    [sentence] = long.said(folder).splitlines()
    assert (code, sentence.count("No space left on device")) == (2, 1), sentence
    (disk / "filler").unlink()
    goes_on(long, folder)


# Interrupted


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_study_after_what_is_under_way_and_it_goes_on(
    alone: Any, two: Any, name: str, workers: int
) -> None:
    victims = alone if workers == 1 else two
    folder = victims.folder()
    act = partial(torture.signalled, getattr(signal, name))
    process = victims.begin(folder, Moment("Ledger.tell", nth=2), act)
    assert torture.end(process) == 130, victims.said(folder)
    assert "finishing; once more ends at once" in victims.said(folder)
    assert victims.leaderboard(folder)["status"] == "interrupted"
    assert torture.gone(process, within=5)
    goes_on(victims, folder)


def test_ctrl_c_twice_ends_a_study_at_once_and_it_goes_on(two: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, Moment("Ledger.tell", nth=2), partial(torture.signalled, signal.SIGINT, 2))
    assert torture.end(process) == 130, two.said(folder)
    assert not (folder / "leaderboard.json").exists()
    assert torture.gone(process, within=5)
    goes_on(two, folder)


# Frozen


def test_a_worker_that_is_frozen_and_woken_does_its_trial_once(two: Any) -> None:
    folder = two.folder()
    process = two.begin(folder, Moment("predict", worker=True), torture.freeze)
    torture.until(lambda: two.acted(folder))
    time.sleep(0.3)
    torture.wake(process)
    assert torture.end(process) == 0, two.said(folder)
    assert two.whole(folder) == []
    assert two.doubled(folder) == 0


def test_ctrl_c_ends_a_study_whose_worker_is_frozen(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt.study import crew

    monkeypatch.setattr(crew, "GRACE", 0.3)
    folder = two.folder()
    process = two.begin(folder, Moment("Learner.outer_step", worker=True), torture.freeze)
    torture.until(lambda: two.acted(folder))
    os.kill(process, signal.SIGINT)
    assert torture.end(process) == 130, two.said(folder)
    assert torture.gone(process, within=5)
    goes_on(two, folder)


# A full disk


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    try:
        with torture.small_disk(home / "disk") as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("moment", torture.FULL.values(), ids=torture.FULL)
def test_a_disk_that_is_full_ends_a_study_in_a_sentence_and_it_goes_on_where_there_is_room(
    alone: Any, disk: Path, moment: Any
) -> None:
    folder = disk / "run"
    code = torture.end(alone.begin(folder, moment, partial(torture.fill, disk)))
    [sentence] = alone.said(folder).splitlines()
    assert (code, sentence.count("No space left on device")) == (2, 1), sentence
    assert sentence.startswith("metaopt: ")
    assert sentence.endswith("what was finished is kept, so mend the disk and give the same command again")
    (disk / "filler").unlink()
    goes_on(alone, folder)


def test_a_worker_whose_disk_is_full_ends_the_study_in_a_sentence_too(two: Any, disk: Path) -> None:
    folder = disk / "run"
    process = two.begin(folder, Moment("whole", worker=True), partial(torture.fill, disk))
    assert torture.end(process) == 2, two.said(folder)
    assert "No space left on device" in two.said(folder)
    assert len(two.said(folder).splitlines()) == 1
    assert torture.gone(process, within=5)
    (disk / "filler").unlink()
    goes_on(two, folder)


@pytest.mark.parametrize("room", [0, 1, 100, 5000])
def test_a_report_is_written_whole_or_not_at_all(alone: Any, disk: Path, room: int) -> None:
    folder = shutil.copytree(alone.root / "whole", disk / "run")
    (folder / "report.html").write_text("the old one")
    torture.fill(disk, but=room)
    process = torture.begin(["study", "report", folder], alone.root / "report.out")
    assert torture.end(process) == 2
    assert "No space left on device" in (alone.root / "report.out").read_text()
    assert (folder / "report.html").read_text() == "the old one"
    assert not list(folder.glob(".*.tmp"))


# A database that goes away


@pytest.fixture(scope="module")
def stored(home: Path, postgres: Any) -> Any:
    """Return studies whose trials are in PostgreSQL."""
    (home / "stored").mkdir()
    return torture.Stored(home / "stored", postgres)


@pytest.fixture(scope="module")
def stored_two(home: Path, postgres: Any) -> Any:
    (home / "two_stored").mkdir()
    return torture.Stored(home / "two_stored", postgres, workers=2)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.2, 0.2))
    monkeypatch.setattr(patience, "PATIENCE", 20.0)


AWAY = {
    "while the study is made": (Moment("used"), "fast"),
    "after the study is made": (Moment("Ledger.seconds"), "fast"),
    "between a trial's beginning and its choice": (Moment("Ledger._begin", "return", nth=3), "immediate"),
    "in meta-training": (Moment("Learner.outer_step", nth=3), "fast"),
    "before a trial is stored": (Moment("Ledger.tell", nth=2), "immediate"),
    "between result and state": (Moment("Ledger._close", nth=3), "fast"),
}


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(("moment", "how"), AWAY.values(), ids=AWAY)
def test_a_study_waits_for_a_database_that_is_stopped_and_ends_as_if_it_had_not_been(
    stored: Any, moment: Any, how: str
) -> None:
    folder = stored.folder()
    process = stored.begin(folder, moment, partial(stored.server.stop, how))
    try:
        torture.until(lambda: stored.acted(folder) and "the storage does not answer (" in stored.said(folder))
    finally:
        stored.server.start()
    assert torture.end(process) == 0, stored.said(folder)
    *waits, last = [line for line in stored.said(folder).splitlines() if "storage" in line]
    assert all(re.search(r"the storage does not answer \(.*\); again in 0\.\d s$", line) for line in waits), waits
    assert last.endswith("the storage answers again")
    assert stored.whole(folder) == []
    goes_on(stored, folder)


@pytest.mark.usefixtures("short_pauses")
def test_two_workers_lose_nothing_when_their_studys_database_is_stopped(stored_two: Any) -> None:
    folder = stored_two.folder()
    process = stored_two.begin(folder, Moment("Ledger.tell", nth=2), partial(stored_two.server.stop, "immediate"))
    try:
        torture.until(lambda: stored_two.acted(folder) and "the storage does not answer" in stored_two.said(folder))
        time.sleep(0.5)  # whatever the workers do meanwhile
    finally:
        stored_two.server.start()
    assert torture.end(process) == 0, stored_two.said(folder)
    goes_on(stored_two, folder)


def test_a_study_whose_database_stays_away_stops_in_a_sentence_and_goes_on_when_it_is_back(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    folder = stored.folder()
    process = stored.begin(folder, Moment("Ledger.tell", nth=3), partial(stored.server.stop, "immediate"))
    try:
        assert torture.end(process) == 2
        [sentence] = stored.said(folder).splitlines()
        again = torture.end(stored.begin(folder)), stored.said(folder)
    finally:
        stored.server.start()
    assert sentence.startswith("metaopt: the storage does not answer (")
    assert sentence.endswith("what was finished is kept, so give the same command again when it does")
    assert again[0] == 2
    assert again[1].startswith("metaopt: --storage: cannot open that storage (")
    assert len(again[1].splitlines()) == 1
    assert len([result for result in stored.records(folder).values() if result]) == 2
    goes_on(stored, folder)


# A disk that cannot be written


def test_a_run_folder_on_a_read_only_disk_is_refused_and_can_be_read(alone: Any, disk: Path) -> None:
    folder = shutil.copytree(alone.root / "whole", disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    out = alone.root / "read-only.out"

    def run(*arguments: Any) -> tuple[int, str]:
        return torture.end(torture.begin(list(arguments), out)), out.read_text()

    code, said = run("study", "run", alone.file, "--output", folder, "--set=trials=9")
    assert (code, said) == (
        2,
        f"metaopt: cannot write to the run folder {folder} (Read-only file system); give another with --output\n",
    )
    code, said = run("study", "report", folder)
    assert (code, "Read-only file system" in said, len(said.splitlines())) == (2, True, 1)
    for command in (["study", "show"], ["study", "audit"], ["evaluate", "--tasks=20"]):
        code, said = run(*command, folder)
        assert code == 0, said
    code, said = run("study", "report", folder, "--output", alone.root / "report.html")
    assert code == 0, said


# A damaged journal


def test_whatever_bit_of_a_journal_is_flipped_the_study_ends_as_it_would_have_or_is_refused(alone: Any) -> None:
    draw = random.Random(0)
    journal = (alone.root / "whole" / "journal.log").read_bytes()
    outcomes = set()
    for _ in range(12):
        folder = shutil.copytree(alone.root / "whole", alone.folder())
        (folder / "leaderboard.json").unlink()  # otherwise it is over
        place, bit = draw.randrange(len(journal)), draw.randrange(8)
        spoilt = bytearray(journal)
        spoilt[place] ^= 1 << bit
        (folder / "journal.log").write_bytes(spoilt)
        code = torture.end(alone.begin(folder))
        said = alone.said(folder)
        if code == 0:
            assert alone.whole(folder) == []
        else:
            assert code == 2, said
            assert said.startswith(f"metaopt: {folder / 'journal.log'}: cannot be read as a journal (")
            assert len(said.splitlines()) == 1
            assert (folder / "journal.log").read_bytes() == spoilt, "it is left to be restored"
        outcomes.add(code)
    assert 2 in outcomes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_journal_that_was_cut_short_goes_on_from_there_to_the_same_end(alone: Any, share: float) -> None:
    folder = shutil.copytree(alone.root / "whole", alone.folder())
    (folder / "leaderboard.json").unlink()
    journal = (folder / "journal.log").read_bytes()
    (folder / "journal.log").write_bytes(journal[: int(share * len(journal))])
    goes_on(alone, folder)


# Two at once, and a clock that jumps


def test_of_two_who_start_a_study_at_once_one_is_refused(alone: Any) -> None:
    folder = alone.folder()
    meet = torture.rendezvous(2)
    processes = [
        torture.begin(alone.arguments(folder), alone.root / f"user{number}.out", Moment("owned"), meet)
        for number in range(2)
    ]
    codes = [torture.end(process) for process in processes]
    assert sorted(codes) == [0, 2]
    said = (alone.root / f"user{codes.index(2)}.out").read_text()
    assert said.startswith(f"metaopt: another process is running the study in {folder}; wait for it, or give another")
    assert alone.whole(folder) == []
    assert alone.doubled(folder) == 0


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_wall_clock_that_jumps_by_a_day_changes_nothing(alone: Any, tmp_path: Path) -> None:
    env = os.environ | {"LD_PRELOAD": str(torture.jumping_clock(tmp_path))}
    days = subprocess.run(
        [sys.executable, "-c", "import time; t = [time.time() for _ in range(9)]; print(max(t) - min(t))"],
        env=env, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert float(days.stdout) > 86400, "the clock does jump"
    folder = alone.folder()
    command = [sys.executable, "-m", "metaopt", *map(str, alone.arguments(folder)), "--timeout=60s"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    board = json.loads(ran.stdout)
    assert 0 < board["seconds"] < 60
    assert torture.timeless(board)["finalists"] == alone.board["finalists"]
