"""MetaOptNet: a support vector machine as a head (Lee, Maji, Ravichandran & Soatto, 2019, arXiv:1904.03758)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt import tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.task import TaskSpec


class MetaOptNet(Learner):
    """Fit a linear support vector machine to the support's features, and learn features for that.

    As in the paper it is the multi-class machine of Crammer & Singer (2001), solved in its dual by 15 steps of an
    interior-point method and differentiated through its optimality conditions. As in the authors' code there is no
    intercept, and 1 is added to the kernel's diagonal. The learned scale of the scores starts at 10, where the authors'
    starts at 1, from which it has long to go. Their label smoothing is left out.
    """

    name = "metaoptnet"
    any_way = True
    inner_gradients = False
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 1e-3}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        cost: float = tune.real(0.001, 1.0, log=True, default=0.1)
        scale: float = tune.real(1.0, 100.0, log=True, default=10.0)
        steps: int = 15

    def __init__(self, spec: TaskSpec, encoder: Encoder, config: Config) -> None:
        super().__init__(spec, encoder, config)
        self.scale = nn.Parameter(torch.tensor([config.scale]))

    def from_features(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        """Return the scaled scores of the machine: (n_queries, n_way)."""
        member = (support_y == torch.arange(self.spec.n_way, device=support_y.device)[:, None]).to(support)
        kernel = support @ support.T + torch.eye(len(support)).to(support)  # (n_support, n_support)
        weights = dual_variables(kernel, member, self.config.cost, self.config.steps) @ support  # (n_way, n_features)
        scores: Tensor = self.scale * (query @ weights.T)
        return scores


def dual_variables(kernel: Tensor, member: Tensor, cost: float, steps: int) -> Tensor:
    """Return the dual variables α of the machine, (n_way, n_support), differentiable once in the kernel.

    They maximise Σ α·member − ½ Σ α·(α kernel), where no α is above cost·member and an example's α add up to 0.
    `kernel` is (n_support, n_support), and `member` (n_way, n_support) is 1 where an example is of a class, or else 0.

    In terms of the slacks β = cost·member − α ≥ 0 the optimum is where member − α kernel = s + multipliers, for prices
    s ≥ 0 with β·s = 0. We start inside, at equal slacks and prices that suit them, and each step is Newton's towards
    a tenth of the mean β·s, or shorter where it would leave the inside.
    """
    fixed, least = kernel.detach(), torch.finfo(kernel.dtype).eps ** 2  # least: where β·s would come to divide 0 by 0
    slacks = torch.full_like(member, cost / len(member))
    prices = member - (cost * member - slacks) @ fixed
    prices = prices - prices.amin(0) + 1
    for _ in range(steps):
        gaps = slacks * prices
        wanted = (0.1 * gaps.mean()).clamp(min=least) / gaps - 1  # change of β·s in its own units
        of_slacks = _newton(fixed, slacks, prices, prices * wanted) / slacks  # likewise of β
        of_prices = wanted - of_slacks
        length = 0.99 / torch.maximum(-of_slacks, -of_prices).amax().clamp(min=0.99)
        slacks, prices = slacks * (1 + length * of_slacks), prices * (1 + length * of_prices)
    duals = cost * member - slacks
    # At the optimum Newton's step is 0, and its derivative in the kernel is that of the optimum.
    return duals - _newton(fixed, slacks, prices, duals @ (kernel - fixed))


def _newton(kernel: Tensor, slacks: Tensor, prices: Tensor, force: Tensor) -> Tensor:
    """Return the change of the slacks, (n_way, n_support), that solves the linearised conditions of the optimum.

    It solves change·kernel + change·prices/slacks = force + multipliers, where the multipliers, one an example, are
    such that its changes add up to 0.
    """
    springs = kernel + torch.diag_embed(prices / slacks)  # (n_way, n_support, n_support)
    inverses = torch.cholesky_inverse(torch.linalg.cholesky_ex(springs).L)  # NaN in, NaN out: it must not raise
    change = (inverses @ force[:, :, None]).squeeze(2)
    multipliers: Tensor = torch.linalg.solve_ex(inverses.sum(0), -change.sum(0)).result  # (n_support,)
    return change + inverses @ multipliers
