"""`metaopt export` and `metaopt predict`: from a run folder to labels of new examples, in files."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metaopt
from metaopt import cli


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run on pictures of discs and squares, and pictures of new classes to learn and to name."""
    folder = tmp_path_factory.mktemp("space")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAOPT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        for number in range(9):
            for n in range(8):
                picture(folder / "data" / f"c{number}" / f"{n}.png", 25 * number, n)
        for number, name in enumerate(["day", "dusk", "night"]):
            for n in range(3):
                picture(folder / "support" / name / f"{n}.png", 230 - 90 * number, n)
            picture(folder / "query" / f"{name}.png", 220 - 90 * number, 9)
        command = "study run data --way 3 --minutes 0.1 --trials 1 --quiet --set evaluation.tasks=4"
        assert cli.main([*command.split(), "--set", "evaluation.report_tasks=4", "--set", "learners=[pixels]"]) == 0
    return folder


def picture(path: Path, grey: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([grey, seed]).integers(0, 20, (20, 20))
    Image.fromarray((grey + noise).astype(np.uint8)).save(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """Return the JSON that a command prints."""
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_study_file_of_data_is_kept_and_runs(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = space / "runs" / "data" / "study.yaml"
    assert f"root: {space / 'data'}" in study.read_text()
    command = ["study", "run", study, "--output", space / "again", "--quiet", "--trials", "1"]
    assert said(capsys, *command)["status"] == "finished"


def test_the_command_says_what_it_found_and_where_the_study_file_is(
    space: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(space)
    command = "study run data --way 3 --minutes 0.1 --trials 1 --output other --set learners=[pixels]"
    assert cli.main([*command.split(), "--set", "evaluation.report_tasks=4"]) == 0
    err = capsys.readouterr().err
    assert "data reads as images: 9 classes, apart (" in err
    assert "the study file is other/study.yaml" in err


def test_pictures_are_named(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = said(capsys, "export", space / "runs" / "data", tmp_path / "m", "--licence", "CC0")
    assert made["files"] == ["MODEL.md", "config.json", "weights.safetensors"]
    files = ["--support", space / "support", "--query", space / "query"]
    found = said(capsys, "predict", tmp_path / "m", *files)
    assert found["classes"] == ["day", "dusk", "night"]
    assert found["support"] == 9
    assert [(one["name"], one["label"]) for one in found["answers"]] == [
        ("day.png", "day"), ("dusk.png", "dusk"), ("night.png", "night")]  # fmt: skip
    clf = metaopt.load(tmp_path / "m")
    paths = sorted((space / "support").glob("*/*"))
    clf.fit(paths, [path.parent.name for path in paths])
    own = clf.predict_proba([space / "query" / "day.png"])[0]
    assert found["answers"][0]["probabilities"] == pytest.approx(dict(zip(found["classes"], own, strict=True)))

    assert cli.main(list(map(str, ["predict", tmp_path / "m", *files]))) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["name", "label", "probability"]
    assert printed[1].split()[:2] == ["day.png", "day"]
    assert printed[-1].startswith("pixels learned 3 classes from 9 examples and named 3 others in ")
    assert said(capsys, "predict", tmp_path / "m", *files, "--output", tmp_path / "a.csv") is not None
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "label", "probability"]
    assert [row[:2] for row in rows[1:]] == [["day.png", "day"], ["dusk.png", "dusk"], ["night.png", "night"]]


def test_the_readmes_lines_of_python_run(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(import metaopt\n.*?)```", readme, re.DOTALL)
    said(capsys, "export", space / "runs" / "data", tmp_path / "model")
    for name, grey in (("a/1", 0), ("a/2", 1), ("b/1", 200), ("new", 201)):
        picture(tmp_path / f"{name}.png", grey, 0)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["clf"].predict(["new.png"]).tolist() == ["beta"]
    assert names["clf"].classes_.tolist() == ["alpha", "beta"]


def test_an_adapted_model_is_written_as_a_program(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = said(capsys, "export", space / "runs" / "data", tmp_path / "m.pt2", "--adapted", space / "support")
    assert made["classes"] == ["day", "dusk", "night"]
    program = torch.export.load(tmp_path / "m.pt2").module()
    clf = metaopt.load(space / "runs" / "data")
    paths = sorted((space / "support").glob("*/*"))
    clf.fit(paths, [path.parent.name for path in paths])
    queries = clf.opened().preprocessing(sorted((space / "query").glob("*")))
    with torch.no_grad():
        np.testing.assert_allclose(program(queries), clf.predict_proba(queries), atol=1e-5)


@pytest.mark.parametrize(
    ("support", "query", "says"),
    [
        ("nowhere", "query", "there is no "),
        ("support", "nowhere", "there is no "),
        ("query", "query", "stands in no folder of a class; move it to query/<class>/day.png"),
        ("support/day", "query", "stands in no folder of a class"),
        ("one", "query", "y has one class, 'day'; a classifier needs examples of two or more"),
        ("support", "spoilt", "bad.png is no picture that can be read"),
    ],
)
def test_files_that_do_not_do_are_refused_and_nothing_is_written(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], support: str, query: str, says: str
) -> None:
    picture(space / "one" / "day" / "0.png", 3, 3)
    (space / "spoilt").mkdir(exist_ok=True)
    (space / "spoilt" / "bad.png").write_bytes(b"not a picture")
    command = ["predict", space / "runs" / "data", "--support", space / support, "--query", space / query]
    assert cli.main(list(map(str, [*command, "--output", tmp_path / "a.csv"]))) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_table_and_texts_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    table = [f"{n // 8 * 10 + random.normal():.3f},{random.normal():.3f},k{n // 8}" for n in range(72)]
    (tmp_path / "table.csv").write_text("\n".join(["size,noise,kind_of", *table]))
    texts = [{"text": f"say word{n // 8} and the {random.integers(99)}", "intent": f"i{n // 8}"} for n in range(72)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "s.csv").write_text("size,noise,kind_of\n100,0,big\n101,1,big\n3,0,small\n2,1,small\n")
    (tmp_path / "q.csv").write_text("noise,size\n0,99\n0,4\n")  # in another order, and no labels
    (tmp_path / "s.jsonl").write_text('{"text": "hello there", "intent": "hi"}\n{"text": "good bye", "intent": "bye"}')
    (tmp_path / "q.jsonl").write_text('{"text": "hello you there"}\n{"text": "bye bye then"}')
    for data, suffix, expected in (("table", "csv", ["big", "small"]), ("texts", "jsonl", ["hi", "bye"])):
        command = f"study run {data}.{suffix} --way 3 --minutes 0.1 --trials 1 --quiet --set learners=[pixels]"
        assert cli.main([*command.split(), "--set", "evaluation.report_tasks=4"]) == 0
        capsys.readouterr()
        found = said(capsys, "predict", f"runs/{data}", "--support", f"s.{suffix}", "--query", f"q.{suffix}")
        assert [one["label"] for one in found["answers"]] == expected
        assert [one["name"] for one in found["answers"]] == ["row 1", "row 2"]
