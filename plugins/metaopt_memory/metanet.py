"""Meta networks (Munkhdalai & Yu, 2017, arXiv:1703.00837)."""

from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import normalize

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder, Weights
from metaopt.task import TaskSpec
from metaopt_memory.blocks import lstm_step

HIDDEN = 20  # units of the networks that make fast weights, which treat every weight alike
PARTS = 5  # of the support set, whose gradients are read one after another
K = 7  # gradients below e⁻⁷ are small: their size is told by the second of their two numbers


class MetaNet(Learner):
    """Make fast weights out of the gradients of the support examples' losses, and use them beside the slow ones.

    As in the paper, an LSTM reads the gradients of the key network and writes its fast weights for the task; a small
    network turns each support example's gradient in the base network into fast weights, of which each query gets a
    mixture by its attention to the examples' keys. Key and base network stand on one shared encoder, whose weights are
    slow only, where the paper has two networks with fast weights in every layer. With `first_order`, as in the
    authors' program, gradients are data: nothing is differentiated through them. The start, which the paper leaves
    open, is a step of descent for the examples and next to nothing for the task.
    """

    name = "metanet"
    order_matters = True
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        width: int = tune.integer(8, 128, log=True, default=64)
        first_order: bool = tune.choice(True, False)

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.key, self.base = (_two_layers(encoder.n_features, config.width, spec.n_way) for _ in range(2))
        self.task_gates, self.task_out = nn.Linear(2 + HIDDEN, 4 * HIDDEN), nn.Linear(HIDDEN, 1)
        self.example_net = nn.Sequential(
            nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )
        _start_with_descent(self.example_net)
        with torch.no_grad():  # what all fast weights of the key network have in common turns all keys one way
            self.task_out.weight *= 0.01
            self.task_out.bias.zero_()

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the scores of the base network with slow and fast weights: (n_queries, n_way)."""
        support, query = self.encoder(support_x), self.encoder(query_x)  # (n, n_features)
        task_weight = self._task_weight(self._gradients(self.key, support, support_y)["0.weight"])
        key_weight = dict(self.key.named_parameters())["0.weight"] + task_weight  # (width, n_features)
        keys, query_keys = (normalize(x @ key_weight.T, dim=1) for x in (support, query))
        attention = (query_keys @ keys.T).softmax(1)  # (n_queries, n_support)
        fast = {
            name: torch.einsum("qs,soi->qoi", attention, self.example_net(_log_and_sign(gradient)).squeeze(-1))
            for name, gradient in self._gradients(self.base, support, support_y).items()
        }  # a query's own weights, (n_queries, n_out, n_in)
        hidden = self.base[:2](query) + torch.einsum("qoi,qi->qo", fast["0.weight"], query).relu()
        scores: Tensor = self.base[2](hidden) + torch.einsum("qoi,qi->qo", fast["2.weight"], hidden)
        return scores

    def _gradients(self, net: nn.Sequential, features: Tensor, labels: Tensor) -> Weights:
        """Return the gradient of each example's loss in each weight of `net`, by name, (n_support, n_out, n_in)."""

        def loss(weights: Weights, example: Tensor, label: Tensor) -> Tensor:
            return self.loss(functional_call(net, weights, (example[None],)), label[None])

        gradients: Weights = vmap(grad(loss), in_dims=(None, 0, 0))(dict(net.named_parameters()), features, labels)
        if self.config.first_order:
            return {name: gradient.detach() for name, gradient in gradients.items()}
        return gradients

    def _task_weight(self, gradients: Tensor) -> Tensor:
        """Return the key network's fast weight, (n_out, n_in), of the gradients (n_support, n_out, n_in)."""
        parts = torch.stack([part.mean(0) for part in gradients.chunk(PARTS)])  # (n_parts, n_out, n_in)
        hidden = cell = parts.new_zeros(*parts.shape[1:], HIDDEN)
        for inputs in _log_and_sign(parts):
            hidden, cell = lstm_step(self.task_gates(torch.cat([inputs, hidden], -1)), cell)
        weight: Tensor = self.task_out(hidden).squeeze(-1)
        return weight


def _two_layers(n_in: int, width: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, width, bias=False), nn.ReLU(), nn.Linear(width, n_out, bias=False))


@torch.no_grad()
def _start_with_descent(net: nn.Sequential) -> None:
    """Make its answer oppose the sign of a gradient and be 0 for none, whatever its logarithm.

    Fast weights that begin with something in common can shut every hidden unit of the base network, and at twenty ways
    they did: its scores were 0 from then on.
    """
    first, second, last = (layer for layer in net if isinstance(layer, nn.Linear))
    signs = torch.ones(HIDDEN)
    signs[HIDDEN // 2 :] = -1  # half of the units are for gradients above 0, half for those below
    for layer in (first, second, last):
        nn.init.zeros_(layer.bias)
        layer.weight.abs_()
    first.weight[:, 0] = 0
    first.weight[:, 1] *= signs
    second.weight *= signs[:, None] == signs
    last.weight *= -signs


def _log_and_sign(gradient: Tensor) -> Tensor:
    """Return two numbers of about size 1 for each number of a gradient, (…, 2): its logarithm, and its sign or size.

    The preprocessing of Andrychowicz et al. (2016, arXiv:1606.04474, appendix A).
    """
    log = (gradient.abs() + torch.finfo(gradient.dtype).eps).log() / K
    return torch.stack([log.clamp(min=-1), (exp(K) * gradient).clamp(-1, 1)], -1)
