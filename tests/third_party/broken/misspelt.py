"""Misspells a hook."""

from metaopt import hookimpl


@hookimpl
def register_learner():
    return []
