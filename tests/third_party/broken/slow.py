"""Takes its time when it is imported; it works."""

import time

from metaopt import hookimpl
from metaopt.learner import Learner

time.sleep(1.05)


class Slow(Learner):
    name = "slow"


@hookimpl
def register_learners():
    return [Slow]
