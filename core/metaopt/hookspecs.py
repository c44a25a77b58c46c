"""The whole extension surface: what a plugin may provide.

A plugin is a module named by an entry point of the group `metaopt`. Hooks return classes, once, when plugins load;
nothing in a training loop is a hook. A plugin leaves out the arguments of a hook that it does not need; later versions
may give more of them.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from metaopt.learner import Learner
    from metaopt.nn import Encoder
    from metaopt.objective import MetaObjective
    from metaopt.study.trial import TrialResult
    from metaopt.task import TaskSampler

hookspec = pluggy.HookspecMarker("metaopt")
hookimpl = pluggy.HookimplMarker("metaopt")


@hookspec
def register_task_samplers() -> "Iterable[type[TaskSampler]]":
    """Return the task samplers this plugin provides: sources of few-shot tasks."""
    return ()


@hookspec
def register_encoders() -> "Iterable[type[Encoder]]":
    """Return the encoders this plugin provides: what turns examples into features."""
    return ()


@hookspec
def register_learners() -> "Iterable[type[Learner]]":
    """Return the learners this plugin provides: algorithms a study may choose among."""
    return ()


@hookspec
def register_meta_objectives() -> "Iterable[type[MetaObjective]]":
    """Return the meta-objectives this plugin provides: scores a study may optimise."""
    return ()


@hookspec
def trial_finished(result: "TrialResult", study: "Mapping[str, Any]", folder: "Path") -> None:
    """Observe a finished trial, once, after its score is stored. A failure here never spoils a study.

    `study` is the study file, resolved, and `folder` the run folder.
    """


@hookspec
def study_finished(leaderboard: "Mapping[str, Any]", study: "Mapping[str, Any]", folder: "Path") -> None:
    """Observe a study that came to its end, after all is stored. A failure here never spoils it.

    `leaderboard` is what `leaderboard.json` holds. A study that is given more trials later ends again.
    """
