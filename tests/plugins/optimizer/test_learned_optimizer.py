"""The learned optimiser is two LSTMs a coordinate, trained by truncated backpropagation, and beats SGD and Adam."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from metaopt import seeds
from metaopt.executor import EXECUTORS, Executor, Loop, Traced, trainable
from metaopt.learner import Gradients
from metaopt.nn import Encoder
from metaopt.task import TaskBatch, TaskSpec
from metaopt.train import Budget, Outer, meta_test, meta_train
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_objectives.mse import MSE
from metaopt_optimizer.coordinates import flatten, preprocess, unflatten
from metaopt_optimizer.learned_optimizer import LearnedOptimizer, Optimizer, optimize
from metaopt_tasks.sinusoid import Sinusoid

VECTORS = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=2, n_shot=2, n_query=2)
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
every_kind = pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])

Function = Callable[[Tensor], Tensor]


def optimizer_of(n_hidden: int = 4, *, preprocessed: bool = True) -> Optimizer:
    """Return a float64 optimiser whose every weight is random."""
    torch.manual_seed(0)
    optimizer = Optimizer(n_hidden, scale=0.1, preprocessed=preprocessed).double()
    for parameter in optimizer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return optimizer


def quadratic(n: int = 5) -> tuple[Function, Tensor]:
    """Return ‖Wθ − y‖² of n numbers, and a start."""
    draw = Generator().manual_seed(0)
    w, y, start = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((n, n), (n,), (n,)))
    return lambda theta: (w @ theta - y).square().sum(), start


def by_torchs_cells(optimizer: Optimizer, function: Function, start: Tensor, steps: int) -> list[Tensor]:
    """Return the points visited, with torch's own LSTM cells and gradients, which count as constants."""
    cells, states = [], []
    for lstm in (optimizer.first, optimizer.second):
        n_inputs = lstm.weight.shape[1] - lstm.n_hidden
        weights = {
            "weight_ih": lstm.weight[:, :n_inputs],
            "weight_hh": lstm.weight[:, n_inputs:],
            "bias_ih": lstm.bias[:, 0],
            "bias_hh": torch.zeros(4 * lstm.n_hidden, dtype=torch.float64),
        }
        cells.append((nn.LSTMCell(n_inputs, lstm.n_hidden).double(), weights))
        states.append((torch.zeros(len(start), lstm.n_hidden, dtype=torch.float64),) * 2)
    theta, points = start, []
    for _ in range(steps):
        at = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(at), at)
        seen = (
            preprocess(gradient).T
            if optimizer.first.weight.shape[1] > optimizer.first.n_hidden + 1
            else gradient[:, None]
        )
        for layer, (cell, weights) in enumerate(cells):
            states[layer] = functional_call(cell, weights, (seen, states[layer]))
            seen = states[layer][0]
        theta = theta + optimizer.scale * optimizer.change(seen)[:, 0]
        points.append(theta)
    return points


@pytest.mark.parametrize("preprocessed", [True, False])
def test_points_and_their_gradients_are_those_of_torchs_cells(preprocessed: bool) -> None:
    optimizer, (function, start) = optimizer_of(preprocessed=preprocessed), quadratic()
    start.requires_grad_()
    points, _ = optimize(optimizer, function, start, 4)
    expected = by_torchs_cells(optimizer, function, start, 4)
    assert len(points) == 4
    torch.testing.assert_close(points, expected, rtol=1e-9, atol=1e-12)
    inputs = [start, *optimizer.parameters()]
    ours, torchs = (
        torch.autograd.grad(torch.stack([function(point) for point in way]).sum(), inputs) for way in (points, expected)
    )
    for value, reference in zip(ours, torchs, strict=True):
        assert reference.abs().max() > 1e-3
        torch.testing.assert_close(value, reference, rtol=1e-8, atol=1e-11)


