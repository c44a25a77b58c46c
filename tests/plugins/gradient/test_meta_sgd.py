"""Meta-SGD is MAML with a rate for each weight: equal rates are MAML, and rates have gradients in closed form."""

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
from metaopt_gradient.maml import MAML
from metaopt_gradient.meta_sgd import MetaSGD
from metaopt_objectives.mse import MSE
from metaopt_tasks.sinusoid import Sinusoid

VECTORS = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=2, n_shot=2, n_query=2)
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

RATE = 0.125  # has no rounding in float32, in which rates are built

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
every_kind = pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])


def encoder_for(spec: TaskSpec) -> Encoder:
    torch.manual_seed(0)
    if len(spec.x_shape) == 1:
        return MLP(spec.x_shape, MLP.Config(width=8))
    return Conv4(spec.x_shape, Conv4.Config(width=8))


def meta_sgd(spec: TaskSpec, **config: object) -> MetaSGD:
    return MetaSGD(spec, encoder_for(spec), MetaSGD.Config(**config)).double()  # type: ignore[arg-type]


def maml_like(learner: MetaSGD, lr: float, steps: int) -> MAML:
    """Return MAML from the same initial weights."""
    config = MAML.Config(inner_lr=lr, inner_steps=steps, test_steps=steps)
    maml = MAML(learner.spec, encoder_for(learner.spec), config).double()
    maml.net.load_state_dict(learner.net.state_dict())
    return maml


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


def gradient_at(net: nn.Module, spec: TaskSpec, x: Tensor, y: Tensor) -> list[Tensor]:
    loss = (cross_entropy if spec.kind == "classification" else mse_loss)(net(x), y)
    return list(torch.autograd.grad(loss, list(net.parameters())))


@every_kind
def test_every_weight_has_a_rate_of_its_own_and_all_start_alike(spec: TaskSpec) -> None:
    learner = meta_sgd(spec, initial_lr=0.25)
    weights, rates = dict(learner.net.named_parameters()), dict(learner.rates.named_parameters())
    assert {name: weight.shape for name, weight in weights.items()} == {name: r.shape for name, r in rates.items()}
    assert all(rate.eq(0.25).all() for rate in rates.values())
    assert not any(rates[name] is weight for name, weight in weights.items())


@every_executor
@every_kind
@pytest.mark.parametrize("steps", [1, 3])
def test_with_equal_rates_it_is_maml(spec: TaskSpec, steps: int, executor: Executor) -> None:
    """Predictions and meta-gradient; the rates' gradients add up to the derivative by MAML's one rate."""
    learner, batch = meta_sgd(spec, initial_lr=RATE, inner_steps=steps), tasks(spec, 2)
    maml = maml_like(learner, RATE, steps)
    loss, gradient = executor.gradient(learner, batch)
    expected_loss, expected = executor.gradient(maml, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-9, atol=1e-12)
    above, below = (executor.gradient(maml_like(learner, RATE + d, steps), batch)[0] for d in (1e-6, -1e-6))
    slope = float(above - below) / 2e-6
    assert abs(slope) > 1e-3
    by_rates = sum(float(value.sum()) for name, value in gradient.items() if name.startswith("rates."))
    assert by_rates == pytest.approx(slope, rel=1e-5)
    for training in (True, False):
        adapted = executor.map(learner.train(training), "forward", *batch.tensors()[:3])
        expected_predictions = executor.map(maml.train(training), "forward", *batch.tensors()[:3])
        torch.testing.assert_close(adapted, expected_predictions, rtol=1e-9, atol=1e-12)


@every_executor
@every_kind
def test_a_rates_gradient_is_minus_the_support_gradient_times_the_query_gradient(
    spec: TaskSpec, executor: Executor
) -> None:
    """After one step w' = w − a ∘ g the query loss has the derivative −g ∘ ∇L(w') by a (equation 2 of the paper)."""
    learner, batch = meta_sgd(spec), tasks(spec)
    with torch.no_grad():
        for rate in learner.rates.parameters():
            rate.uniform_(-0.2, 0.2)
    _, gradient = executor.gradient(learner, batch)
    support_x, support_y, query_x, query_y = one(batch)
    support = gradient_at(learner.net, spec, support_x, support_y)
    adapted = encoder_for(spec), nn.Linear(learner.net[1].in_features, spec.n_outputs)
    net = nn.Sequential(*adapted).double()
    with torch.no_grad():
        for weight, before, rate, g in zip(
            net.parameters(), learner.net.parameters(), learner.rates.parameters(), support, strict=True
        ):
            weight.copy_(before - rate * g)
    query = gradient_at(net, spec, query_x, query_y)
    for (name, _), g, h in zip(learner.rates.named_parameters(), support, query, strict=True):
        torch.testing.assert_close(gradient[f"rates.{name}"], -g * h, rtol=1e-9, atol=1e-12)


def test_with_rates_of_zero_it_does_not_adapt() -> None:
    learner = meta_sgd(VECTORS, inner_steps=3)
    for rate in learner.rates.parameters():
        nn.init.zeros_(rate)
    support_x, support_y, query_x, _ = one(tasks(VECTORS))
    assert torch.equal(learner(support_x, support_y, query_x), learner.net(query_x))


def test_it_learns_sinusoids() -> None:
    sampler, device = Sinusoid(Sinusoid.Config()), torch.device("cpu")
    spec = sampler.spec(1, 10, 10)
    torch.manual_seed(0)
    learner = MetaSGD(spec, MLP((1,), MLP.Config()), MetaSGD.Config(initial_lr=0.01))

    def error() -> float:
        draw = seeds.generator(0, "tasks")
        return meta_test(learner, sampler, "validation", MSE(None), 100, Loop(), draw=draw, device=device).mean

    before = error()
    meta_train(learner, sampler, Outer(lr=0.003), Budget(tasks=2000), Traced(), seed=0, device=device)
    assert error() < 0.5 * before
