"""The README says what is so: its blocks are what their sources give, its commands parse, its files exist."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from metaopt import cli, plugins
from metaopt.study import file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (metaopt .*?)\s*(?:#.*)?$", README, re.MULTILINE)
STUDIES = re.findall(r"```yaml\n(name: .*?)```", README, re.DOTALL)


def fill_readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "docs" / "fill_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_blocks_are_what_their_sources_give() -> None:
    module = fill_readme()
    assert len(module.BLOCK.findall(README)) >= 4
    assert module.filled(README) == README, "run `make readme`"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    options = cli._parser().parse_args(shlex.split(command)[1:])
    assert callable(options.command)


@pytest.mark.parametrize("text", STUDIES)
def test_study_files_resolve(text: str) -> None:
    study = file.resolve(yaml.load(text, file._Loader), "README.md", plugins.load())
    assert study.space.learners


def test_there_are_commands_and_a_study_file_to_test() -> None:
    assert len(COMMANDS) >= 5
    assert STUDIES


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_linked_files_exist(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", re.findall(r"`make ([a-z-]+)`", README))
def test_make_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_published_figures_are_of_learners_and_results_that_exist() -> None:
    published = yaml.safe_load((ROOT / "docs" / "published.yaml").read_text(encoding="utf-8"))
    learners = plugins.load().learners
    for name, figures in published.items():
        assert (ROOT / "docs" / "results" / f"{name}.json").exists()
        assert figures.keys() <= learners.keys()
        assert all(0 < figure["accuracy"] <= 100 and re.search(r"[12]\d{3}$", figure["source"])
                   for figure in figures.values())  # fmt: skip
