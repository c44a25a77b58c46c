"""Gradient-based learners: adapt weights to a task by a few steps of gradient descent."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_gradient.anil import ANIL
from metaopt_gradient.maml import MAML
from metaopt_gradient.maml_pp import MAMLPlusPlus
from metaopt_gradient.meta_sgd import MetaSGD
from metaopt_gradient.reptile import Reptile


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in gradient-based learners."""
    return [ANIL, MAML, MAMLPlusPlus, MetaSGD, Reptile]
