"""Metric-based learners: classify a query by what it is close to."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_metric.protonet import ProtoNet


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in metric-based learners."""
    return [ProtoNet]
