"""Learned optimisers: networks that train another network, and are trained to do so."""

from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt_optimizer.learned_optimizer import LearnedOptimizer
from metaopt_optimizer.lstm_meta import LSTMMetaLearner


@hookimpl
def register_learners() -> list[type[Learner]]:
    """Return the built-in learned optimisers."""
    return [LearnedOptimizer, LSTMMetaLearner]
