"""Latent embedding optimisation (LEO; Rusu, Rao, Sygnowski, Vinyals, Pascanu, Osindero & Hadsell, 2019).

"Meta-learning with latent embedding optimization", arXiv:1807.05960.
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import TaskSpec

DEVIATION = 0.1
"""What deviations are a multiple of; untrained networks give about 1."""


class LEO(Learner):
    """Adapt a few latent numbers of each class by gradient descent, from which a decoder writes the class's weights.

    The support set's features say where the latent numbers start: through a linear encoder, and a relation network on
    each pair of a class's example and any other. After the steps in latent space there are some on the weights
    themselves. In meta-training latent numbers and weights are drawn from the Gaussians that the networks give; at
    meta-test they are those Gaussians' means. As in the paper the loss holds latent numbers near N(0, I), and near
    where adaptation takes them, and what each of them writes apart. Features are learned with the rest, where the
    paper's come from a network trained before; its dropout and weight decay are left out. Deviations begin at 0.1.
    """

    name = "leo"
    any_way = True
    steps = "weight_steps"
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        latent: int = tune.integer(8, 128, log=True, default=64)
        steps: int = tune.integer(1, 10, default=5)
        initial_lr: float = tune.real(0.01, 10.0, log=True, default=1.0)
        weight_steps: int = tune.integer(1, 10, default=5)
        weight_lr: float = tune.real(1e-4, 1.0, log=True, default=0.01)
        divergence: float = tune.real(1e-5, 1.0, log=True, default=0.001)
        start_penalty: float = tune.real(1e-9, 0.1, log=True, default=1e-6)
        orthogonality: float = tune.real(1e-3, 100.0, log=True, default=0.1)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        n, h = encoder.n_features, config.latent
        self.to_latent = nn.Linear(n, h, bias=False)
        self.relation = nn.Sequential(
            nn.Linear(2 * h, 2 * h, bias=False),
            nn.ReLU(),
            nn.Linear(2 * h, 2 * h, bias=False),
            nn.ReLU(),
            nn.Linear(2 * h, 2 * h, bias=False),
        )
        self.decoder = nn.Linear(h, 2 * n, bias=False)
        self.lr = nn.Parameter(torch.tensor([config.initial_lr]))
        self.weight_lr = nn.Parameter(torch.tensor([config.weight_lr]))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the scores of the adapted linear classifier: (n_queries, n_way)."""
        weights, _ = self._adapted(self.encoder(support_x), support_y)
        predictions: Tensor = self.encoder(query_x) @ weights.T
        return predictions

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """Return the query loss and the penalties of the paper's equation 6."""
        weights, penalty = self._adapted(self.encoder(support_x), support_y)
        of_latent = normalize(self.decoder.weight, dim=0)  # (2 * n_features, latent), what each number writes
        overlap = of_latent.T @ of_latent - torch.eye(self.config.latent).to(of_latent)
        loss = self.loss(self.encoder(query_x) @ weights.T, query_y)
        return loss + penalty + self.config.orthogonality * overlap.square().mean()

    def _adapted(self, support: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classifier's weights (n_way, n_features) and the penalty on the latent numbers."""

        def loss_of(weights: Tensor) -> Tensor:
            return self.loss(support @ weights.T, support_y)

        mean, log_deviation = self.start(support, support_y)  # (n_way, latent) each
        start = latent = self._drawn(mean, log_deviation)
        gradient_of = grad(lambda latent: loss_of(self._decoded(latent)))
        for _ in range(self.config.steps):
            latent = latent - self.lr * gradient_of(latent)
        weights = self._decoded(latent)
        for _ in range(self.config.weight_steps):
            weights = weights - self.weight_lr * grad(loss_of)(weights)
        moved = (latent.detach() - start).square().sum()
        penalty = self.config.divergence * divergence(mean, log_deviation) + self.config.start_penalty * moved
        return weights, penalty

    def start(self, support: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the deviation of each class's latent numbers, (n_way, latent) each."""
        latent = self.to_latent(support)  # (n_support, latent)
        n = len(latent)
        pairs = torch.cat([latent[:, None].expand(-1, n, -1), latent[None].expand(n, -1, -1)], 2)
        of_examples = self.relation(pairs).mean(1)  # (n_support, 2 * latent): over all examples of all classes
        member = (support_y == torch.arange(self.spec.n_way, device=support_y.device)[:, None]).to(latent)
        mean, log_deviation = (member @ of_examples / member.sum(1, keepdim=True)).chunk(2, 1)
        return mean, log_deviation + log(DEVIATION)

    def _decoded(self, latent: Tensor) -> Tensor:
        mean, log_deviation = self.decoder(latent).chunk(2, 1)  # (n_way, n_features) each
        return self._drawn(mean, log_deviation + log(DEVIATION))

    def _drawn(self, mean: Tensor, log_deviation: Tensor) -> Tensor:
        """Return a draw from Gaussians in meta-training, and their means at meta-test."""
        return mean + log_deviation.exp() * torch.randn_like(mean) if self.training else mean


def divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of N(mean, deviation²) from N(0, 1), summed over all numbers."""
    return 0.5 * (mean.square() + (2 * log_deviation).exp() - 1).sum() - log_deviation.sum()
