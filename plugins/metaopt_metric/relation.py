"""Relation networks (Sung, Yang, Zhang, Xiang, Torr & Hospedales, 2018, arXiv:1711.06025)."""

from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, mse_loss

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import TaskSpec


class RelationNet(Learner):
    """Show a network the features of a class and of a query side by side, and let it learn how alike they are.

    A class is the sum of its supports' feature maps, as in the paper, or their mean. The loss is the paper's, the
    squared error of the sigmoids against 1 for the query's own class and 0 for the others; predictions are the scores
    before the sigmoid, which rank alike. Each pair is normalised by itself, where the paper uses the statistics of all
    pairs, and max-pooling rounds up, so that there is no smallest grid. Features that lie on no grid count as a grid of
    one place, where a convolution is a linear layer. Weights start as He et al. (2015) draw them: from smaller ones all
    relations are nearly alike for some thousand tasks, and nothing is learned.
    """

    name = "relation"
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        of_class: str = tune.choice("sum", "mean")
        width: int = tune.integer(8, 128, log=True, default=64)
        hidden: int = tune.integer(4, 128, log=True, default=8)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        channels, height, width = encoder.map_shape or (encoder.n_features, 1, 1)
        size = 3 if height * width > 1 else 1
        self.side_by_side = nn.Conv2d(2 * channels, config.width, size, padding=size // 2)
        self.relation = nn.Sequential(
            nn.GroupNorm(1, config.width),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(config.width, config.width, size, padding=size // 2),
            nn.GroupNorm(1, config.width),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(config.width * ceil(height / 4) * ceil(width / 4), config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, 1),
        )
        for layer in (self.side_by_side, *self.relation):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the relation of each query to each class, before the sigmoid: (n_queries, n_way)."""
        support, query = self._maps(support_x), self._maps(query_x)  # (n, channels, height, width)
        member = (support_y == torch.arange(self.spec.n_way, device=support_y.device)[:, None]).to(support)
        if self.config.of_class == "mean":
            member = member / member.sum(1, keepdim=True)  # (n_way, n_support)
        classes = (member @ support.flatten(1)).view(-1, *support.shape[1:])  # (n_way, channels, height, width)
        # A convolution of two maps side by side is the sum of one of each, which need not be done for every pair.
        layer, channels = self.side_by_side, classes.shape[1]
        of_classes = conv2d(classes, layer.weight[:, :channels], layer.bias, padding=layer.padding)
        of_queries = conv2d(query, layer.weight[:, channels:], padding=layer.padding)
        pairs = of_queries[:, None] + of_classes  # (n_queries, n_way, width, height, width)
        scores: Tensor = self.relation(pairs.flatten(0, 1))  # (n_queries * n_way, 1)
        return scores.view(-1, self.spec.n_way)

    def loss(self, predictions: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error of the relations (n, n_way) to 1 where y (n,) is that class, 0 elsewhere."""
        same = y[:, None] == torch.arange(self.spec.n_way, device=y.device)
        return mse_loss(predictions.sigmoid(), same.to(predictions))

    def _maps(self, x: Tensor) -> Tensor:
        """Return features on their grid, (n, channels, height, width)."""
        encoder = cast(Encoder, self.encoder)
        maps: Tensor = encoder(x)[:, :, None, None] if encoder.map_shape is None else encoder.grid(x)
        return maps
