"""metaopt: search few-shot learning algorithms and their hyperparameters together."""

from importlib.metadata import version

__version__ = version("metaopt-fewshot")
