"""CNAPs (Requeima, Gordon, Bronskill, Nowozin & Turner, 2019, arXiv:1906.07697).

"Fast and flexible multi-task classification using conditional neural adaptive processes".
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt import tune
from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.nn import Encoder, Weights, class_means
from metaopt.task import TaskSpec

NORMALISATIONS = nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm


class CNAPs(Learner):
    """Modulate each layer of the encoder by a scale and a shift a channel, written for the task, and write its head.

    The task is the mean of what a set encoder makes of the support examples. The modulation is that of FiLM, applied
    where it costs nothing: in the encoder's normalisation layers. The paper's encoder is trained on ImageNet
    beforehand and kept; here it is meta-trained with all the rest, and the set encoder is another one like it. The
    paper's autoregressive variant, in which a layer's modulation sees the layers before, is left out.
    """

    name = "cnaps"
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        penalty: float = tune.real(1e-5, 0.1, log=True, default=0.001)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        """Raises UserError where the encoder has nothing to modulate."""
        super().__init__(spec, encoder, config)
        layers = [name for name, module in encoder.named_modules() if isinstance(module, NORMALISATIONS)]
        if not layers:
            raise UserError(
                f"cnaps modulates normalisation layers and the encoder {encoder.name} has none; "
                "take one that has, such as conv4 with norm: layer"
            )
        n = encoder.n_features
        self.set_encoder = copy.deepcopy(encoder)
        self.layers = layers
        self.films = nn.ModuleList(FiLM(n, len(encoder.get_parameter(f"{name}.weight"))) for name in layers)
        self.weight, self.bias = _three_layers(n, n), _three_layers(n, 1)

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """Return the query loss and a penalty of strong modulation."""
        strengths = [weight for name, weight in self.films.named_parameters() if name.endswith("strength")]
        penalty = torch.stack([strength.square().sum() for strength in strengths]).sum()
        return super().task_loss(support_x, support_y, query_x, query_y) + self.config.penalty * penalty

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return what the head written for the task says of each query: (n_queries, n_way)."""
        weights = self._modulated(self.set_encoder(support_x).mean(0))
        support: Tensor = functional_call(self.encoder, weights, support_x)  # (n_support, n_features)
        query: Tensor = functional_call(self.encoder, weights, query_x)
        means = class_means(support, support_y, self.spec.n_way)  # (n_way, n_features)
        weight: Tensor = means + self.weight(means)
        bias: Tensor = self.bias(means)[:, 0]
        return query @ weight.T + bias

    def _modulated(self, task: Tensor) -> Weights:
        """Return the encoder's weights for a task, of its representation (n_features,)."""
        weights: Weights = dict(self.encoder.named_parameters())
        for layer, film in zip(self.layers, self.films, strict=True):
            scale, shift = film(task)
            # (1 + scale) · (weight · x + bias) + shift, which is again a weight and a bias
            weights[f"{layer}.weight"] = (1 + scale) * weights[f"{layer}.weight"]
            weights[f"{layer}.bias"] = (1 + scale) * weights[f"{layer}.bias"] + shift
        return weights


class FiLM(nn.Module):
    """Writes a scale and a shift for each channel of one layer; both begin near 0."""

    def __init__(self, n_task: int, n_channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(n_task, n_channels), nn.ReLU())
        self.written = nn.ModuleList(_residual_layers(n_channels) for _ in range(2))
        self.strength = nn.Parameter(0.001 * torch.randn(2, n_channels))

    def forward(self, task: Tensor) -> tuple[Tensor, Tensor]:
        """(n_task,) to a scale and a shift, each (n_channels,)."""
        shared = self.shared(task)
        scale, shift = (write(shared) for write in self.written)
        return self.strength[0] * scale, self.strength[1] * shift


class Residual(nn.Module):
    """A linear layer beside the identity."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.linear(x)
        return changed


def _residual_layers(n: int) -> nn.Sequential:
    return nn.Sequential(Residual(n), nn.ReLU(), Residual(n), nn.ReLU(), Residual(n))


def _three_layers(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, n_out), nn.ELU(), nn.Linear(n_out, n_out), nn.ELU(), nn.Linear(n_out, n_out)
    )  # fmt: skip
