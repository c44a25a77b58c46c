"""What `metaopt plugin check` does: choose what to check by name, check it, and report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaopt import tune
from metaopt.errors import UserError, unknown
from metaopt.plugins import CONTRACTS, Plugin, Registry
from metaopt.study import file
from metaopt.task import TaskSampler
from metaopt.testing import Verdict, run_checks


@dataclass(frozen=True)
class Report:
    """What came of the checks of one thing, or of loading a plugin."""

    name: str
    kind: str
    plugin: str
    distribution: str
    version: str
    checks: tuple[Verdict, ...]


def named(registry: Registry, name: str) -> tuple[list[Plugin], list[type]]:
    """Return the plugins and the things of that name. UserError where there is none names the nearest."""
    plugins = [plugin for plugin in registry.plugins if plugin.name == name]
    things = [getattr(registry, kind)[name] for kind in CONTRACTS if name in getattr(registry, kind)]
    if not plugins and not things:
        known = {plugin.name for plugin in registry.plugins} | {
            known for kind in CONTRACTS for known in getattr(registry, kind)
        }
        raise UserError(unknown("plugin or thing provided by one", name, known))
    return plugins, things


def check(
    registry: Registry, plugins: Sequence[Plugin], things: Sequence[type], overrides: Sequence[str]
) -> Iterator[Report]:
    """Check plugins, each with all that it provides, and further things, and yield a report of each.

    `overrides`, written `key=value`, are settings of task samplers. Raises UserError where one is no such setting.
    """
    classes: list[Any] = list(things)
    for plugin in plugins:
        classes += [getattr(registry, kind)[name] for kind in CONTRACTS for name in getattr(plugin, kind)]
    classes = list(dict.fromkeys(classes))
    settings = _settings([cls for cls in classes if issubclass(cls, TaskSampler)], overrides)
    for plugin in plugins:
        loads = Verdict("loads", "failed" if plugin.error else "ok", plugin.error)
        yield Report(plugin.name, "plugin", plugin.name, plugin.distribution, plugin.version, (loads,))
    for cls in classes:
        plugin = registry.provider(cls)
        [noun] = [noun for noun, contract in CONTRACTS.values() if issubclass(cls, contract)]
        name: str = cls.name
        verdicts = tuple(run_checks(cls, settings.get(cls)))
        yield Report(name, noun, plugin.name, plugin.distribution, plugin.version, verdicts)


def _settings(samplers: Sequence[type[TaskSampler]], overrides: Sequence[str]) -> Mapping[type, dict[str, Any]]:
    """Return, of each task sampler, those of the settings that it has."""
    given: dict[str, Any] = {}
    for override in overrides:
        file.override_key(given, override)
    known = {key for sampler in samplers for key in tune.declared(sampler.Config)}
    for key in given:
        if key not in known:
            raise UserError(f"--set: {unknown('setting of a task sampler that is checked', key, known)}")
    return {sampler: _narrowed(sampler, given) for sampler in samplers}


def _narrowed(sampler: type[TaskSampler], given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {}
    for key, parameter in tune.declared(sampler.Config).items():
        if key in given:
            try:
                narrowed = tune.narrow(parameter, given[key])
            except ValueError as error:
                raise UserError(f"--set: {sampler.name}.{key}: {error}") from None
            assert isinstance(narrowed, tune.Fixed), "a task sampler's Config holds settings, not ranges"
            settings[key] = narrowed.value
    return settings
