"""With its gates fixed the LSTM meta-learner is gradient descent; with any gates it is the paper's equations."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from metaopt import seeds
from metaopt.executor import EXECUTORS, Executor, Loop, Traced
from metaopt.nn import Encoder, descend
from metaopt.task import TaskBatch, TaskSpec
from metaopt.train import Budget, Outer, meta_test, meta_train
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_objectives.mse import MSE
from metaopt_optimizer.lstm_meta import LSTMMetaLearner
from metaopt_tasks.sinusoid import Sinusoid

VECTORS = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=3)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=2, n_shot=2, n_query=2)
CURVES = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=5)

every_executor = pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
every_kind = pytest.mark.parametrize("spec", [VECTORS, PICTURES, CURVES], ids=["vectors", "pictures", "regression"])


def lstm_meta(spec: TaskSpec, **config: object) -> LSTMMetaLearner:
    torch.manual_seed(0)
    encoder: Encoder = MLP(spec.x_shape, MLP.Config(width=8))
    if len(spec.x_shape) == 3:
        encoder = Conv4(spec.x_shape, Conv4.Config(width=8))
    return LSTMMetaLearner(spec, encoder, LSTMMetaLearner.Config(**config)).double()  # type: ignore[arg-type]


def fix_gates(learner: LSTMMetaLearner, *, forget: float, learn: float) -> None:
    """Make both gates constant."""
    for gate, value in ((learner.forget_gate, forget), (learner.input_gate, learn)):
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, torch.tensor(value, dtype=torch.float64).logit().clamp(-50, 50))


def randomise(learner: LSTMMetaLearner) -> None:
    """Give the meta-learner weights with which gates differ from coordinate to coordinate and from step to step."""
    for module in (learner.lstm, learner.forget_gate, learner.input_gate):
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -1, 1)


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


@every_executor
@every_kind
def test_with_forget_1_and_input_alpha_it_is_gradient_descent(spec: TaskSpec, executor: Executor) -> None:
    """Its initial weights are then trained as first-order MAML trains them, for second derivatives are left out."""
    learner, batch = lstm_meta(spec, steps=3), tasks(spec)
    fix_gates(learner, forget=1.0, learn=0.1)

    def descended(support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        weights = descend(
            lambda weights: learner.loss(functional_call(learner.net, weights, support_x), support_y),
            dict(learner.net.named_parameters()),
            lr=0.1,
            steps=3,
            first_order=True,
        )
        predictions: Tensor = functional_call(learner.net, weights, query_x)
        return predictions

    predictions = executor.map(learner, "forward", *batch.tensors()[:3])
    expected = torch.stack([descended(*task) for task in zip(*batch.tensors()[:3], strict=True)])
    assert isinstance(predictions, Tensor)
    torch.testing.assert_close(predictions, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(expected[0], learner.net(batch.query_x[0]), rtol=1e-3), "the steps must matter"
    _, gradient = executor.gradient(learner, batch)
    losses = [learner.loss(e, y) for e, y in zip(expected, batch.query_y, strict=True)]
    by_maml = torch.autograd.grad(torch.stack(losses).mean(), list(learner.net.parameters()))
    for (name, _), value in zip(learner.net.named_parameters(), by_maml, strict=True):
        torch.testing.assert_close(gradient[f"net.{name}"], value, rtol=1e-9, atol=1e-12)


def test_with_the_input_gate_shut_weights_decay_by_the_forget_gate() -> None:
    learner = lstm_meta(VECTORS, steps=3)
    fix_gates(learner, forget=0.9, learn=0.0)
    support_x, support_y, query_x, _ = one(tasks(VECTORS))
    decayed = {name: weight * 0.9**3 for name, weight in learner.net.named_parameters()}
    expected = functional_call(learner.net, decayed, query_x)
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def by_the_equations(
    learner: LSTMMetaLearner, support_x: Tensor, support_y: Tensor, query_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the predictions and the weights, coordinate by coordinate, by torch's own cell and gradients.

    f_t = σ(W_F [h_t, θ_{t−1}, f_{t−1}] + b_F), i_t likewise, θ_t = f_t θ_{t−1} − i_t ∇_t (section 3 of the paper),
    where h_t is the first LSTM's view of ∇_t and of the loss, all of which count as constants.
    """
    lstm, hidden = learner.lstm, learner.config.hidden
    cell = nn.LSTMCell(4, hidden).double()
    of_torch = {
        "weight_ih": lstm.weight[:, :4],
        "weight_hh": lstm.weight[:, 4:],
        "bias_ih": lstm.bias[:, 0],
        "bias_hh": torch.zeros(4 * hidden, dtype=torch.float64),
    }

    def readable(x: Tensor) -> Tensor:
        small = x.abs() < math.exp(-10)
        return torch.stack([(x.abs().log() / 10).where(~small, -1.0), x.sign().where(~small, math.exp(10) * x)], 1)

    names, initial = zip(*learner.net.named_parameters(), strict=True)
    theta = torch.cat([weight.reshape(-1) for weight in initial])

    def weights(vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([weight.numel() for weight in initial])
        return {name: part.view_as(w) for name, part, w in zip(names, parts, initial, strict=True)}

    loss_of = cross_entropy if learner.spec.kind == "classification" else mse_loss
    forget = learn = torch.zeros(len(theta), 1, dtype=torch.float64)
    state = (torch.zeros(len(theta), hidden, dtype=torch.float64),) * 2
    for _ in range(learner.config.steps):
        at = theta.detach().requires_grad_()
        loss = loss_of(functional_call(learner.net, weights(at), support_x), support_y)
        (gradient,) = torch.autograd.grad(loss, at)
        inputs = torch.cat([readable(gradient), readable(loss.detach()[None]).expand(len(theta), 2)], 1)
        state = functional_call(cell, of_torch, (inputs, state))
        forget = learner.forget_gate(torch.cat([state[0], theta[:, None], forget], 1)).sigmoid()
        learn = learner.input_gate(torch.cat([state[0], theta[:, None], learn], 1)).sigmoid()
        theta = forget[:, 0] * theta - learn[:, 0] * gradient
    return functional_call(learner.net, weights(theta), query_x), theta


@every_executor
@every_kind
def test_predictions_and_meta_gradient_are_the_papers_equations(spec: TaskSpec, executor: Executor) -> None:
    learner, batch = lstm_meta(spec, steps=3, hidden=4), tasks(spec)
    randomise(learner)
    results = [by_the_equations(learner, *task) for task in zip(*batch.tensors()[:3], strict=True)]
    predictions = executor.map(learner, "forward", *batch.tensors()[:3])
    assert isinstance(predictions, Tensor)
    torch.testing.assert_close(predictions, torch.stack([each for each, _ in results]), rtol=1e-8, atol=1e-10)
    losses = [learner.loss(each, y) for (each, _), y in zip(results, batch.query_y, strict=True)]
    loss, gradient = executor.gradient(learner, batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-8, atol=0, check_device=False)
    parameters = dict(learner.named_parameters())
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    for name, value in zip(parameters, expected, strict=True):
        assert value.abs().max() > 1e-6, f"{name} must matter"
        torch.testing.assert_close(gradient[name], value, rtol=1e-7, atol=1e-10)


@every_kind
def test_it_begins_near_gradient_descent_at_the_initial_rate(spec: TaskSpec) -> None:
    learner = lstm_meta(spec, initial_lr=0.03, steps=1)
    support_x, support_y, query_x, _ = one(tasks(spec))
    _, theta = by_the_equations(learner, support_x, support_y, query_x)
    loss = learner.loss(learner.net(support_x), support_y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(learner.net.parameters()))])
    initial = torch.cat([weight.reshape(-1) for weight in learner.net.parameters()])
    least, most = torch.tensor([3.5, 5.5], dtype=torch.float64).sigmoid()  # bias 4 to 5, and a little from the weights
    descended = theta + 0.03 * gradient  # what the forget gate has left
    large = initial.abs() > 0.1
    kept = (descended / initial)[large]
    assert large.sum() > 10
    assert kept.min() > least - 0.02
    assert kept.max() < most + 0.02


def test_it_learns_sinusoids() -> None:
    sampler, device = Sinusoid(Sinusoid.Config()), torch.device("cpu")
    spec = sampler.spec(1, 10, 10)
    torch.manual_seed(0)
    learner = LSTMMetaLearner(spec, MLP((1,), MLP.Config(width=16)), LSTMMetaLearner.Config(steps=3, hidden=8))

    def error() -> float:
        draw = seeds.generator(0, "tasks")
        return meta_test(learner, sampler, "validation", MSE(None), 100, Loop(), draw=draw, device=device).mean

    before = error()
    meta_train(learner, sampler, Outer(lr=0.01), Budget(tasks=1200), Traced(), seed=0, device=device)
    assert error() < 0.6 * before
