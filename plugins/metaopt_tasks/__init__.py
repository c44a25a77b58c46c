"""Task samplers: sources of few-shot tasks."""

from metaopt.hookspecs import hookimpl
from metaopt.task import TaskSampler
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.omniglot import Omniglot
from metaopt_tasks.sinusoid import Sinusoid


@hookimpl
def register_task_samplers() -> list[type[TaskSampler]]:
    """Return the built-in task samplers."""
    return [Glyphs, Omniglot, Sinusoid]
