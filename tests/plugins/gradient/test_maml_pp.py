"""MAML++ without its additions is MAML, and each addition is the formula that the paper and its code give."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.func import functional_call

from metaopt import seeds
from metaopt.executor import Executor, Loop, Vmap
from metaopt.nn import Encoder
from metaopt.task import TaskBatch, TaskSpec
from metaopt.train import Budget, Outer, meta_test, meta_train
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_gradient.maml import MAML
from metaopt_gradient.maml_pp import MAMLPlusPlus, step_importance
from metaopt_objectives.mse import MSE
from metaopt_tasks.sinusoid import Sinusoid

VECTORS = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=2, n_shot=2, n_query=2)
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

RATE = 0.125  # has no rounding in float32, in which rates are built

both_executors = pytest.mark.parametrize("executor", [Loop(), Vmap()], ids=["loop", "vmap"])
every_kind = pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])


def encoder_for(spec: TaskSpec) -> Encoder:
    torch.manual_seed(0)
    if len(spec.x_shape) == 1:
        return MLP(spec.x_shape, MLP.Config(width=8))
    return Conv4(spec.x_shape, Conv4.Config(width=8))


def maml_pp(spec: TaskSpec, progress: float = 0.0, **config: object) -> MAMLPlusPlus:
    settings: dict[str, Any] = {"initial_lr": RATE, **config}
    learner = MAMLPlusPlus(spec, encoder_for(spec), MAMLPlusPlus.Config(**settings)).double()
    learner.progress = progress
    return learner


def maml_like(learner: MAMLPlusPlus, steps: int, lr: float = RATE, *, first_order: bool = False) -> MAML:
    """Return MAML from the same initial weights."""
    config = MAML.Config(inner_lr=lr, inner_steps=steps, test_steps=steps, first_order=first_order)
    maml = MAML(learner.spec, encoder_for(learner.spec), config).double()
    maml.net.load_state_dict(learner.net.state_dict())
    return maml


def tasks(spec: TaskSpec, n_tasks: int = 2, seed: int = 0) -> TaskBatch:
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


@both_executors
@every_kind
def test_late_in_meta_training_it_is_maml_until_the_rates_differ(spec: TaskSpec, executor: Executor) -> None:
    """Predictions and meta-gradient; the rates' gradients add up to the derivative by MAML's one rate."""
    learner, batch = maml_pp(spec, progress=0.5, inner_steps=3), tasks(spec)
    loss, gradient = executor.gradient(learner, batch)
    expected_loss, expected = executor.gradient(maml_like(learner, 3), batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-9, atol=1e-12)
    above, below = (executor.gradient(maml_like(learner, 3, RATE + d), batch)[0] for d in (1e-6, -1e-6))
    slope = float(above - below) / 2e-6
    assert abs(slope) > 1e-3
    assert gradient["rates"].sum().item() == pytest.approx(slope, rel=1e-5)
    predictions = executor.map(learner.eval(), "forward", *batch.tensors()[:3])
    expected_predictions = executor.map(maml_like(learner, 3).eval(), "forward", *batch.tensors()[:3])
    torch.testing.assert_close(predictions, expected_predictions, rtol=1e-9, atol=1e-12)


@both_executors
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.39, 0.41, 1.0])
def test_second_derivatives_come_in_once_their_share_of_meta_training_is_over(
    progress: float, executor: Executor
) -> None:
    learner = maml_pp(VECTORS, progress, inner_steps=2, multi_step=0.0, first_order=0.4)
    _, gradient = executor.gradient(learner, tasks(VECTORS))
    for first_order in (False, True):
        _, expected = executor.gradient(maml_like(learner, 2, first_order=first_order), tasks(VECTORS))
        same = all(torch.allclose(gradient[name], expected[name], rtol=1e-9) for name in expected)
        assert same == (first_order == (progress < 0.4))


@both_executors
def test_at_first_every_steps_query_loss_counts_alike(executor: Executor) -> None:
    learner = maml_pp(VECTORS, progress=0.0, inner_steps=3, multi_step=0.1, first_order=0.0)
    loss, gradient = executor.gradient(learner, tasks(VECTORS))
    steps = [executor.gradient(maml_like(learner, n), tasks(VECTORS)) for n in (1, 2, 3)]
    torch.testing.assert_close(loss, torch.stack([step for step, _ in steps]).mean(), rtol=1e-9, atol=0)
    for name in steps[0][1]:
        mean = torch.stack([step[name] for _, step in steps]).mean(0)
        torch.testing.assert_close(gradient[name], mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("progress", [0.05, 0.0999, 0.1, 0.7])
def test_the_loss_weighs_the_steps_by_their_importance_and_then_the_last_alone(progress: float) -> None:
    learner = maml_pp(VECTORS, progress, inner_steps=3, multi_step=0.1)
    task = one(tasks(VECTORS))
    losses = [maml_like(learner, n).task_loss(*task) for n in (1, 2, 3)]
    importance = step_importance(progress / 0.1, 3) if progress < 0.1 else [0, 0, 1]
    expected = sum(share * loss for share, loss in zip(importance, losses, strict=True))
    torch.testing.assert_close(learner.task_loss(*task), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_importance_moves_from_all_steps_alike_to_the_last(n_steps: int) -> None:
    assert step_importance(0.0, n_steps) == pytest.approx([1 / n_steps] * n_steps)
    assert step_importance(1.0, n_steps) == pytest.approx(
        [0.03 / n_steps] * (n_steps - 1) + [1 - 0.03 * (n_steps - 1) / n_steps]
    )
    shares = [step_importance(annealed / 20, n_steps) for annealed in range(21)]
    assert all(sum(share) == pytest.approx(1) and min(share) > 0 for share in shares)
    for before, after in pairwise(shares):
        assert all(a <= b for a, b in zip(after[:-1], before[:-1], strict=True))
        assert after[-1] >= before[-1]


def test_importance_is_that_of_the_authors_schedule() -> None:
    """Five steps, a tenth of the way: each earlier weight has lost a tenth of 1/5, and the last has gained it all."""
    assert step_importance(0.1, 5) == pytest.approx([0.18, 0.18, 0.18, 0.18, 0.28])


@pytest.mark.parametrize(("step", "layer"), [(0, 0), (1, 3), (2, 5)])
def test_a_rate_is_of_one_step_and_one_layer(step: int, layer: int) -> None:
    """With all other rates zero, that layer alone takes one step of gradient descent."""
    learner = maml_pp(VECTORS, inner_steps=3)
    names = [name for name, _ in learner.net.named_parameters()]
    assert learner.rates.shape == (3, len(names))
    with torch.no_grad():
        learner.rates.zero_()
        learner.rates[step, layer] = 0.3
    support_x, support_y, query_x, _ = one(tasks(VECTORS))
    net = copy.deepcopy(learner.net)
    learner.loss(net(support_x), support_y).backward()
    weights = {name: weight.detach() for name, weight in net.named_parameters()}
    moved = net.get_parameter(names[layer])
    assert moved.grad is not None
    weights[names[layer]] = moved.detach() - 0.3 * moved.grad
    for training in (True, False):
        expected = functional_call(net, weights, query_x)
        assert not torch.allclose(expected, net(query_x), rtol=1e-6)
        prediction = learner.train(training)(support_x, support_y, query_x)
        torch.testing.assert_close(prediction, expected, rtol=1e-9, atol=1e-12)


def test_its_defaults_are_the_papers_outer_loop() -> None:
    fields = {name.removeprefix("outer."): value for name, value in MAMLPlusPlus.defaults.items()}
    assert Outer(**fields) == Outer(optimizer="adam", lr=1e-3, schedule="cosine")


def test_it_learns_sinusoids() -> None:
    sampler, device = Sinusoid(Sinusoid.Config()), torch.device("cpu")
    spec = sampler.spec(1, 10, 10)
    torch.manual_seed(0)
    learner = MAMLPlusPlus(spec, MLP((1,), MLP.Config()), MAMLPlusPlus.Config(initial_lr=0.01, inner_steps=2))

    def error() -> float:
        draw = seeds.generator(0, "tasks")
        return meta_test(learner, sampler, "validation", MSE(None), 100, Loop(), draw=draw, device=device).mean

    before = error()
    meta_train(learner, sampler, Outer(lr=0.003), Budget(tasks=1200), Vmap(), seed=0, device=device)
    assert error() < 0.5 * before
