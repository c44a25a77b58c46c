"""Nonsense in study files, models and arguments ends in a sentence. METAOPT_FUZZ=100 tries a hundred times as much.

`make fuzz` does so, by chance; what fails is kept in `.hypothesis` and tried first the next time. Without it the same
nonsense is tried each time, so that the suite does not fail by luck.
"""

import contextlib
import functools
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metaopt import plugins
from metaopt.cli import main
from metaopt.errors import UserError
from metaopt.study.file import load as load_study
from metaopt.study.model import CONFIG, WEIGHTS, load

REGISTRY = plugins.load()
CPU = torch.device("cpu")
TIMES = int(os.environ.get("METAOPT_FUZZ", "1"))
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"protonet": {"temperature": {"low": 0.1, "high": 1.0}}},
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"lr": 1e-3},
    "trials": 1,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 20},
}
TEXT = yaml.safe_dump(STUDY)


def fuzz(n: int) -> settings:
    """Return settings for n examples, or as many times more as METAOPT_FUZZ says."""
    return settings(
        max_examples=n * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "s.yaml").write_text(TEXT)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["study", "run", str(folder / "s.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def spoilt(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the winner's folder, whose files are written anew each time."""
    return Path(shutil.copytree(finished / "best", tmp_path_factory.mktemp("spoilt") / "best"))


def in_a_sentence(error: UserError) -> None:
    assert str(error)
    assert len(str(error).splitlines()) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.integers(-(10**30), 10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw an edit of a file: bytes put in, left out, doubled or cut off."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(made)))
        to = draw(st.integers(place, min(len(made), place + 20)))
        made[place:to] = draw(st.binary(max_size=6) | st.just(bytes(made[place:to] * 2)))
    return bytes(made[: draw(st.just(len(made)) | st.integers(0, len(made)))])


def changed(data: st.DataObject, whole: Any) -> Any:
    """Return JSON data with something else in one place."""
    made = json.loads(json.dumps(whole))
    place, key = made, None
    while isinstance(place, dict | list) and place:
        parent, key = place, data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = parent[key]
        if data.draw(st.integers(0, 3)) == 0:
            break
    if key is None or data.draw(st.integers(0, 9)) == 0:
        return data.draw(JSON)
    if data.draw(st.booleans()):
        parent[key] = data.draw(JSON)
    else:
        del parent[key]
    return made


@given(content=edited(TEXT.encode()))
@example(content=b"")
@example(content=b"\xff\xfe")
@fuzz(100)
def test_any_edit_of_a_study_file_resolves_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "edited.yaml"
    path.write_bytes(content)
    try:
        load_study(path, REGISTRY)
    except UserError as error:
        in_a_sentence(error)


@given(data=st.data())
@fuzz(60)
def test_any_config_of_a_model_loads_or_is_refused(spoilt: Path, finished: Path, data: st.DataObject) -> None:
    config = json.loads((finished / "best" / CONFIG).read_text())
    (spoilt / WEIGHTS).write_bytes((finished / "best" / WEIGHTS).read_bytes())
    (spoilt / CONFIG).write_text(json.dumps(changed(data, config)))
    try:
        load(spoilt, REGISTRY, CPU)
    except UserError as error:
        in_a_sentence(error)


@given(data=st.data())
@fuzz(60)
def test_any_edit_of_a_models_files_loads_or_is_refused(spoilt: Path, finished: Path, data: st.DataObject) -> None:
    for name in (CONFIG, WEIGHTS):
        (spoilt / name).write_bytes((finished / "best" / name).read_bytes())
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    (spoilt / name).write_bytes(data.draw(edited((spoilt / name).read_bytes())))
    try:
        load(spoilt, REGISTRY, CPU)
    except UserError as error:
        in_a_sentence(error)


@given(data=st.data())
@fuzz(100)
def test_any_leaderboard_is_shown_or_refused(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "board"
    folder.mkdir(exist_ok=True)
    board = json.loads((finished / "leaderboard.json").read_text())
    (folder / "leaderboard.json").write_text(json.dumps(changed(data, board)))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["study", "show", str(folder)])
    assert code in {0, 2}
    assert len(said.getvalue().splitlines()) == (code == 2)


def places(whole: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each part of JSON data; of a list to those of its first element and its last."""
    if path:
        yield path
    if isinstance(whole, dict):
        for key, inner in whole.items():
            yield from places(inner, *path, key)
    elif isinstance(whole, list):
        for index in sorted({0, len(whole) - 1} if whole else set()):
            yield from places(whole[index], *path, index)


def test_a_leaderboard_with_any_part_missing_or_of_another_kind_is_shown_or_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((finished / "leaderboard.json").read_text())
    for *path, last in list(places(whole)):
        for other in ("missing", None, True, "", 0, -1e300, math.nan, [], [[]], {}, {"mean": "1"}):
            board = json.loads(json.dumps(whole))
            parent = functools.reduce(lambda at, key: at[key], path, board)
            if other == "missing":
                del parent[last]
            else:
                parent[last] = other
            (tmp_path / "leaderboard.json").write_text(json.dumps(board))
            code, said = main(["study", "show", str(tmp_path)]), capsys.readouterr().err
            assert (code, len(said.splitlines())) in {(0, 0), (2, 1)}, (path, last, other, said)


WORDS = st.sampled_from(
    ["study", "run", "show", "list", "audit", "report", "tasks", "preview", "plugin", "evaluate", "compare", "export",
     "predict", "--trials", "--set", "--seed", "--json", "--workers", "--output", "--storage", "--prefer", "--timeout",
     "--tasks", "--support", "--query", "--pool", "--on", "--plugin", "no:x", "=", "seed=1", "a.b=c", "-1", "0", "nan",
     "", "/", ".", "no-such", "quickstart", "sqlite://", "protonet"]
)  # fmt: skip


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METAOPT_DISABLE_PLUGINS", raising=False)
    return tmp_path


@given(words=st.lists(WORDS | st.text(max_size=5), max_size=6))
@fuzz(60)
def test_any_arguments_are_answered_with_an_exit_code_and_no_traceback(empty: Path, words: list[str]) -> None:
    if "run" in words and "quickstart" in words:  # which is a study, and takes its time
        return
    before = os.environ.get("METAOPT_DISABLE_PLUGINS")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = main(words)
        except SystemExit as end:
            code = int(str(end.code))
    os.environ.pop("METAOPT_DISABLE_PLUGINS", None)
    if before is not None:
        os.environ["METAOPT_DISABLE_PLUGINS"] = before
    assert code in {0, 1, 2}
    assert "Traceback" not in said.getvalue()
