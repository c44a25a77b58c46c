"""A few seconds of meta-training on written characters make every metric-based learner better than raw pixels."""

from collections.abc import Iterator

import pytest
import torch

from metaopt import seeds
from metaopt.executor import Loop
from metaopt.learner import Learner
from metaopt.train import Budget, Outer, meta_test, meta_train
from metaopt_baseline.pixels import Pixels
from metaopt_encoders.conv4 import Conv4
from metaopt_metric import register_learners
from metaopt_objectives.accuracy import Accuracy
from metaopt_tasks.glyphs import Glyphs

CPU = torch.device("cpu")
SPEC_SIZES = 5, 1, 5  # ways, shots and queries
N_TRAIN, N_TEST = 320, 50
SLOW = {"relation": (1000, 3e-3)}
"""Tasks and rate of a learner that begins with a plateau, where all relations are alike."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return Glyphs(Glyphs.Config(train_classes=200, validation_classes=50))


def build(cls: type[Learner], glyphs: Glyphs) -> Learner:
    spec = glyphs.spec(*SPEC_SIZES)
    torch.manual_seed(0)
    return cls(spec, Conv4(spec.x_shape, Conv4.Config(width=16, pool="stride")), cls.Config())


def accuracy(learner: Learner, glyphs: Glyphs) -> float:
    draw = seeds.generator(0, "test")
    return meta_test(
        learner, glyphs, "validation", Accuracy(Accuracy.Config()), N_TEST, Loop(), draw=draw, device=CPU
    ).mean


OF_EXAMPLES = [cls for cls in register_learners() if cls.supports == "examples"]  # the others: test_attributes.py


@pytest.mark.parametrize("cls", OF_EXAMPLES, ids=lambda cls: cls.name)
def test_it_learns_to_read(cls: type[Learner], glyphs: Glyphs) -> None:
    n_tasks, lr = SLOW.get(cls.name, (N_TRAIN, cls.defaults["outer.lr"]))
    learner = build(cls, glyphs)
    meta_train(learner, glyphs, Outer(lr=lr), Budget(tasks=n_tasks), Loop(), seed=0, device=CPU)
    of_pixels, untrained = accuracy(build(Pixels, glyphs), glyphs), accuracy(build(cls, glyphs), glyphs)
    assert accuracy(learner, glyphs) > max(of_pixels, untrained) + 0.05
