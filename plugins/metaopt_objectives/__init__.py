"""Meta-objectives: scores of a learner, task by task."""

from metaopt.hookspecs import hookimpl
from metaopt.objective import MetaObjective
from metaopt_objectives.accuracy import Accuracy
from metaopt_objectives.mse import MSE


@hookimpl
def register_meta_objectives() -> list[type[MetaObjective]]:
    """Return the built-in meta-objectives."""
    return [Accuracy, MSE]
