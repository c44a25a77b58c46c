"""What is installed, described: who provides a thing, what it does, its paper, its ranges and defaults."""

import inspect
import sys
from typing import Any

from metaopt import tune
from metaopt.errors import UserError, unknown
from metaopt.plugins import CONTRACTS, Registry


def describe(registry: Registry, name: str) -> dict[str, Any]:
    """Return a description of the learner, task sampler, encoder, meta-objective or plugin of that name.

    Raises UserError where there is none, with the nearest name.
    """
    for kind, (noun, _) in CONTRACTS.items():
        if name in getattr(registry, kind):
            return _of_class(registry, noun, getattr(registry, kind)[name])
    for plugin in registry.plugins:
        if plugin.name == name:
            provided = ", ".join(sorted(name for kind in CONTRACTS for name in getattr(plugin, kind)))
            about = plugin.error or "\n\n".join(filter(None, (registry.about(plugin), provided)))
            return {
                "name": name,
                "kind": f"plugin, {plugin.status}",
                "plugin": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "about": about,
                "paper": None,
                "parameters": {},
            }
    names = [name for kind in CONTRACTS for name in getattr(registry, kind)]
    raise UserError(unknown("plugin or thing provided by one", name, names + [p.name for p in registry.plugins]))


def _of_class(registry: Registry, noun: str, cls: Any) -> dict[str, Any]:
    plugin = registry.provider(cls)
    paper = inspect.getdoc(sys.modules[cls.__module__]) or ""
    defaults = cls.Config()
    return {
        "name": cls.name,
        "kind": noun,
        "plugin": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "about": inspect.getdoc(cls) or "",
        "paper": paper if "arXiv" in paper or "(" in paper else None,
        "parameters": {
            field: {
                "range": "a setting" if isinstance(parameter, tune.Fixed) else str(parameter),
                "default": getattr(defaults, field),
                **({"when": dict(when)} if (when := tune.conditions(cls.Config)[field]) else {}),
            }
            for field, parameter in tune.declared(cls.Config).items()
        },
        "defaults": dict(getattr(cls, "defaults", {})),
    }
