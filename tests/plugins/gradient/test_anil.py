"""ANIL is MAML whose inner loop leaves the encoder alone: gradient descent on a linear model of fixed features."""

import copy

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from metaopt import seeds
from metaopt.executor import EXECUTORS, Executor, Loop, Traced
from metaopt.nn import Encoder
from metaopt.task import TaskBatch, TaskSpec
from metaopt.train import Budget, Outer, meta_test, meta_train
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_gradient.anil import ANIL
from metaopt_gradient.maml import MAML
from metaopt_gradient.meta_sgd import MetaSGD
from metaopt_objectives.mse import MSE
from metaopt_tasks.sinusoid import Sinusoid

VECTORS = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=2, n_shot=2, n_query=2)
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
every_kind = pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])


class AsIs(Encoder):
    """Features are the example's numbers, so that the network is its linear head."""

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, Encoder.Config())
        (self.n_features,) = x_shape

    def forward(self, x: Tensor) -> Tensor:
        return x


def encoder_for(spec: TaskSpec) -> Encoder:
    torch.manual_seed(0)
    if len(spec.x_shape) == 1:
        return MLP(spec.x_shape, MLP.Config(width=8))
    return Conv4(spec.x_shape, Conv4.Config(width=8))


def anil(spec: TaskSpec, encoder: Encoder | None = None, **config: object) -> ANIL:
    return ANIL(spec, encoder or encoder_for(spec), ANIL.Config(**config)).double()  # type: ignore[arg-type]


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


@every_kind
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_inner_steps_are_gradient_descent_on_the_head_alone(spec: TaskSpec, steps: int) -> None:
    learner = anil(spec, inner_lr=0.05, inner_steps=steps)
    support_x, support_y, query_x, _ = one(tasks(spec))
    head, loss = copy.deepcopy(learner.head), cross_entropy if spec.kind == "classification" else mse_loss
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(head(learner.encoder(support_x).detach()), support_y).backward()
        optimizer.step()
    expected = head(learner.encoder(query_x))
    assert torch.allclose(expected, learner.head(learner.encoder(query_x)), rtol=1e-3) == (steps == 0)
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_the_support_set_is_encoded_once_whatever_the_number_of_steps(steps: int) -> None:
    learner, seen = anil(PICTURES, inner_steps=steps), []
    learner.encoder.register_forward_hook(lambda module, inputs, features: seen.append(inputs[0]))
    support_x, support_y, query_x, _ = one(tasks(PICTURES))
    learner(support_x, support_y, query_x)
    assert [len(x) for x in seen] == [len(support_x), len(query_x)]


@every_executor
@pytest.mark.parametrize("spec", [VECTORS, CURVES], ids=["classification", "regression"])
def test_with_nothing_but_a_head_it_is_maml(spec: TaskSpec, executor: Executor) -> None:
    learner, batch = anil(spec, AsIs(spec.x_shape), inner_lr=0.125, inner_steps=3), tasks(spec, 2)
    maml = MAML(spec, AsIs(spec.x_shape), MAML.Config(inner_lr=0.125, inner_steps=3)).double()
    maml.net[1].load_state_dict(learner.head.state_dict())
    loss, gradient = executor.gradient(learner, batch)
    expected_loss, expected = executor.gradient(maml, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    assert set(gradient) == {"head.weight", "head.bias"}
    for name, value in gradient.items():
        assert value.abs().max() > 1e-3
        torch.testing.assert_close(value, expected[name.replace("head", "net.1")], rtol=1e-9, atol=1e-12)


@every_executor
@every_kind
def test_it_is_meta_sgd_whose_rates_are_zero_in_the_encoder(spec: TaskSpec, executor: Executor) -> None:
    """Two ways to write one meta-gradient, with and without the encoder in the inner loop."""
    learner, batch = anil(spec, inner_lr=0.125, inner_steps=3), tasks(spec, 2)
    other = MetaSGD(spec, encoder_for(spec), MetaSGD.Config(initial_lr=0.125, inner_steps=3)).double()
    other.net[0].load_state_dict(learner.encoder.state_dict())
    other.net[1].load_state_dict(learner.head.state_dict())
    for rate in other.rates[0].parameters():
        nn.init.zeros_(rate)
    loss, gradient = executor.gradient(learner, batch)
    expected_loss, expected = executor.gradient(other, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    for name, value in gradient.items():
        own = name.replace("encoder", "net.0").replace("head", "net.1")
        torch.testing.assert_close(value, expected[own], rtol=1e-9, atol=1e-12)
    encoder_moves = [value.abs().max() for name, value in gradient.items() if name.startswith("encoder")]
    assert max(encoder_moves) > 1e-3, "the outer loop trains the encoder"


def test_training_takes_inner_steps_and_meta_testing_test_steps() -> None:
    learner = anil(VECTORS, inner_steps=1, test_steps=4)
    longer = anil(VECTORS, inner_steps=4, test_steps=1)
    longer.load_state_dict(learner.state_dict())
    support_x, support_y, query_x, _ = one(tasks(VECTORS))
    few, many = learner.train()(support_x, support_y, query_x), learner.eval()(support_x, support_y, query_x)
    assert not torch.allclose(few, many, rtol=1e-3)
    torch.testing.assert_close(longer.train()(support_x, support_y, query_x), many, rtol=1e-12, atol=0)
    torch.testing.assert_close(longer.eval()(support_x, support_y, query_x), few, rtol=1e-12, atol=0)


def test_it_learns_sinusoids() -> None:
    sampler, device = Sinusoid(Sinusoid.Config()), torch.device("cpu")
    spec = sampler.spec(1, 10, 10)
    torch.manual_seed(0)
    learner = ANIL(spec, MLP((1,), MLP.Config()), ANIL.Config(inner_lr=0.01))

    def error() -> float:
        draw = seeds.generator(0, "tasks")
        return meta_test(learner, sampler, "validation", MSE(None), 100, Loop(), draw=draw, device=device).mean

    before = error()
    meta_train(learner, sampler, Outer(lr=0.003), Budget(tasks=1200), Traced(), seed=0, device=device)
    assert error() < 0.5 * before
