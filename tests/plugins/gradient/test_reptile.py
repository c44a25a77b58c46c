"""Reptile trains on a task with torch's own optimisers' formulas and moves its weights to where that leads."""

import copy

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.autograd import backward
from torch.nn.functional import cross_entropy, mse_loss

from metaopt.executor import EXECUTORS, Executor
from metaopt.learner import Gradients
from metaopt.task import Examples, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.train import Budget, Outer, meta_train
from metaopt_encoders.mlp import MLP
from metaopt_gradient.reptile import Reptile

CLASSES = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)  # 6 supports and 9 queries
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
both_kinds = pytest.mark.parametrize("spec", [CLASSES, CURVES], ids=["classification", "regression"])
both_optimizers = pytest.mark.parametrize("optimizer", ["adam", "sgd"])


def reptile(spec: TaskSpec, **config: object) -> Reptile:
    torch.manual_seed(0)
    return Reptile(spec, MLP(spec.x_shape, MLP.Config(width=8)), Reptile.Config(**config)).double()  # type: ignore[arg-type]


def tasks(spec: TaskSpec, n_tasks: int = 1, seed: int = 0) -> TaskBatch:
    draw = Generator().manual_seed(seed)

    def half(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n_tasks, spec.n_way * n, *spec.x_shape, dtype=torch.float64, generator=draw)
        if spec.kind == "regression":
            return x, torch.randn(n_tasks, n, spec.y_size, dtype=torch.float64, generator=draw)
        return x, torch.rand(n_tasks, spec.n_way * n, generator=draw).argsort(1) % spec.n_way

    return TaskBatch(*half(spec.n_shot), *half(spec.n_query))


