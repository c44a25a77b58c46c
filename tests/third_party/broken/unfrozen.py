"""Has a Config that is no frozen dataclass."""

from metaopt import hookimpl
from metaopt.learner import Learner


class Mine(Learner):
    name = "mine"

    class Config:
        rate = 0.1


@hookimpl
def register_learners():
    return [Mine]
