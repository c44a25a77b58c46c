"""MAML's inner loop is gradient descent, and its meta-gradient is the derivative of the query loss through it."""

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.autograd import backward
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from metaopt.executor import EXECUTORS, Executor, trainable
from metaopt.nn import Encoder
from metaopt.task import TaskBatch, TaskSpec
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_gradient.maml import MAML

VECTORS = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=2, n_shot=2, n_query=2)
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)


class AsIs(Encoder):
    """Features are the example's numbers, so that the network is its linear head."""

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, Encoder.Config())
        (self.n_features,) = x_shape

    def forward(self, x: Tensor) -> Tensor:
        return x


def maml(spec: TaskSpec, cls: type[MAML] = MAML, *, linear: bool = False, **config: object) -> MAML:
    """Return a float64 learner whose parameters, the normalisations' affine ones too, are random."""
    torch.manual_seed(0)
    encoder: Encoder
    if linear:
        encoder = AsIs(spec.x_shape)
    elif len(spec.x_shape) == 1:
        encoder = MLP(spec.x_shape, MLP.Config(width=8))
    else:
        encoder = Conv4(spec.x_shape, Conv4.Config(width=8))
    learner = cls(spec, encoder, cls.Config(**config)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner


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


def loss_of(spec: TaskSpec) -> Callable[[Tensor, Tensor], Tensor]:
    return cross_entropy if spec.kind == "classification" else mse_loss


def adapted_by_hand(learner: MAML, support_x: Tensor, support_y: Tensor, lr: float, steps: int) -> nn.Module:
    """Return a copy of the network after so many steps of torch's own gradient descent."""
    net = copy.deepcopy(learner.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(loss_of(learner.spec)(net(support_x), support_y))
        optimizer.step()
    return net


def meta_loss(learner: MAML, weights: Mapping[str, Tensor], batch: TaskBatch) -> float:
    """Return the mean task loss with these weights, task by task."""
    moved = copy.deepcopy(learner)
    moved.load_state_dict(dict(weights))
    return sum(moved.task_loss(*task).item() for task in zip(*batch.tensors(), strict=True)) / len(batch)


@pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])
def test_after_no_step_the_prediction_is_that_of_the_initial_network(spec: TaskSpec) -> None:
    learner = maml(spec, inner_steps=0)
    support_x, support_y, query_x, _ = one(tasks(spec))
    assert torch.equal(learner(support_x, support_y, query_x), learner.net(query_x))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])
def test_inner_steps_are_gradient_descent_written_by_hand(spec: TaskSpec, steps: int) -> None:
    learner = maml(spec, inner_lr=0.05, inner_steps=steps)
    support_x, support_y, query_x, _ = one(tasks(spec))
    expected = adapted_by_hand(learner, support_x, support_y, 0.05, steps)(query_x)
    assert not torch.allclose(expected, learner.net(query_x), rtol=1e-3), "the steps must matter"
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def test_one_step_of_linear_regression_has_a_closed_form() -> None:
    """With residuals r = X w + b − y, w becomes w − 2 α Xᵀr / n, and b becomes b − 2 α mean(r)."""
    learner = maml(CURVES, linear=True, inner_lr=0.05, inner_steps=1)
    support_x, support_y, query_x, _ = one(tasks(CURVES))
    head = learner.net[1]
    assert isinstance(head, nn.Linear)
    residual = support_x @ head.weight.T + head.bias - support_y  # (n_support, 1)
    weight = head.weight.T - 2 * 0.05 * support_x.T @ residual / len(support_x)
    bias = head.bias - 2 * 0.05 * residual.mean()
    prediction = learner(support_x, support_y, query_x)
    torch.testing.assert_close(prediction, query_x @ weight + bias, rtol=1e-9, atol=1e-12)


@every_executor
@pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])
def test_the_second_order_meta_gradient_matches_finite_differences(spec: TaskSpec, executor: Executor) -> None:
    """One random direction within each parameter, two inner steps, two tasks."""
    learner, batch = maml(spec, inner_lr=0.1, inner_steps=2), tasks(spec, 2)
    loss, gradient = executor.gradient(learner, batch)
    weights = {name: weight.detach().clone() for name, weight in learner.named_parameters()}
    torch.testing.assert_close(loss.item(), meta_loss(learner, weights, batch), rtol=1e-9, atol=0)
    size, draw = 1e-7, Generator().manual_seed(5)
    slopes, expected = [], []
    for name, weight in weights.items():
        direction = torch.randn(weight.shape, dtype=torch.float64, generator=draw)
        above = meta_loss(learner, weights | {name: weight + size * direction}, batch)
        below = meta_loss(learner, weights | {name: weight - size * direction}, batch)
        expected.append((above - below) / (2 * size))
        slopes.append((gradient[name] * direction).sum().item())
    assert min(map(abs, expected)) > 1e-4, "every parameter must matter"
    torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-8)
    approximate = maml(spec, inner_lr=0.1, inner_steps=2, first_order=True)
    _, first_order = executor.gradient(approximate, batch)
    assert any(not torch.allclose(first_order[name], gradient[name], rtol=1e-2) for name in gradient), (
        "second derivatives must matter, or this test could not tell"
    )


