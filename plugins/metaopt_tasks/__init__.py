"""Task samplers: sources of few-shot tasks."""

from metaopt.hookspecs import hookimpl
from metaopt.task import TaskSampler
from metaopt_tasks.arrays import Arrays
from metaopt_tasks.attributes import Attributes
from metaopt_tasks.bundled import Bundled
from metaopt_tasks.curves import Curves
from metaopt_tasks.gaussian import Gaussian
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.images import Images
from metaopt_tasks.omniglot import Omniglot
from metaopt_tasks.sinusoid import Sinusoid
from metaopt_tasks.table import Table
from metaopt_tasks.text import Text


@hookimpl
def register_task_samplers() -> list[type[TaskSampler]]:
    """Return the built-in task samplers."""
    return [Arrays, Attributes, Bundled, Curves, Gaussian, Glyphs, Images, Omniglot, Sinusoid, Table, Text]
