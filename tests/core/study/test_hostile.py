"""Run folders, models and study files of strangers: nothing in them is run, and nothing outside them is touched."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metaopt import plugins
from metaopt.cli import main
from metaopt.errors import UserError
from metaopt.study.file import MAX_BYTES, read
from metaopt.study.ledger import read_scores
from metaopt.study.model import ARRAYS, CONFIG, load

STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": ["protonet"],
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "trials": 1,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 20},
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "s.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["study", "run", str(folder / "s.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def theirs(finished: Path, tmp_path: Path) -> Path:
    """Return a run folder that somebody sent, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


READERS = [["study", "show"], ["study", "report"], ["study", "audit"], ["evaluate", "--tasks", "20"]]
FILES = [
    "leaderboard.json", "study.yaml", "journal.log", "versions.json", "tested.jsonl", "report.npy",
    "scores/00000.npy", "finalists/00000-0.npy", "finalists/00000-0.safetensors", "best/config.json",
    "best/weights.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_in_the_place_of_any_file_is_never_run(run: Run, theirs: Path, tmp_path: Path, file: str) -> None:
    assert (theirs / file).is_file()
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    if file.endswith(".npy"):
        array = np.empty(1, object)
        array[0] = Trap(tmp_path / "sprung")
        np.save(theirs / file, array, allow_pickle=True)
    else:
        (theirs / file).write_bytes(content)
    pickle.loads(pickle.dumps(Trap(tmp_path / "control")))
    assert (tmp_path / "control").exists(), "the trap works"
    for command in [*READERS, ["export"]]:
        target = [tmp_path / "kept"] if command == ["export"] else []
        code, _, err = run(*command, theirs, *target)
        assert code in {0, 1, 2}
        assert len(err.splitlines()) <= 1
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("file", [*FILES, "report.html", ".lock", "scores", "best", "finalists"])
def test_a_link_in_a_run_folder_is_refused_and_what_it_leads_to_is_left_alone(
    run: Run, theirs: Path, tmp_path: Path, file: str
) -> None:
    mine = tmp_path / "mine"
    if (theirs / file).exists():
        shutil.move(theirs / file, mine)
    else:
        mine.write_text("mine")
    (theirs / file).symlink_to(mine)
    before = contents(mine)
    study = theirs.parent / "s.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    for command in ([*READERS[0], theirs], [*READERS[1], theirs], [*READERS[2], theirs],
                    ["study", "run", study, "--output", theirs, "--trials", "2", "--quiet"]):  # fmt: skip
        code, _, err = run(*command)
        assert code == 2
        assert err.startswith(f"metaopt: {theirs / file} is a symbolic link, and a run folder holds plain files")
    code, _, err = run("evaluate", theirs, "--tasks", "20")  # reads the model alone
    assert code == 0 or "symbolic link" in err
    assert contents(mine) == before
    assert (theirs / file).is_symlink()


def contents(path: Path) -> dict[Path, bytes]:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return {file: file.read_bytes() for file in files}


def npy(shape: str, dtype: str = "<f8") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [npy("(1000000000000,)"), npy("(99999999999999999999,)"), npy("(-1,)"), npy("(2, 2)"), npy("()"), npy("(1,)", "|O"),
     npy("(1,)", "<f4"), npy("__import__('os')"), b"\x93NUMPY\x01\x00\xff\xff{", b"PK\x03\x04", b"",
     b"PK\x05\x06" + bytes(18)],
)  # fmt: skip
def test_scores_with_a_header_beyond_all_measure_are_damaged_scores(run: Run, theirs: Path, content: bytes) -> None:
    for file in ("scores/00000.npy", "report.npy", "finalists/00000-0.npy"):
        (theirs / file).write_bytes(content)
        assert read_scores(theirs / file) is None
    assert run("study", "audit", theirs)[0] == 1


DEEP = "[" * 10**5
HOSTILE_BOARDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list as a number": lambda board: board | {"seconds": []},
    "a number as a list": lambda board: board | {"finalists": 5},
    "nothing in its finalists": lambda board: board | {"finalists": [{}]},
    "null everywhere": dict.fromkeys,
}


@pytest.mark.parametrize("file", ["leaderboard.json", "versions.json", "tested.jsonl", "best/config.json"])
def test_json_deeper_than_any_is_refused_or_left_out(run: Run, theirs: Path, file: str) -> None:
    (theirs / file).write_text(DEEP)
    for command in READERS:
        code, _, err = run(*command, theirs)
        assert code in {0, 1, 2}
        assert len(err.splitlines()) <= 1


