"""Metric-based learners: classify a query by what it is close to."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_metric.eszsl import ESZSL
from metaopt_metric.frn import FRN
from metaopt_metric.matching import MatchingNet
from metaopt_metric.metaoptnet import MetaOptNet
from metaopt_metric.protonet import ProtoNet
from metaopt_metric.protonet_zero import ProtoNetZero
from metaopt_metric.r2d2 import R2D2
from metaopt_metric.relation import RelationNet
from metaopt_metric.simpleshot import SimpleShot


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in metric-based learners."""
    return [ESZSL, FRN, MatchingNet, MetaOptNet, ProtoNet, ProtoNetZero, R2D2, RelationNet, SimpleShot]