def test_going_on_from_the_last_point_with_the_state_is_going_on() -> None:
    optimizer, (function, start) = optimizer_of(), quadratic()
    whole, end = optimize(optimizer, function, start, 7)
    first, state = optimize(optimizer, function, start, 3)
    second, end_of_second = optimize(optimizer, function, first[-1], 4, state)
    torch.testing.assert_close(first + second, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(end_of_second, end, rtol=1e-12, atol=0)


def test_the_gradient_is_exact_where_the_functions_gradient_is_constant() -> None:
    """Of a linear function nothing is left out, so finite differences in the optimiser's weights agree."""
    optimizer, slope = optimizer_of(), torch.tensor([1.0, -0.3, 0.02], dtype=torch.float64)

    def loss() -> Tensor:
        points, _ = optimize(optimizer, lambda theta: slope @ theta, torch.zeros(3, dtype=torch.float64), 5)
        return torch.stack([(point - 1).square().sum() for point in points]).sum()

    parameters = list(optimizer.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    draw, size = Generator().manual_seed(1), 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=draw)
        losses = []
        with torch.no_grad():
            for way in (1, -2, 1):  # to one side, to the other, and back
                parameter.add_(way * size * direction)
                losses.append(loss())
        above, below, _ = losses
        slope_here = float(above - below) / (2 * size)
        assert abs(slope_here) > 1e-4
        assert float((gradient * direction).sum()) == pytest.approx(slope_here, rel=1e-5)


def quadratics(n: int, draw: Generator) -> Function:
    """Return the sum of n functions ‖Wθ − y‖² of ten numbers each, W and y standard normal (section 3.1)."""
    w, y = torch.randn(n, 10, 10, generator=draw), torch.randn(n, 10, generator=draw)
    return lambda theta: ((w @ theta.view(n, 10, 1))[:, :, 0] - y).square().sum()


def near_zero(n: int, draw: Generator) -> Tensor:
    return 0.01 * torch.randn(n * 10, generator=draw)


def meta_train_on_quadratics(
    optimizer: Optimizer, runs: int, batch: int = 8, steps: int = 100, unroll: int = 20
) -> None:
    draw, adam = Generator().manual_seed(0), torch.optim.Adam(optimizer.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, runs * steps // unroll)
    for _ in range(runs):
        function, point, state = quadratics(batch, draw), near_zero(batch, draw), None
        for _ in range(steps // unroll):
            points, state = optimize(optimizer, function, point, unroll, state)
            adam.zero_grad()
            (torch.stack([function(each) for each in points]).sum() / batch).backward()
            adam.step()
            schedule.step()
            point, state = points[-1].detach(), tuple(each.detach() for each in state)


def errors_of(name: str, lr: float, function: Function, start: Tensor, steps: int = 100) -> list[float]:
    """Return the function after each step of torch's own optimiser."""
    theta, values = start.clone().requires_grad_(), []
    optimizer = getattr(torch.optim, name)([theta], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        function(theta).backward()
        optimizer.step()
        values.append(float(function(theta.detach())))
    return values


def test_it_beats_sgd_and_adam_at_their_own_best_rates_on_random_quadratics() -> None:
    """After 20 steps, after 100, and on the mean of the way there, on functions that it has not seen."""
    torch.manual_seed(0)
    learned = Optimizer(preprocessed=False)
    meta_train_on_quadratics(learned, runs=60)
    draw = Generator().manual_seed(1)
    function, start = quadratics(100, draw), near_zero(100, draw)
    with torch.no_grad():
        way = [float(function(point)) for point in optimize(learned, function, start, 100)[0]]
    rates = [10 ** (k / 4) for k in range(-16, 5)]  # 0.0001 to 10
    for name in ("SGD", "Adam"):
        ways = [errors_of(name, lr, function, start) for lr in rates]
        for summary in (lambda way: way[19], lambda way: way[99], lambda way: sum(way) / 100):
            values = [summary(way) for way in ways]
            best = min(value for value in values if value == value)
            assert best not in (values[0], values[-1]), "the grid must hold the best rate inside"
            assert summary(way) < 0.9 * best, name


def learner_of(spec: TaskSpec, **config: object) -> LearnedOptimizer:
    """Return a float64 learner whose optimiser is random."""
    torch.manual_seed(0)
    encoder: Encoder = MLP(spec.x_shape, MLP.Config(width=8))
    if len(spec.x_shape) == 3:
        encoder = Conv4(spec.x_shape, Conv4.Config(width=8))
    learner = LearnedOptimizer(spec, encoder, LearnedOptimizer.Config(**{"hidden": 4, **config})).double()  # type: ignore[arg-type]
    for parameter in learner.optimizer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return learner


def tasks(spec: TaskSpec, n_tasks: int = 2, seed: int = 0) -> TaskBatch:
    draw = Generator().manual_seed(seed)

    def half(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n_tasks, spec.n_way * n, *spec.x_shape, dtype=torch.float64, generator=draw)
        if spec.kind == "regression":
            return x, torch.randn(n_tasks, n, spec.y_size, dtype=torch.float64, generator=draw)
        return x, torch.rand(n_tasks, spec.n_way * n, generator=draw).argsort(1) % spec.n_way

    return TaskBatch(*half(spec.n_shot), *half(spec.n_query))


def loss_on(learner: LearnedOptimizer, x: Tensor, y: Tensor) -> Function:
    """Return the network's loss on these examples as a function of its weights in a row."""
    like = {name: weight.detach() for name, weight in learner.net.named_parameters()}
    return lambda point: learner.loss(functional_call(learner.net, unflatten(point, like), x), y)


@every_kind
def test_prediction_optimises_the_support_loss_for_all_unrolls(spec: TaskSpec) -> None:
    learner = learner_of(spec, unroll=2, unrolls=3)
    support_x, support_y, query_x, _ = (tensor[0] for tensor in tasks(spec).tensors())
    weights = dict(learner.net.named_parameters())
    points = by_torchs_cells(learner.optimizer, loss_on(learner, support_x, support_y), flatten(weights), 6)
    expected = functional_call(learner.net, unflatten(points[-1], weights), query_x)
    assert not torch.allclose(expected, learner.net(query_x), rtol=1e-3), "the steps must matter"
    for training in (True, False):
        prediction = learner.train(training)(support_x, support_y, query_x)
        torch.testing.assert_close(prediction, expected, rtol=1e-8, atol=1e-10)


@every_executor
@every_kind
@pytest.mark.parametrize("start", ["learned", "given"])
def test_an_outer_step_is_truncated_backpropagation(spec: TaskSpec, start: str, executor: Executor) -> None:
    """An update after each unroll, by the gradient of the query losses along it, of all that follows none."""
    learner, batch = learner_of(spec, start=start, unroll=2, unrolls=3), tasks(spec)
    reference = copy.deepcopy(learner)
    rate, handed = 0.1, []

    def update(gradients: Gradients) -> None:
        handed.append({name: gradient.clone() for name, gradient in gradients.items()})
        with torch.no_grad():
            for name, gradient in gradients.items():
                learner.get_parameter(name).sub_(rate * gradient)

    loss = learner.outer_step(batch, executor, update)

    names, losses = list(trainable(reference)), []
    assert any(name.startswith("net.") for name in names) == (start == "learned")
    carried: list[tuple[Tensor, tuple[Tensor, ...] | None]] = [
        (flatten(dict(reference.net.named_parameters())), None) for _ in range(len(batch))
    ]
    for number in range(3):
        along = []
        for i, (support_x, support_y, query_x, query_y) in enumerate(zip(*batch.tensors(), strict=True)):
            point, state = carried[i]
            points, state = optimize(reference.optimizer, loss_on(reference, support_x, support_y), point, 2, state)
            along += [loss_on(reference, query_x, query_y)(each) for each in points]
            carried[i] = points[-1].detach(), tuple(each.detach() for each in state)
        losses.append(torch.stack(along).mean())
        expected = torch.autograd.grad(losses[-1], [reference.get_parameter(name) for name in names])
        assert set(handed[number]) == set(names)
        with torch.no_grad():
            for name, value in zip(names, expected, strict=True):
                assert value.abs().max() > 1e-6, f"{name} must matter"
                torch.testing.assert_close(handed[number][name], value, rtol=1e-7, atol=1e-10)
                reference.get_parameter(name).sub_(rate * value)
        names = [name for name in names if name.startswith("optimizer.")]
    assert len(handed) == 3
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-8, atol=0, check_device=False)


def test_it_learns_sinusoids() -> None:
    sampler, device = Sinusoid(Sinusoid.Config()), torch.device("cpu")
    spec = sampler.spec(1, 10, 10)
    torch.manual_seed(0)
    learner = LearnedOptimizer(
        spec, MLP((1,), MLP.Config(width=16)), LearnedOptimizer.Config(unroll=3, unrolls=1, hidden=8)
    )

    def error() -> float:
        draw = seeds.generator(0, "tasks")
        return meta_test(learner, sampler, "validation", MSE(None), 100, Loop(), draw=draw, device=device).mean

    before = error()
    meta_train(learner, sampler, Outer(lr=0.01), Budget(tasks=1200), Traced(), seed=0, device=device)
    assert error() < 0.6 * before
