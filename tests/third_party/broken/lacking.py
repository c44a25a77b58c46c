"""Needs a package that is not installed."""

import acme_absent

from metaopt import hookimpl


@hookimpl
def register_learners():
    return [acme_absent.Learner]
