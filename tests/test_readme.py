"""The README says what is so: its blocks are what their sources give, its commands parse, its files exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import fill_readme
import sinusoid_steps
from metaopt import cli, plugins
from metaopt.study import file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OF_BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (metaopt .*?)\s*(?:#.*)?$", README, re.MULTILINE)
STUDIES = re.findall(r"```yaml\n(name: .*?)```", README, re.DOTALL)


def test_blocks_are_what_their_sources_give() -> None:
    assert len(fill_readme.BLOCK.findall(README)) >= 4
    for text in (README, OF_BENCHMARKS):
        assert fill_readme.filled(text) == text, "run `make readme`"


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


def test_the_plot_is_of_the_numbers_beside_it() -> None:
    results = ROOT / "docs" / "results"
    rows = json.loads((results / "sinusoid-steps.json").read_text(encoding="utf-8"))
    plot = sinusoid_steps.plot({name: row["errors"] for name, row in rows.items()})
    assert (results / "sinusoid-steps.svg").read_text(encoding="utf-8") == plot


def test_the_oracle_of_sinusoids_reads_amplitude_and_phase_off_five_points() -> None:
    sampler = sinusoid_steps.Sinusoid(sinusoid_steps.Sinusoid.Config())
    spec = sampler.spec(1, 5, 3)
    tasks = sampler.draw("test", spec, 1, torch.Generator().manual_seed(0))
    oracle = sinusoid_steps.Oracle(spec, None, None)
    oracle.encoder, oracle.head = torch.nn.Identity(), torch.nn.Identity()
    x, amplitude, phase = oracle(tasks.support_x[0], tasks.support_y[0], tasks.query_x[0]).T[..., None]
    torch.testing.assert_close(amplitude * (x - phase).sin(), tasks.query_y[0], rtol=1e-3, atol=1e-3)