@pytest.mark.parametrize("spoil", HOSTILE_BOARDS.values(), ids=HOSTILE_BOARDS)
def test_a_leaderboard_of_other_things_is_refused_in_a_sentence(
    run: Run, theirs: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    board = json.loads((theirs / "leaderboard.json").read_text())
    (theirs / "leaderboard.json").write_text(json.dumps(spoil(board)))
    for command in (["study", "show"], ["study", "report"], ["study", "audit"]):
        code, _, err = run(*command, theirs)
        assert (command, code) == (command, 2)
        assert err.startswith("metaopt: ")
        assert len(err.splitlines()) == 1


def test_a_leaderboard_moves_no_cursor_and_sets_no_title(run: Run, theirs: Path) -> None:
    board = json.loads((theirs / "leaderboard.json").read_text())
    escape = "\x1b]0;owned\x07\x1b[2J\x9b1A\r\u202e"
    board["study"] = board["finalists"][0]["learner"] = escape
    board["failures"] = [{"learner": escape, "reason": escape, "trials": 1}]
    board["learners"] = {escape: next(iter(board["learners"].values()))}
    (theirs / "leaderboard.json").write_text(json.dumps(board))
    code, out, _ = run("study", "show", theirs)
    assert code == 0
    assert "owned" in out
    assert not set(out) & set("\x1b\x07\x9b\r\u202e")
    (theirs / "study.yaml").write_text(f"name: s\ntasks: {{sampler: '{escape[3:8]}'}}\n")
    (theirs / "leaderboard.json").write_text('{"study": "\x1b]0;owned"}')
    assert "\x1b" not in run("study", "show", theirs)[2]


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "a/../../b", "..", ".hidden", "a\\b", "x\x00y"])
def test_a_study_whose_name_leads_out_of_the_runs_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(STUDY | {"name": name}))
    code, _, err = run("study", "run", tmp_path / "s.yaml", "--quiet")
    assert code == 2
    assert "names the run folder" in err
    assert {path.name for path in tmp_path.iterdir()} == {"s.yaml"}


BOMBS = {
    "large": "#" * (MAX_BYTES + 1),
    "deep": "a: " + "[" * 20_000,
    "deep mappings": "{a: " * 20_000,
    "a billion laughs": "a: &a [x,x]\n" + "".join(f"b{n}: &b{n} [*b{n - 1},*b{n - 1}]\n" for n in range(30)),
    "merged": "a: &a {x: 1}\nb: {<<: *a}\n",
    "python": "a: !!python/object/apply:os.system ['touch owned']\n",
    "a name of python": "a: !!python/name:os.system\n",
    "a long number": "a: " + "9" * 100_000,
    "a recursive list": "a: &a [*a]\n",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_yaml_that_would_burst_or_run_is_refused_in_a_sentence(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "a.yaml").write_text(bomb)
    with pytest.raises(UserError) as refused:
        read(tmp_path / "a.yaml")
    assert len(str(refused.value).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.yaml"}


def test_a_model_reads_no_file_that_its_config_names(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "best", tmp_path / "best"))
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # whoever opens it waits forever
    config = json.loads((folder / CONFIG).read_text())
    config["study"]["tasks"] = {"sampler": "arrays", "file": str(secret), "n_way": 3, "n_shot": 1, "n_query": 3}
    (folder / CONFIG).write_text(json.dumps(config))
    assert load(folder, plugins.load(), torch.device("cpu")).learner.name == "protonet"
    (folder / ARRAYS).symlink_to(secret)
    with pytest.raises(UserError, match="is a symbolic link"):
        load(folder, plugins.load(), torch.device("cpu"))


# Passwords

SECRET = "hunter2%21"


@pytest.mark.parametrize("command", [["study", "run", "s.yaml"], ["study", "audit", "run"], ["study", "report", "run"]])
def test_a_password_on_the_command_line_is_refused_unsaid(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "--storage", f"postgresql://me:{SECRET}@localhost:1/x")
    assert code == 2
    assert "hunter2" not in out + err
    assert "as METAOPT_STORAGE" in err


@pytest.mark.parametrize(
    "url", [f"postgresql://me:{SECRET}@localhost:1/x", f"nosuchdb://me:{SECRET}@x/y", f"postgresql://me:{SECRET}@[::1",
            f"sqlite://me:{SECRET}@x/no/such/y.db"]
)  # fmt: skip
def test_a_password_from_the_environment_is_in_no_message_and_no_file(
    run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("METAOPT_STORAGE", url)
    code, out, err = run("study", "run", finished.parent / "s.yaml", "--output", tmp_path / "run")
    assert code == 2
    assert err.startswith("metaopt: --storage: cannot open that storage (")
    assert len(err.splitlines()) == 1
    assert "hunter2" not in out + err
    assert not (tmp_path / "run").exists()


def test_a_storage_from_the_environment_holds_the_study_and_stands_in_none_of_its_files(
    run: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_STORAGE", f"sqlite:///{tmp_path}/hunter2.db")
    folder = tmp_path / "run"
    code, out, err = run("study", "run", finished.parent / "s.yaml", "--output", folder)
    assert (code, (tmp_path / "hunter2.db").exists(), (folder / "journal.log").exists()) == (0, True, False)
    code, more, _ = run("study", "report", folder)
    assert code == 0
    assert "hunter2" not in out + err + more
    assert not any(b"hunter2" in content for content in contents(folder).values())
