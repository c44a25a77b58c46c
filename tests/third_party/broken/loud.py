"""Prints when it is imported; it works."""

from metaopt import hookimpl
from metaopt.learner import Learner

print("welcome to the loud plugin")  # noqa: T201


class Loud(Learner):
    name = "loud"


@hookimpl
def register_learners():
    return [Loud]
