"""Baseline is logistic regression by gradient descent on frozen features."""

import copy

import pytest
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.executor import EXECUTORS, Executor
from metaopt.task import Examples, TaskSpec
from metaopt_baseline.baseline import Baseline
from metaopt_encoders.mlp import MLP

SPEC = TaskSpec("classification", (6,), n_way=3, n_shot=4, n_query=2, n_train_classes=9)


def baseline(**config: float) -> Baseline:
    torch.manual_seed(0)
    return Baseline(SPEC, MLP((6,), MLP.Config(16)), Baseline.Config(**config)).double()  # type: ignore[arg-type]


def task() -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    x = torch.randn(20, 6, dtype=torch.float64, generator=draw)
    return x[:12], torch.randperm(12, generator=draw) % 3, x[12:]


@pytest.mark.parametrize("decay", [0.001, 0.1])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_head_takes_the_steps_of_torchs_sgd_from_zero(steps: int, decay: float) -> None:
    learner, (support_x, support_y, query_x) = baseline(lr=0.3, steps=steps, weight_decay=decay), task()
    support, query = learner.encoder(support_x).detach(), learner.encoder(query_x)
    head = torch.nn.Linear(16, 3).double()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(head(support), support_y).backward()
        optimizer.step()
    torch.testing.assert_close(learner(support_x, support_y, query_x), head(query), rtol=1e-9, atol=1e-12)


def test_in_the_end_the_head_is_scikit_learns_logistic_regression() -> None:
    """Whose loss is the sum of ours, and which penalises the bias, too, where it is the weight of a feature of 1."""
    learner, (support_x, support_y, query_x) = baseline(lr=1.0, steps=3000, weight_decay=0.1), task()
    support, query = (learner.encoder(x).detach() for x in (support_x, query_x))
    support, query = (torch.cat([x, torch.ones_like(x[:, :1])], 1).numpy() for x in (support, query))
    peer = LogisticRegression(C=1 / (0.1 * 12), fit_intercept=False, tol=1e-10, max_iter=10000)
    expected = torch.from_numpy(peer.fit(support, support_y.numpy()).decision_function(query))
    torch.testing.assert_close(learner(support_x, support_y, query_x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_head_has_as_many_classes_as_the_task() -> None:
    served = baseline().with_spec(TaskSpec("classification", (6,), 5, 1, 2))
    support_x, _, query_x = task()
    assert served(support_x[:5], torch.arange(5), query_x).shape == (8, 5)


@pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
def test_meta_training_moves_encoder_and_classifier_down_the_gradient_of_ordinary_training(executor: Executor) -> None:
    learner, draw = baseline(), Generator().manual_seed(2)
    batch = Examples(torch.randn(20, 6, dtype=torch.float64, generator=draw), torch.randint(9, (20,), generator=draw))
    by_hand = copy.deepcopy(learner)
    loss = cross_entropy(by_hand.classifier(by_hand.encoder(batch.x)), batch.y)
    loss.backward()

    def check(gradients: object) -> None:
        assert isinstance(gradients, dict)
        for name, parameter in by_hand.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)

    assert learner.outer_step(batch, executor, check) == loss


def test_fitting_a_head_leaves_the_learner_as_it_was() -> None:
    learner = baseline()
    before = copy.deepcopy(learner.state_dict())
    first = learner(*task())
    assert torch.equal(learner(*task()), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
