"""Is written for a metaopt with further hooks."""

from metaopt import hookimpl


@hookimpl
def register_schedules():
    return []
