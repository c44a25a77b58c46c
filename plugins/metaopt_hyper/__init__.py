"""Learners with generated parameters: a network writes the parameters of another."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_hyper.cnaps import CNAPs
from metaopt_hyper.hyperhead import HyperHead
from metaopt_hyper.leo import LEO


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in learners that generate parameters."""
    return [CNAPs, HyperHead, LEO]
