"""Inputs that coverage-guided fuzzing came to (`make fuzz-guided`) are read, or refused in a sentence."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fuzz

NAMES = ["study", "mapping", "csv", "jsonl", "npz", "picture", "model", "checkpoint", "arguments"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before, here = dict(os.environ), Path.cwd()
    yield tmp_path_factory.mktemp("fuzz")
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def targets(root: Path) -> Any:
    return fuzz.targets(root)


def test_every_target_has_a_corpus(targets: Any) -> None:
    assert list(targets) == NAMES
    assert all(len(fuzz.kept(name)) > 3 for name in NAMES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_what_fuzzing_came_to_is_read_or_refused_in_a_sentence(targets: Any, root: Path, name: str) -> None:
    for content in (*fuzz.seeds(name, root), *fuzz.kept(name).values()):
        targets[name](content)
