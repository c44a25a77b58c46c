"""Baseline++ scores by cosines, in training and on a task, whose class vectors turn towards their examples."""

import copy

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from metaopt.executor import Loop
from metaopt.nn import class_means
from metaopt.task import Examples, TaskSpec
from metaopt_baseline.baseline_pp import BaselinePP
from metaopt_encoders.mlp import MLP

SPEC = TaskSpec("classification", (6,), n_way=3, n_shot=4, n_query=2, n_train_classes=9)


def baseline_pp(**config: float) -> BaselinePP:
    torch.manual_seed(0)
    return BaselinePP(SPEC, MLP((6,), MLP.Config(16)), BaselinePP.Config(**config)).double()  # type: ignore[arg-type]


def task() -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    x = torch.randn(20, 6, dtype=torch.float64, generator=draw)
    return x[:12], torch.randperm(12, generator=draw) % 3, x[12:]


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_class_vectors_take_the_steps_of_torchs_sgd_from_their_classs_mean(steps: int) -> None:
    learner, (support_x, support_y, query_x) = baseline_pp(lr=0.3, scale=5, steps=steps, weight_decay=0.01), task()
    support, query = (normalize(learner.encoder(x).detach(), dim=1) for x in (support_x, query_x))
    vectors = class_means(support, support_y, 3).requires_grad_()
    optimizer = torch.optim.SGD([vectors], lr=0.3, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(5 * cosine_similarity(support[:, None], vectors, dim=2), support_y).backward()
        optimizer.step()
    expected = 5 * cosine_similarity(query[:, None], vectors.detach(), dim=2)
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def test_the_length_of_features_means_nothing() -> None:
    learner, (support_x, support_y, query_x) = baseline_pp(), task()
    before = learner(support_x, support_y, query_x)
    last = learner.encoder.layers[2]  # type: ignore[index]
    with torch.no_grad():
        last.weight.mul_(3)
        last.bias.mul_(3)
    torch.testing.assert_close(learner(support_x, support_y, query_x), before, rtol=1e-9, atol=1e-12)


def test_meta_training_goes_down_the_loss_of_scaled_cosines() -> None:
    learner, draw = baseline_pp(train_scale=7.0), Generator().manual_seed(2)
    batch = Examples(torch.randn(20, 6, dtype=torch.float64, generator=draw), torch.randint(9, (20,), generator=draw))
    by_hand = copy.deepcopy(learner)
    cosines = cosine_similarity(by_hand.encoder(batch.x)[:, None], by_hand.classifier.weight, dim=2)
    loss = cross_entropy(7 * cosines, batch.y)
    loss.backward()

    def check(gradients: object) -> None:
        assert isinstance(gradients, dict)
        for name, parameter in by_hand.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)

    torch.testing.assert_close(learner.outer_step(batch, Loop(), check), loss.detach(), rtol=1e-9, atol=0)


def test_vectors_are_made_for_as_many_classes_as_the_task_has() -> None:
    served = baseline_pp().with_spec(TaskSpec("classification", (6,), 5, 1, 2))
    support_x, _, query_x = task()
    assert served(support_x[:5], torch.arange(5), query_x).shape == (8, 5)
