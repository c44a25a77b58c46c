"""The learners keep metaopt's contract, and say what easyfsl says."""

from collections.abc import Callable

import pytest
import torch
from easyfsl.methods import BDCSPN, TIM, Finetune, PrototypicalNetworks, SimpleShot
from metaopt_easyfsl import EasyBDCSPN, EasyFinetune, EasyProtoNet, EasySimpleShot, EasyTIM
from torch import nn

from metaopt.learner import Learner
from metaopt.task import TaskSpec
from metaopt.testing import parametrize_with_checks

PAIRS = [
    (EasyProtoNet, PrototypicalNetworks, 1.0),
    (EasySimpleShot, SimpleShot, 10.0),
    (EasyBDCSPN, BDCSPN, 10.0),
    (EasyFinetune, Finetune, 10.0),
    (EasyTIM, TIM, 10.0),
]


@parametrize_with_checks([learner for learner, _, _ in PAIRS])
def test_they_keep_the_contract(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(("learner", "classifier", "scale"), PAIRS)
def test_they_say_what_easyfsl_says(learner: type[Learner], classifier: type, scale: float) -> None:
    torch.manual_seed(0)
    config = learner.Config()
    encoder = nn.Linear(4, 3)
    support_x, query_x, support_y = torch.randn(6, 4), torch.randn(9, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    options = vars(config) if issubclass(learner, EasyFinetune) else {}
    theirs = classifier(encoder, **options)  # on the encoder itself, as easyfsl is meant to be used
    with torch.no_grad():
        theirs.process_support_set(support_x, support_y)
        want = scale * theirs(query_x)
    got = learner(TaskSpec("classification", (4,), 3, 2, 3), encoder, config)(support_x, support_y, query_x)
    torch.testing.assert_close(got, want)
