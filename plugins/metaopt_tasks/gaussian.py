"""Normal classes around normal means: tasks whose best possible accuracy is known, a ruler for learners.

The class means of a task are drawn anew from N(0, spread² I) in `features` dimensions, the examples of a class from
N(mean, I). As all about them is known, so is the Bayes classifier of a task given its support set (Duda, Hart & Stork,
2001, "Pattern Classification", section 3.4), and `bayes_accuracy` is its accuracy on average.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.task import Pool, TaskBatch, TaskSampler, TaskSpec

MAX_NUMBERS = 10_000_000  # in a task
NODES = 64  # of the quadrature, along each of two lengths; twice as many change 1e-5
FAR = 1e6  # a noncentrality beyond which the normal limit is off by 1e-5 or less, up to 200 features


class Gaussian(TaskSampler):
    """Tell normal distributions apart, whose means are the task's.

    No class is seen twice; the pools are separate draws of this one distribution.
    """

    name = "gaussian"
    kind = "classification"

    @dataclass(frozen=True)
    class Config:
        """The distribution of tasks."""

        features: int = 16
        spread: float = 1.0
        """Standard deviation of the class means in each feature, where that of a class's examples is 1."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where the distribution makes no sense."""
        if config.features < 1:
            raise UserError(f"tasks.features is {config.features}; set it to 1 or more")
        if not 0 < config.spread < math.inf:
            raise UserError(f"tasks.spread is {config.spread}; set this standard deviation above 0, such as to 1")
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, (self.config.features,), n_way, n_shot, n_query)

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        numbers = spec.n_examples * self.config.features
        if numbers > MAX_NUMBERS:
            most = MAX_NUMBERS // ((spec.n_shot + spec.n_query) * self.config.features)
            raise UserError(
                f"a task of {spec.n_examples:,} examples of {self.config.features} features has {numbers:,} numbers, "
                f"more than {MAX_NUMBERS:,}; set tasks.n_way to {most} or less, or the others lower"
            )

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        # By a generator of the pool's own, so that one seed gives each pool other tasks.
        own = seeds.generator(int(torch.randint(2**62, (1,), generator=generator)), "gaussian", pool)
        means = self.config.spread * torch.randn(n_tasks, spec.n_way, self.config.features, generator=own)

        def examples(each: int) -> tuple[Tensor, Tensor]:
            labels = torch.arange(spec.n_way).repeat(each).expand(n_tasks, -1)
            y = labels.gather(1, torch.rand(labels.shape, generator=own).argsort(1))  # (n_tasks, n_way * each)
            centre = means.gather(1, y[:, :, None].expand(-1, -1, self.config.features))
            return centre + torch.randn(centre.shape, generator=own), y

        return TaskBatch(*examples(spec.n_shot), *examples(spec.n_query))


def bayes_accuracy(n_way: int, n_shot: float, features: int, spread: float = 1.0) -> float:
    """Return the accuracy, on average over tasks, that no learner can beat; n_shot may be math.inf.

    Given its n_shot examples, of mean x̄, a class's mean is normal around m = λ x̄, λ = spread² / (spread² + 1/n_shot),
    and a query of that class normal around m with variance τ² = 1 + (1 − λ) spread² in every feature. All classes have
    the same τ, so the Bayes classifier takes the class whose m is nearest. Over tasks m is normal around 0 with
    variance σ² = λ spread². A query q of class y is right where no other m is nearer than m_y. For two classes that
    is where noise along m_y − m_other stays below half their distance, which is √2 σ times a chi variable c with
    `features` degrees of freedom:

        accuracy = E Φ(σ c / (√2 τ)).

    For more, the others are independent given |q|², and each is farther than a squared distance D with the probability
    S that a noncentral chi-square variable around |q|² / σ² exceeds D / σ²:

        accuracy = E S(D / σ² ; |q|² / σ²) ^ (n_way − 1),

    where |q|² is (σ² + τ²) times a chi-square variable, and, given it, D is v times a noncentral one around
    ρ² |q|² / v, with ρ = τ² / (σ² + τ²) and v = ρ σ².
    """
    from scipy.integrate import quad  # type: ignore[import-untyped] # here, as only this needs it
    from scipy.stats import chi, chi2, norm  # type: ignore[import-untyped]

    shrink = spread**2 / (spread**2 + 1 / n_shot)
    m_variance, noise = shrink * spread**2, 1 + (1 - shrink) * spread**2  # σ², τ²
    if n_way == 2:
        slope = math.sqrt(m_variance / (2 * noise))
        accuracy, _ = quad(lambda c: norm.cdf(slope * c) * chi.pdf(c, features), 0, math.inf)
        return float(accuracy)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    nodes, weights = (nodes + 1) / 2, weights / 2  # on (0, 1)
    q = (m_variance + noise) * chi2.ppf(nodes, features)[:, None]  # (NODES, 1) |q|²
    rho = noise / (m_variance + noise)
    v = rho * m_variance
    d = v * _noncentral(features, rho**2 * q / v, quantile=nodes[None])  # (NODES, NODES) D
    farther = _noncentral(features, q / m_variance, above=d / m_variance)
    return float(weights @ farther ** (n_way - 1) @ weights)


def _noncentral(
    freedom: int, centre: NDArray[np.float64], *, quantile: Any = None, above: Any = None
) -> NDArray[np.float64]:
    """Return the quantile of noncentral chi-square variables around `centre` (n, 1), or the chance to be above a value.

    Far from 0, where scipy's series take long or do not converge, the root of such a variable is normal.
    """
    from scipy.stats import ncx2, norm

    near = np.where(centre > FAR, 1.0, centre)
    mean = np.sqrt(centre) + (freedom - 1) / (2 * np.sqrt(centre))
    if above is None:
        exact, normal = ncx2.ppf(quantile, freedom, near), (mean + norm.ppf(quantile)) ** 2
    else:
        exact, normal = ncx2.sf(above, freedom, near), norm.sf(np.sqrt(above) - mean)
    return np.asarray(np.where(centre > FAR, normal, exact))
