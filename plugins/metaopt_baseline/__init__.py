"""Baselines: what a meta-learner must beat."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_baseline.finetune import FineTune
from metaopt_baseline.pixels import Pixels
from metaopt_baseline.pretrain import Pretrain


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in baselines."""
    return [FineTune, Pixels, Pretrain]
