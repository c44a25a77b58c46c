"""What the results of a study depend on beside its file: the versions of metaopt, of torch, of the plugins it uses."""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.errors import UserError
from metaopt.files import write_json

if TYPE_CHECKING:
    from metaopt.study.trial import Bench

FILE = "versions.json"


def used(bench: "Bench") -> dict[str, str]:
    """Return the versions of the distributions that a study uses, by name; of plugins those that it names things of."""
    space = bench.study.space
    named = [
        type(bench.sampler),
        *(type(objective) for objective in (bench.objective, *bench.others)),
        *space.learner_classes.values(),
        *space.encoder_classes.values(),
    ]
    plugins = {plugin.distribution: plugin.version for plugin in map(bench.registry.provider, named)}
    known = {name: version for name, version in sorted(plugins.items()) if _installed(name) == version}
    return {name: metadata.version(name) for name in ("metaopt-fewshot", "numpy", "optuna", "torch")} | known


def keep(folder: Path, versions: Mapping[str, str]) -> Mapping[str, str]:
    """Write the versions into a run folder, where none are yet, and return those that stand there."""
    if found := kept(folder):
        return found
    write_json(folder / FILE, dict(versions))
    return versions


def kept(folder: Path) -> Mapping[str, str]:
    """Return the versions that a run folder was begun with; nothing where they are not there."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # of an earlier metaopt, or damaged: there is nothing to compare with
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def changed(recorded: Mapping[str, Any]) -> str | None:
    """Say which of the recorded versions are not those installed now, and what to install."""
    other = {name: version for name, version in recorded.items() if _installed(name) != version}
    if not other:
        return None
    told = [
        f"{name} {version}, of which {_installed(name) or 'nothing'} is installed" for name, version in other.items()
    ]
    pinned = " ".join(f"{name}=={version}" for name, version in other.items())
    return f"this was begun with {'; with '.join(told)}; for scores that compare: pip install {pinned}"


def explained(error: UserError, recorded: Mapping[str, Any]) -> UserError:
    """Return the error of a study that does not resolve, with the versions that it was begun with where others are."""
    said = changed(recorded)
    return UserError(f"{error} ({said})") if said else error


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        return None
