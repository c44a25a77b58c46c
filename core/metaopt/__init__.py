"""metaopt: search few-shot learning algorithms and their hyperparameters together."""

from importlib.metadata import version

from metaopt.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]
__version__ = version("metaopt-fewshot")
