"""What is installed, described: who provides a thing, what it does, its paper, its ranges and defaults."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
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
    defaults, abouts, conditions = cls.Config(), dict(_abouts(cls.Config)), tune.conditions(cls.Config)
    own_first = sorted(tune.declared(cls.Config).items(), key=lambda item: item[0] not in vars(cls.Config))
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
                **({"when": dict(when)} if (when := conditions[field]) else {}),
                **({"about": abouts[field]} if field in abouts else {}),
            }
            for field, parameter in own_first
        },
        "defaults": dict(getattr(cls, "defaults", {})),
    }


def _abouts(config: type) -> Iterator[tuple[str, str]]:
    """Yield what the text below each field says, of those that have one, of a Config and of what it derives from."""
    for cls in config.__mro__[-2::-1]:  # a field declared anew is described anew
        try:
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError, SyntaxError):  # of a class made without a file
            continue
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, below in pairwise(body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(about))),
                ):
                    yield name, " ".join(about.split())
