"""Forgets to mark its hook."""


def register_learners():
    return []
