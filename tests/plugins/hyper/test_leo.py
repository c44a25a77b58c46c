"""LEO descends in latent space, from where the relation network starts, to what the decoder makes of it."""

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import grad
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy

from metaopt.task import TaskSpec
from metaopt_encoders.identity import Identity
from metaopt_hyper.leo import LEO, divergence

SPEC = TaskSpec("classification", (6,), 3, 2, 4)


def leo(**config: float) -> LEO:
    torch.manual_seed(0)
    learner = LEO(SPEC, Identity((6,), Identity.Config()), LEO.Config(**{"latent": 5, **config}))  # type: ignore[arg-type]
    return learner.double().eval()


def task() -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    support_x, query_x = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (6, 7))
    return support_x, torch.tensor([2, 0, 1, 1, 0, 2]), query_x


def test_a_class_starts_at_the_mean_over_pairs_of_its_examples_with_all() -> None:
    """Equation 4 of the paper, pair by pair."""
    learner, (support_x, support_y, _) = leo(), task()
    mean, _ = learner.start(support_x, support_y)
    latent = learner.to_latent(support_x)
    for k in range(3):
        pairs = [torch.cat([own, other]) for own in latent[support_y == k] for other in latent]
        expected = torch.stack([learner.relation(pair) for pair in pairs]).mean(0)[:5]
        torch.testing.assert_close(mean[k], expected)


@pytest.mark.parametrize("rates", [(0.5, 0.1), (0.0, 0.0)])
def test_scores_are_those_of_gradient_descent_in_latent_space_and_then_on_weights(rates: tuple[float, float]) -> None:
    """By torch's own autograd; at rates of 0 the weights are what the decoder makes of the start."""
    learner, (support_x, support_y, query_x) = leo(steps=3, weight_steps=2), task()
    learner.lr.data.fill_(rates[0])
    learner.weight_lr.data.fill_(rates[1])

    def decoded(latent: Tensor) -> Tensor:
        return learner.decoder(latent)[:, :6]

    latent = learner.start(support_x, support_y)[0]
    for _ in range(3):
        latent = latent - rates[0] * grad(cross_entropy(support_x @ decoded(latent).T, support_y), latent)[0]
    weights = decoded(latent)
    for _ in range(2):
        weights = weights - rates[1] * grad(cross_entropy(support_x @ weights.T, support_y), weights)[0]
    torch.testing.assert_close(learner(support_x, support_y, query_x), query_x @ weights.T)


def test_the_divergence_is_that_of_torchs_distributions() -> None:
    mean, log_deviation = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    standard = Normal(torch.zeros(3, 5).double(), torch.ones(3, 5).double())
    expected = kl_divergence(Normal(mean, log_deviation.exp()), standard).sum()
    torch.testing.assert_close(divergence(mean, log_deviation), expected)


def test_in_meta_training_latent_numbers_are_drawn() -> None:
    learner = leo().train()
    assert not torch.equal(learner(*task()), learner(*task()))
    assert torch.equal(learner.eval()(*task()), learner(*task()))


def test_its_penalties_vanish_at_a_standard_normal_start_that_stays_and_orthogonal_writing() -> None:
    learner, (support_x, support_y, query_x) = leo(divergence=1.0, orthogonality=100.0), task()
    torch.nn.init.orthogonal_(learner.decoder.weight)
    torch.nn.init.zeros_(learner.relation[4].weight)  # means of 0, deviations of 0.1
    query_y = torch.zeros(7, dtype=torch.int64)
    loss = learner.task_loss(support_x, support_y, query_x, query_y)
    kl = kl_divergence(Normal(0.0, 0.1), Normal(0.0, 1.0)).double() * 15
    moved = learner._adapted(support_x, support_y)[1] - kl
    assert 0 <= moved < 1e-3, "the start's penalty is small"
    expected = cross_entropy(learner(support_x, support_y, query_x), query_y) + kl
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
