"""Meta-objectives: scores of a learner, task by task."""

from metaopt.hookspecs import hookimpl
from metaopt.objective import MetaObjective
from metaopt_objectives.accuracy import Accuracy
from metaopt_objectives.adaptation_curve import AdaptationCurve
from metaopt_objectives.adaptation_time import AdaptationTime
from metaopt_objectives.balanced_accuracy import BalancedAccuracy
from metaopt_objectives.calibration import Calibration
from metaopt_objectives.log_loss import LogLoss
from metaopt_objectives.mse import MSE
from metaopt_objectives.parameters import Parameters
from metaopt_objectives.r2 import R2
from metaopt_objectives.worst_tasks import WorstTasks


@hookimpl
def register_meta_objectives() -> list[type[MetaObjective]]:
    """Return the built-in meta-objectives."""
    return [
        Accuracy,
        AdaptationCurve,
        AdaptationTime,
        BalancedAccuracy,
        Calibration,
        LogLoss,
        MSE,
        Parameters,
        R2,
        WorstTasks,
    ]