def test_the_meta_gradient_of_linear_regression_has_a_closed_form() -> None:
    """With one step w' = w − α H w + …, H = 2 XᵀX / n, the meta-gradient is (I − α H) ∇L_query(w')."""
    learner = maml(CURVES, linear=True, inner_lr=0.05, inner_steps=1)
    support_x, support_y, query_x, query_y = one(tasks(CURVES))
    head = learner.net[1]
    assert isinstance(head, nn.Linear)
    x, query = (torch.cat([half, torch.ones(len(half), 1).double()], 1) for half in (support_x, query_x))
    w = torch.cat([head.weight.T, head.bias[:, None]])  # (n_features + 1, 1): the bias is the weight of a constant
    curvature = 2 * x.T @ x / len(x)
    adapted = w - 0.05 * 2 * x.T @ (x @ w - support_y) / len(x)
    at_adapted = 2 * query.T @ (query @ adapted - query_y) / len(query)
    expected = at_adapted - 0.05 * curvature @ at_adapted
    gradient = torch.autograd.grad(learner.task_loss(support_x, support_y, query_x, query_y), [head.weight, head.bias])
    torch.testing.assert_close(torch.cat([gradient[0].T, gradient[1][:, None]]), expected, rtol=1e-9, atol=1e-12)


@every_executor
@pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])
def test_the_first_order_gradient_is_the_query_gradient_at_the_adapted_weights(
    spec: TaskSpec, executor: Executor
) -> None:
    learner, batch = maml(spec, inner_lr=0.1, inner_steps=3, first_order=True), tasks(spec)
    _, gradient = executor.gradient(learner, batch)
    support_x, support_y, query_x, query_y = one(batch)
    net = adapted_by_hand(learner, support_x, support_y, 0.1, 3)
    net.zero_grad()
    backward(loss_of(spec)(net(query_x), query_y))
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradient[f"net.{name}"], parameter.grad, rtol=1e-9, atol=1e-12)


class LinearSupport(MAML):
    """MAML whose support loss is linear in the weights of a linear network: its second derivatives are 0."""

    def loss(self, predictions: Tensor, y: Tensor) -> Tensor:
        return -(predictions * y).mean()

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return mse_loss(self(support_x, support_y, query_x), query_y)


@every_executor
def test_first_and_second_order_agree_where_the_support_loss_is_linear_in_the_weights(executor: Executor) -> None:
    batch, agree = tasks(CURVES, 2), {}
    for cls in (LinearSupport, MAML):
        _, exact = executor.gradient(maml(CURVES, cls, linear=True, inner_steps=2), batch)
        _, approximate = executor.gradient(maml(CURVES, cls, linear=True, inner_steps=2, first_order=True), batch)
        agree[cls] = all(torch.allclose(exact[name], approximate[name], rtol=1e-9) for name in exact)
    assert agree == {LinearSupport: True, MAML: False}


def test_training_takes_inner_steps_and_meta_testing_test_steps() -> None:
    learner = maml(VECTORS, inner_lr=0.1, inner_steps=1, test_steps=4)
    support_x, support_y, query_x, _ = one(tasks(VECTORS))
    expected = [adapted_by_hand(learner, support_x, support_y, 0.1, steps)(query_x) for steps in (1, 4)]
    assert not torch.allclose(expected[0], expected[1], rtol=1e-3)
    for training, prediction in zip((True, False), expected, strict=True):
        learner.train(training)
        torch.testing.assert_close(learner(support_x, support_y, query_x), prediction, rtol=1e-9, atol=1e-12)


@every_executor
def test_it_adapts_where_gradients_are_off_as_where_they_are_on(executor: Executor) -> None:
    learner, batch = maml(VECTORS, test_steps=3).eval(), tasks(VECTORS, 2)
    adapted = executor.map(learner, "forward", *batch.tensors()[:3])
    with torch.no_grad():
        silent = executor.map(learner, "forward", *batch.tensors()[:3])
    assert isinstance(adapted, Tensor)
    assert isinstance(silent, Tensor)
    assert not silent.requires_grad
    torch.testing.assert_close(silent, adapted.detach(), rtol=1e-12, atol=0)
    assert not torch.allclose(silent[0], learner.net(batch.query_x[0]), rtol=1e-3), "it must have adapted"


@every_executor
def test_adaptation_leaves_the_initial_weights_untouched(executor: Executor) -> None:
    learner, batch = maml(PICTURES, inner_lr=0.5, inner_steps=2), tasks(PICTURES, 2)
    before = copy.deepcopy(learner.state_dict())
    executor.gradient(learner, batch)
    executor.map(learner, "forward", *batch.tensors()[:3])
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_adaptation_fits_the_support_set() -> None:
    learner = maml(CURVES, inner_lr=0.05, test_steps=20).eval()
    support_x, support_y, _, _ = one(tasks(CURVES))
    before = learner.loss(learner.net(support_x), support_y)
    after = learner.loss(learner(support_x, support_y, support_x), support_y)
    assert after < 0.5 * before


def test_the_network_is_the_encoder_and_a_linear_head_and_each_parameter_has_one_name() -> None:
    learner = maml(PICTURES)
    n_features, n_way = 8, 2
    assert all(name.startswith("net.") for name in learner.state_dict())
    assert list(learner.state_dict()) == list(trainable(learner))
    encoder = Conv4(PICTURES.x_shape, Conv4.Config(width=8))
    in_encoder = sum(parameter.numel() for parameter in encoder.parameters())
    assert sum(p.numel() for p in learner.parameters()) == in_encoder + n_features * n_way + n_way
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    head = learner.net[1]
    assert isinstance(head, nn.Linear)
    expected = learner.net[0](x) @ head.weight.T + head.bias
    torch.testing.assert_close(functional_call(learner.net, dict(learner.net.named_parameters()), x), expected)
