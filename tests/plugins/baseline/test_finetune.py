"""Fine-tuning is joint training of one network on all tasks, and gradient descent on the support set of a new one."""

import copy

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import backward
from torch.nn.functional import mse_loss

from metaopt.executor import EXECUTORS, Executor
from metaopt.task import TaskBatch, TaskSpec
from metaopt_baseline.finetune import FineTune
from metaopt_encoders.mlp import MLP

SPEC = TaskSpec("regression", (2,), n_way=1, n_shot=4, n_query=6, y_size=2)

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)


def finetune(**config: object) -> FineTune:
    torch.manual_seed(0)
    return FineTune(SPEC, MLP((2,), MLP.Config(width=8)), FineTune.Config(**config)).double()  # type: ignore[arg-type]


def tasks(n_tasks: int) -> TaskBatch:
    draw = Generator().manual_seed(0)

    def normal(n: int) -> Tensor:
        return torch.randn(n_tasks, n, 2, dtype=torch.float64, generator=draw)

    return TaskBatch(normal(4), normal(4), normal(6), normal(6))


@every_executor
def test_meta_training_is_joint_training_on_all_examples_of_all_tasks(executor: Executor) -> None:
    learner, batch = finetune(), tasks(3)
    loss, gradient = executor.gradient(learner, batch)
    x = torch.cat([batch.support_x, batch.query_x], 1).flatten(0, 1)  # (30, 2)
    y = torch.cat([batch.support_y, batch.query_y], 1).flatten(0, 1)
    joint = (learner.net(x) - y).square().mean()
    backward(joint)
    torch.testing.assert_close(loss, joint.detach(), rtol=1e-9, atol=0)
    assert set(gradient) == {name for name, _ in learner.named_parameters()}
    for name, parameter in learner.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("training", [True, False])
def test_prediction_is_that_of_a_network_fine_tuned_by_a_loop_written_by_hand(training: bool, steps: int) -> None:
    learner = finetune(lr=0.1, steps=steps).train(training)
    support_x, support_y, query_x, _ = (tensor[0] for tensor in tasks(1).tensors())
    net = copy.deepcopy(learner.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(mse_loss(net(support_x), support_y))
        optimizer.step()
    torch.testing.assert_close(learner(support_x, support_y, query_x), net(query_x), rtol=1e-9, atol=1e-12)
    assert torch.allclose(net(query_x), learner.net(query_x), rtol=1e-3) == (steps == 0)


@every_executor
def test_fine_tuning_works_where_gradients_are_off_and_leaves_the_weights_untouched(executor: Executor) -> None:
    learner, batch = finetune(lr=0.1, steps=5), tasks(3)
    before = copy.deepcopy(learner.state_dict())
    expected = torch.stack([learner(*task) for task in zip(*batch.tensors()[:3], strict=True)])
    with torch.no_grad():
        predictions = executor.map(learner, "forward", *batch.tensors()[:3])
    assert isinstance(predictions, Tensor)
    torch.testing.assert_close(predictions, expected.detach(), rtol=1e-9, atol=1e-12)
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_it_learns_regression_only() -> None:
    assert FineTune.kinds == ("regression",)
