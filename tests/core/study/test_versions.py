"""A study keeps the versions it was begun with, and going on with others says so and what to install."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaopt import plugins
from metaopt.cli import main
from metaopt.errors import UserError
from metaopt.study import versions

STUDY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1, "n_query": 3, "features": 4},
    "learners": ["acme_aged", "pixels"],
    "trials": 2,
    "budget": {"tasks": 4},
    "evaluation": {"tasks": 4, "finalists": 1, "report_tasks": 4},
}
LEARNER = """
from metaopt import hookimpl
from metaopt_baseline.pixels import Pixels

class Aged(Pixels):
    name = "{name}"

@hookimpl
def register_learners():
    return [Aged]
"""


class Site:
    """A folder on Python's path with the distribution acme-aged and an unrelated one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.install("1.0")
        self.write("acme_other", "3.0", "acme_other")

    def install(self, version: str, learner: str = "acme_aged") -> None:
        for info in self.folder.glob("acme_aged-*.dist-info"):
            for file in info.iterdir():
                file.unlink()
            info.rmdir()
        if version:
            self.write("acme_aged", version, learner)

    def write(self, name: str, version: str, learner: str) -> None:
        (self.folder / f"{name}.py").write_text(LEARNER.format(name=learner))
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[metaopt]\n{name} = {name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    yield Site(folder)
    for name in ("acme_aged", "acme_other"):
        sys.modules.pop(name, None)


def run(*options: str) -> int:
    return main(["study", "run", "study.yaml", "--quiet", "--json", *options])


def test_a_study_keeps_the_versions_of_what_it_uses_and_of_nothing_else(site: Site) -> None:
    assert run() == 0
    kept = json.loads(Path("runs/tiny/versions.json").read_text())
    assert kept.keys() == {"metaopt-fewshot", "numpy", "optuna", "torch", "acme-aged"}
    assert kept["acme-aged"] == "1.0"
    for file in ("leaderboard.json", "best/config.json"):
        assert json.loads((Path("runs/tiny") / file).read_text())["versions"] == kept


def test_going_on_with_another_version_says_so_and_what_to_install(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("--trials=1") == 0
    assert caplog.records == []
    site.install("2.0")
    assert run() == 0, "it goes on all the same"
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == (
        "runs/tiny: this was begun with acme-aged 1.0, of which 2.0 is installed; for scores that compare: "
        "pip install acme-aged==1.0"
    )
    assert json.loads(Path("runs/tiny/versions.json").read_text())["acme-aged"] == "1.0"
    assert json.loads(Path("runs/tiny/leaderboard.json").read_text())["versions"]["acme-aged"] == "2.0"
    caplog.clear()
    assert main(["evaluate", "runs/tiny/best", "--tasks=4"]) == 0
    assert caplog.records == [], "the winner was trained by the version that is installed"
    site.install("3.0")
    assert main(["evaluate", "runs/tiny/best", "--tasks=4"]) == 0
    assert "runs/tiny/best: this was begun with acme-aged 2.0, of which 3.0 is installed; " in caplog.text


@pytest.mark.parametrize(
    ("version", "learner", "said"),
    [
        ("", "", "(this was begun with acme-aged 1.0, of which nothing is installed; for scores that compare: pip "),
        ("2.0", "renamed", "(this was begun with acme-aged 1.0, of which 2.0 is installed; for scores that compare: p"),
    ],
)
def test_a_plugin_that_is_missing_or_has_dropped_a_learner_is_named_with_what_to_install(
    site: Site, capsys: pytest.CaptureFixture[str], version: str, learner: str, said: str
) -> None:
    assert run() == 0
    site.install(version, learner)
    del sys.modules["acme_aged"]
    capsys.readouterr()
    for command in (["study", "run", "study.yaml"], ["evaluate", "runs/tiny/best"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "no learner named 'acme_aged'; " in error
        assert said in error
        assert error.endswith("pip install acme-aged==1.0)\n")
    assert main(["study", "run", "study.yaml", "--output", "elsewhere"]) == 2
    assert "begun with" not in capsys.readouterr().err


def test_a_mistake_in_a_study_file_is_told_without_versions_where_none_changed(site: Site) -> None:
    recorded = {plugin.distribution: plugin.version for plugin in plugins.load().plugins}
    mistake = UserError("no learner named 'x'")
    assert versions.explained(mistake, recorded) is mistake
    assert versions.changed(recorded) is None


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_record_that_is_damaged_compares_with_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / versions.FILE).write_text(text)
    assert versions.kept(tmp_path) == {}
    assert versions.kept(tmp_path / "nowhere") == {}
