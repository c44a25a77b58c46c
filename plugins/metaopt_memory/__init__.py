"""Model-based learners: read the support set into a memory, and answer each query from it."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_memory.mann import MANN
from metaopt_memory.metanet import MetaNet
from metaopt_memory.snail import SNAIL


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in learners with a memory."""
    return [MANN, SNAIL, MetaNet]
