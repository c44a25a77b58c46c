"""Every built-in learner, encoder, task sampler and meta-objective passes the conformance kit."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaopt.plugins import BUILT_IN, CONTRACTS, load
from metaopt.task import POOLS
from metaopt.testing import parametrize_with_checks, run_checks

REGISTRY = load()
PLUGINS = [plugin for plugin in REGISTRY.plugins if plugin.distribution == BUILT_IN]


def omniglot(folder: Path) -> dict[str, Any]:
    """Write drawings of six people each, five characters a pool, and return the settings that find them."""
    sets = {"train": "images_background", "validation": "images_background_small1", "test": "images_evaluation"}
    draw = np.random.default_rng(0)
    for name in sets.values():
        for character in range(5):
            drawings = folder / name / f"Alphabet of {name}" / f"character{character + 1:02}"
            drawings.mkdir(parents=True)
            for drawer in range(6):
                pixels = draw.integers(0, 2, (105, 105), dtype=np.uint8) * 255
                Image.fromarray(pixels).convert("1").save(drawings / f"{character + 1:04}_{drawer + 1:02}.png")
    return {"root": str(folder), **{pool: (name,) for pool, name in sets.items()}}


def glyphs(folder: Path) -> dict[str, Any]:
    """Return settings with which its pools are drawn at once."""
    return {f"{pool}_classes": 20 for pool in POOLS}


def arrays(folder: Path) -> dict[str, Any]:
    """Write six pictures of each of twelve classes."""
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (72, 8, 8), dtype=np.uint8)
    np.savez(folder / "a.npz", X=x, y=np.arange(72) % 12)
    return {"file": str(folder / "a.npz"), "split": "4/4/4"}


def gymnasium(folder: Path) -> dict[str, Any]:
    """Return settings that name an environment."""
    return {"env": "CartPole-v1", "parameters": {"gravity": [9, 11]}, "horizon": 20}


def images(folder: Path) -> dict[str, Any]:
    """Write six pictures of each of twelve classes, a folder each."""
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (72, 8, 8), dtype=np.uint8)):
        path = folder / f"class {number % 12}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return {"root": str(folder), "split": "4/4/4", "size": 8}


def table(folder: Path) -> dict[str, Any]:
    """Write six rows of each of twelve classes, with a number and a category."""
    folder.mkdir()
    numbers = np.random.default_rng(0).normal(size=72)
    rows = [f"c{row % 12},{number},{'ab'[row % 2]}" for row, number in enumerate(numbers)]
    (folder / "a.csv").write_text("\n".join(["label,x,kind", *rows]))
    return {"file": str(folder / "a.csv"), "split": "4/4/4"}


def text(folder: Path) -> dict[str, Any]:
    """Write six sentences of each of twelve classes."""
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps([[f"sentence {n} of {n % 12}", f"c{n % 12}"] for n in range(72)]))
    return {"file": str(folder / "a.json"), "split": "4/4/4", "features": 256}


def attributes(folder: Path) -> dict[str, Any]:
    """Write vectors of fifteen classes, each described by another, and return the setting that finds them."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    y = np.repeat(np.arange(15), 4)
    np.savez(folder / "data.npz", X=draw.normal(size=(len(y), 3)), y=y, attributes=draw.normal(size=(15, 2)))
    return {"file": str(folder / "data.npz")}


WRITERS = (arrays, attributes, glyphs, gymnasium, images, omniglot, table, text)
SETTINGS: Mapping[str, Callable[[Path], dict[str, Any]]] = {writer.__name__: writer for writer in WRITERS}
"""Of task samplers that bring no data by default, or many, what returns settings for a few, written into a folder."""
CLASSES = [
    provided
    for kind in CONTRACTS
    for name, provided in getattr(REGISTRY, kind).items()
    if REGISTRY.provider(provided) in PLUGINS and not (kind == "task_samplers" and name in SETTINGS)
]


def test_every_built_in_plugin_loads() -> None:
    assert [plugin.error for plugin in PLUGINS] == [None] * len(PLUGINS)
    assert {kind for kind in CONTRACTS if any(getattr(plugin, kind) for plugin in PLUGINS)} == set(CONTRACTS)


@parametrize_with_checks(CLASSES)
def test_conformance(check: Any) -> None:
    try:
        check()
    except pytest.skip.Exception as reason:
        assert "default settings" not in str(reason), "give it data in SETTINGS"  # noqa: PT017
        raise


@pytest.mark.parametrize("name", SETTINGS)
def test_task_samplers_with_settings_pass_every_check(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    settings = SETTINGS[name](tmp_path / "data")
    verdicts = list(run_checks(REGISTRY.task_sampler(name), settings))
    assert {verdict.status for verdict in verdicts} == {"ok"}, verdicts
