"""The learner keeps metaopt's contract, and does what it says."""

from collections.abc import Callable

import torch
from metaopt_placeholder import Placeholder
from torch import nn

from metaopt.task import TaskSpec
from metaopt.testing import parametrize_with_checks


@parametrize_with_checks([Placeholder])
def test_it_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


def test_a_query_scores_its_mean_cosine_similarity_to_each_class() -> None:
    spec = TaskSpec("classification", (2,), n_way=2, n_shot=1, n_query=1)
    learner = Placeholder(spec, nn.Identity(), Placeholder.Config(temperature=0.5))
    support_x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    scores = learner(support_x, torch.tensor([0, 1]), torch.tensor([[2.0, 2.0], [5.0, 0.0]]))
    torch.testing.assert_close(scores, torch.tensor([[2**0.5, 2**0.5], [2.0, 0.0]]))
