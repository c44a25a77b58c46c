"""Claims a name that another plugin has."""

from metaopt import hookimpl
from metaopt.learner import Learner


class ProtoNet(Learner):
    name = "protonet"


@hookimpl
def register_learners():
    return [ProtoNet]
