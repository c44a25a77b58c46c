"""How accurate a model is along streams: at the first presentation of a class, at the second, and so on."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from metaopt import seeds
from metaopt.learner import Learner
from metaopt.objective import MetaObjective, Outcome
from metaopt.study.trial import Bench
from metaopt.task import Kind, Pool, presentations
from metaopt.train import meta_test


def by_presentation(learner: Learner, bench: Bench, pool: Pool, purpose: str, n_tasks: int) -> list[dict[str, Any]]:
    """Return a model's accuracy at each presentation, with its 95 % interval over tasks.

    The tasks are those that `Bench.score` takes for the same purpose. Up to the number of presentations that every
    class has; nothing where the model's tasks are no streams of classes.
    """
    spec = bench.spec
    if not spec.stream or spec.kind != "classification":
        return []
    noting = _Noting(spec.least_shot or spec.n_shot)
    draw = seeds.generator(bench.study.seed, "evaluate", pool, purpose)
    meta_test(
        learner.with_spec(spec), bench.sampler, pool, noting, n_tasks, bench.executor(learner), draw=draw,
        device=bench.device,
    )  # fmt: skip
    of_tasks = torch.cat(noting.noted)  # (n_tasks, n)
    half = 1.96 * of_tasks.std(0) / math.sqrt(len(of_tasks))
    return [
        {"presentation": k, "mean": mean, "ci95": ci95}
        for k, (mean, ci95) in enumerate(zip(of_tasks.mean(0).tolist(), half.tolist(), strict=True), start=1)
    ]


class _Noting(MetaObjective):
    """Accuracy, which notes what it is at each of the first n presentations."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0

    def __init__(self, n: int) -> None:
        self.n = n
        self.noted: list[Tensor] = []  # (n_tasks, n) each

    def score(self, outcome: Outcome) -> Tensor:
        right = (outcome.predictions.argmax(-1) == outcome.query_y).double()  # (n_tasks, n_queries)
        at = torch.arange(1, self.n + 1, device=right.device)
        shown = (presentations(outcome.query_y)[:, :, None] == at).double()  # (n_tasks, n_queries, n)
        self.noted.append(((right[:, :, None] * shown).sum(1) / shown.sum(1)).cpu())
        return right.mean(1)
