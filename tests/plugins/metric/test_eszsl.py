"""ESZSL's matrix is where the gradient of its paper's objective vanishes, whatever batches it was given in."""

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from metaopt.executor import Loop
from metaopt.learner import Gradients
from metaopt.task import Examples, TaskSpec
from metaopt_metric.eszsl import ESZSL

N, D, A, Z = 40, 6, 4, 5  # examples, features, attributes, train classes
SPEC = TaskSpec("classification", (D,), 3, 1, 2, n_train_classes=Z, description_shape=(A,))


def examples() -> Examples:
    draw = Generator().manual_seed(0)
    x = torch.randn(N, D, generator=draw, dtype=torch.float64)
    y = torch.randint(Z, (N,), generator=draw)
    return Examples(x, y, torch.randn(Z, A, generator=draw, dtype=torch.float64))


def fitted(*batches: Examples, **config: float) -> ESZSL:
    """Return the learner after an outer step on each batch by plain descent at rate 1."""
    learner = ESZSL(SPEC, nn.Identity(), ESZSL.Config(**config)).double()

    def update(gradients: Gradients) -> None:
        learner.v.data -= gradients["v"]

    for batch in batches:
        learner.outer_step(batch, Loop(), update)
    return learner


def objective(v: Tensor, data: Examples, gamma: float, lambda_: float, other: float) -> Tensor:
    """Return equation 2 of the paper with its regulariser (equation 3), β = γ λ, over X of means."""
    assert data.descriptions is not None
    x, s = data.x.T / N**0.5, data.descriptions.T  # (D, N), (A, Z)
    y = torch.where(data.y[:, None] == torch.arange(Z), 1.0, other).double() / N**0.5  # (N, Z)
    fit = (x.T @ v @ s - y).square().sum()
    penalties = gamma * (v @ s).square().sum() + lambda_ * (x.T @ v).square().sum()
    return fit + penalties + gamma * lambda_ * v.square().sum()


@pytest.mark.parametrize(("gamma", "lambda_", "other"), [(0.01, 1.0, 0.0), (3.0, 0.2, -1.0)])
def test_the_papers_objective_is_stationary_at_the_closed_form(gamma: float, lambda_: float, other: float) -> None:
    learner = fitted(examples(), feature_penalty=gamma, attribute_penalty=lambda_, other=other)
    loss = objective(learner.v, examples(), gamma, lambda_, other)
    (gradient,) = torch.autograd.grad(loss, learner.v)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    assert learner.v.abs().max() > 0.01


def test_batches_one_after_another_come_to_what_all_at_once_do() -> None:
    data = examples()
    parts = [Examples(data.x[rows], data.y[rows], data.descriptions) for rows in torch.arange(N).split(13)]
    torch.testing.assert_close(fitted(*parts).v, fitted(data).v, rtol=1e-10, atol=1e-12)


def test_a_class_never_seen_is_recognised_by_its_attributes() -> None:
    """Where features are attributes turned and stretched, those of a new class tell what its examples look like."""
    draw = Generator().manual_seed(1)
    mixing = torch.randn(A, D, generator=draw, dtype=torch.float64)
    train, new = (normalize(torch.randn(n, A, generator=draw, dtype=torch.float64)) for n in (Z, 3))
    y = torch.arange(Z).repeat(20)
    noise = 0.1 * torch.randn(len(y), D, generator=draw, dtype=torch.float64)
    learner = fitted(Examples(train[y] @ mixing + noise, y, train), attribute_penalty=0.01)
    order = torch.tensor([2, 0, 1])
    scores = learner(new[order], order, new @ mixing)
    assert scores.argmax(1).tolist() == [0, 1, 2]