def one(batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    support_x, support_y, query_x, query_y = (tensor[0] for tensor in batch.tensors())
    return support_x, support_y, query_x, query_y


def joined(batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Return the support and query examples of the one task of a batch together."""
    support_x, support_y, query_x, query_y = one(batch)
    return torch.cat([support_x, query_x]), torch.cat([support_y, query_y])


def joint_gradient(learner: Reptile, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the gradient of ordinary training on (x, y), by name within the network."""
    loss = (cross_entropy if learner.spec.kind == "classification" else mse_loss)(learner.net(x), y)
    names, parameters = zip(*learner.net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def trained_by_hand(learner: Reptile, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Return a copy of the network after a step of torch's own optimiser on each batch."""
    net, config = copy.deepcopy(learner.net), learner.config
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=config.inner_lr)
    if config.inner_optimizer == "adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=config.inner_lr, betas=(0.0, 0.999))
    for x, y in batches:
        optimizer.zero_grad()
        backward((cross_entropy if learner.spec.kind == "classification" else mse_loss)(net(x), y))
        optimizer.step()
    return net


def assert_moved_to(displacement: dict[str, Tensor], learner: Reptile, net: nn.Module) -> None:
    trained = dict(net.named_parameters())
    assert set(displacement) == {*trained, "loss"}
    for name, initial in learner.net.named_parameters():
        torch.testing.assert_close(displacement[name], initial - trained[name], rtol=1e-7, atol=1e-11)


@both_kinds
def test_one_sgd_step_is_displaced_by_the_rate_times_the_joint_gradient(spec: TaskSpec) -> None:
    """With one step on all examples Reptile is joint training (section 5.1 of the paper, k = 1)."""
    learner, batch = reptile(spec, inner_optimizer="sgd", inner_lr=0.05, inner_steps=1, inner_batch=50), tasks(spec)
    displacement = learner.displacement(*one(batch))
    for name, gradient in joint_gradient(learner, *joined(batch)).items():
        torch.testing.assert_close(displacement[name], 0.05 * gradient, rtol=1e-9, atol=1e-14)


@both_kinds
def test_adams_first_step_is_nearly_the_rate_times_the_sign_of_the_gradient(spec: TaskSpec) -> None:
    learner, batch = reptile(spec, inner_optimizer="adam", inner_lr=0.01, inner_steps=1, inner_batch=50), tasks(spec)
    displacement = learner.displacement(*one(batch))
    for name, gradient in joint_gradient(learner, *joined(batch)).items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(displacement[name], 0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-7, atol=1e-12)
        large = gradient.abs() > 1e-4
        torch.testing.assert_close(displacement[name][large], 0.01 * gradient.sign()[large], rtol=2e-4, atol=0)


@both_kinds
@both_optimizers
def test_mini_batches_are_taken_in_turn_from_the_supports_and_then_the_queries(spec: TaskSpec, optimizer: str) -> None:
    """Seven steps of four examples go round the task's eleven or fifteen examples more than once."""
    learner = reptile(spec, inner_optimizer=optimizer, inner_lr=0.02, inner_steps=7, inner_batch=4)
    x, y = joined(tasks(spec))
    in_turn = [[(4 * step + i) % len(x) for i in range(4)] for step in range(7)]
    assert 7 * 4 > len(x) > spec.n_way * spec.n_shot
    net = trained_by_hand(learner, [(x[rows], y[rows]) for rows in in_turn])
    assert_moved_to(learner.displacement(*one(tasks(spec))), learner, net)


@both_kinds
@both_optimizers
def test_a_batch_larger_than_the_task_is_the_whole_task(spec: TaskSpec, optimizer: str) -> None:
    learner = reptile(spec, inner_optimizer=optimizer, inner_lr=0.02, inner_steps=3, inner_batch=50)
    net = trained_by_hand(learner, [joined(tasks(spec))] * 3)
    assert_moved_to(learner.displacement(*one(tasks(spec))), learner, net)


@both_kinds
@both_optimizers
def test_prediction_trains_on_the_support_set_alone_for_test_steps(spec: TaskSpec, optimizer: str) -> None:
    learner = reptile(spec, inner_optimizer=optimizer, inner_lr=0.02, inner_steps=1, inner_batch=4, test_steps=8)
    support_x, support_y, query_x, _ = one(tasks(spec))
    in_turn = [[(4 * step + i) % len(support_x) for i in range(4)] for step in range(8)]
    net = trained_by_hand(learner, [(support_x[rows], support_y[rows]) for rows in in_turn])
    for training in (True, False):
        prediction = learner.train(training)(support_x, support_y, query_x)
        torch.testing.assert_close(prediction, net(query_x), rtol=1e-7, atol=1e-9)
    assert not torch.allclose(prediction, learner.net(query_x), rtol=1e-2), "the steps must matter"


@every_executor
def test_the_outer_step_is_the_mean_displacement_and_the_mean_loss_before_it(executor: Executor) -> None:
    learner, batch = reptile(CLASSES), tasks(CLASSES, 3)
    handed: list[Gradients] = []
    loss = learner.outer_step(batch, executor, handed.append)
    (gradients,) = handed
    each = [learner.displacement(*task) for task in zip(*batch.tensors(), strict=True)]
    assert set(gradients) == {name for name, _ in learner.named_parameters()}
    for name in each[0].keys() - {"loss"}:
        mean = torch.stack([displacement[name] for displacement in each]).mean(0)
        torch.testing.assert_close(gradients[f"net.{name}"], mean, rtol=1e-7, atol=1e-11)
    first = slice(0, learner.config.inner_batch)  # of each task its first mini-batch
    losses = [learner.loss(learner.net(x[first]), y[first]) for x, y in (joined(tasks_of(batch, i)) for i in range(3))]
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-9, atol=0, check_device=False)


def tasks_of(batch: TaskBatch, i: int) -> TaskBatch:
    return TaskBatch(*(tensor[i : i + 1] for tensor in batch.tensors()))


class Same(TaskSampler):
    """Draws the same tasks whatever is asked for."""

    name = "same"
    kind = "classification"

    def __init__(self, batch: TaskBatch) -> None:
        super().__init__(self.Config())
        self.batch = batch

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        assert n_tasks == len(self.batch)
        return self.batch

    def examples(self, n: int, generator: Generator) -> Examples:
        raise AssertionError("Reptile trains on tasks")


@every_executor
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_outer_step_moves_the_weights_that_share_of_the_way_to_the_mean_trained_weights(
    rate: float, executor: Executor
) -> None:
    learner, batch = reptile(CLASSES, inner_lr=0.02, inner_steps=3, inner_batch=50), tasks(CLASSES, 3)
    initial = {name: weight.detach().clone() for name, weight in learner.net.named_parameters()}
    nets = [trained_by_hand(learner, [joined(tasks_of(batch, i))] * 3) for i in range(3)]
    outer = Outer(optimizer="sgd", sgd_lr=rate, schedule="linear", tasks_per_step=3)
    meta_train(learner, Same(batch), outer, Budget(tasks=3), executor, seed=0, device=torch.device("cpu"))
    for name, weight in learner.net.named_parameters():
        mean = torch.stack([net.get_parameter(name) for net in nets]).mean(0)
        torch.testing.assert_close(weight, initial[name] + rate * (mean - initial[name]), rtol=1e-7, atol=1e-10)
        assert not torch.allclose(weight, initial[name])


def test_its_defaults_are_the_outer_loop_of_the_paper() -> None:
    assert Outer(**{name.removeprefix("outer."): value for name, value in Reptile.defaults.items()}) == Outer(
        optimizer="sgd", sgd_lr=1.0, schedule="linear", tasks_per_step=5
    )


@every_executor
def test_training_on_tasks_leaves_the_weights_to_the_outer_step(executor: Executor) -> None:
    learner, batch = reptile(CLASSES), tasks(CLASSES, 3)
    before = copy.deepcopy(learner.state_dict())
    learner.outer_step(batch, executor, lambda gradients: None)
    executor.map(learner, "forward", *batch.tensors()[:3])
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in learner.parameters())


@every_executor
def test_weights_that_are_frozen_are_not_moved(executor: Executor) -> None:
    learner, batch = reptile(CLASSES), tasks(CLASSES, 3)
    learner.net[0].requires_grad_(False)
    handed: list[Gradients] = []
    learner.outer_step(batch, executor, handed.append)
    assert [set(gradients) for gradients in handed] == [{"net.1.weight", "net.1.bias"}]
