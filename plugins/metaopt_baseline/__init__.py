"""Baselines: what a meta-learner must beat."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_baseline.baseline import Baseline
from metaopt_baseline.baseline_pp import BaselinePP
from metaopt_baseline.finetune import FineTune
from metaopt_baseline.pixels import Pixels
from metaopt_baseline.pretrain import Pretrain
from metaopt_baseline.rfs import RFS
from metaopt_baseline.sklearn import Sklearn


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in baselines."""
    return [RFS, Baseline, BaselinePP, FineTune, Pixels, Pretrain, Sklearn]
