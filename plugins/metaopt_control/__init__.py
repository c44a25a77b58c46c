"""Tasks that are environments, and learners that act in them."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.objective import MetaObjective
from metaopt.task import TaskSampler
from metaopt_control.bandits import Bandits
from metaopt_control.games import Games
from metaopt_control.gymnasium_tasks import GymnasiumTasks
from metaopt_control.maml_rl import MAMLPolicy
from metaopt_control.navigation import Navigation
from metaopt_control.oracle import Oracle
from metaopt_control.randomised import Randomised
from metaopt_control.reptile_rl import ReptilePolicy
from metaopt_control.return_after import ReturnAfter
from metaopt_control.return_curve import ReturnCurve
from metaopt_control.rl2 import RL2
from metaopt_control.slope import Slope


@hookimpl
def register_task_samplers() -> list[type[TaskSampler]]:
    """Return the samplers of environments."""
    return [Bandits, Games, GymnasiumTasks, Navigation, Slope]


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the learners that act."""
    return [MAMLPolicy, Oracle, Randomised, ReptilePolicy, RL2]


@hookimpl
def register_meta_objectives() -> list[type[MetaObjective]]:
    """Return the scores of returns."""
    return [ReturnAfter, ReturnCurve]
