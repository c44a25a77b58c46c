"""metaopt: search few-shot learning algorithms and their hyperparameters together."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from metaopt.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl", "load"]
__version__ = version("metaopt-fewshot")


def __getattr__(name: str) -> Any:
    """Import what takes torch and scikit-learn only where it is used."""
    if name == "load":
        return import_module("metaopt.estimator").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
