"""Sinusoids from five points: the error after 0, 1, 5 and 10 gradient steps, in a table and a plot: `make sinusoids`.

The setting is that of MAML's paper (Finn et al., 2017, section 5.1): networks 40-40, meta-trained with ten support
points. All see as many tasks. Rates and steps are as the papers have them, or else the best of a few by the error on
validation tasks. Writes docs/results/sinusoid-steps.json and .svg; the table in the README is made from the former.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt import seeds
from metaopt.executor import Traced, Vmap
from metaopt.learner import Learner
from metaopt.task import Pool, TaskBatch
from metaopt.train import Budget, Outer, meta_train
from metaopt_baseline.finetune import FineTune
from metaopt_encoders.mlp import MLP
from metaopt_gradient.anil import ANIL
from metaopt_gradient.maml import MAML
from metaopt_gradient.meta_sgd import MetaSGD
from metaopt_gradient.reptile import Reptile
from metaopt_hyper.hyperhead import HyperHead
from metaopt_optimizer.lstm_meta import LSTMMetaLearner
from metaopt_tasks.sinusoid import Sinusoid

STEPS = 0, 1, 5, 10
TEST_TASKS = 2000
CPU = torch.device("cpu")
FOLDER = Path(__file__).parent / "results"


class Oracle(Learner):
    """A network that is told amplitude and phase beside x, as the paper's: all that the support set could say.

    They are read off the support set, through which, without noise, only one sinusoid of period 2π goes.
    """

    name = "oracle"
    kinds = ("regression",)

    def __init__(self, spec: Any, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.encoder = MLP((3,), MLP.Config())
        self.head = nn.Linear(self.encoder.n_features, 1)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        waves = torch.cat([support_x.sin(), support_x.cos()], 1)  # (n_support, 2)
        gram = waves.T @ waves + 1e-6 * torch.eye(2)  # two points may lie a period apart
        of_sine, of_cosine = torch.linalg.solve(gram, waves.T @ support_y)[:, 0]
        amplitude, phase = torch.hypot(of_sine, of_cosine), torch.atan2(-of_cosine, of_sine)
        told = torch.stack([amplitude, phase]).expand(len(query_x), 2)
        predictions: Tensor = self.head(self.encoder(torch.cat([query_x, told], 1)))
        return predictions


@dataclass(frozen=True)
class Contestant:
    """A learner, what it is trained with, and which of its hyperparameters is the number of steps at test."""

    cls: type[Learner]
    config: Mapping[str, Any]
    steps: str | None = None
    outer: Mapping[str, Any] = None  # type: ignore[assignment]


ADAM = {"lr": 3e-3, "schedule": "cosine", "tasks_per_step": 25}
CONTESTANTS = {
    "maml": Contestant(MAML, {"inner_lr": 0.01, "inner_steps": 1}, "test_steps"),
    "meta_sgd": Contestant(MetaSGD, {"initial_lr": 0.01, "inner_steps": 1}, "inner_steps"),
    "anil": Contestant(ANIL, {"inner_lr": 0.01, "inner_steps": 5}, "test_steps"),
    "reptile": Contestant(
        Reptile,
        {"inner_optimizer": "sgd", "inner_lr": 0.02, "inner_steps": 10, "inner_batch": 10},
        "test_steps",
        {"optimizer": "sgd", "sgd_lr": 1.0, "schedule": "linear", "tasks_per_step": 25},
    ),
    "lstm_meta": Contestant(LSTMMetaLearner, {"initial_lr": 0.01, "steps": 5}, "steps"),
    "hyperhead": Contestant(HyperHead, {"width": 64}),
    "finetune": Contestant(FineTune, {"lr": 0.01}, "steps"),
    "oracle": Contestant(Oracle, {}),
}


def run(contestant: Contestant, n_tasks: int, pool: Pool = "test", seed: int = 0) -> dict[str, dict[str, float]]:
    """Meta-train it and return its errors on tasks of a pool, by the number of steps."""
    sampler = Sinusoid(Sinusoid.Config())
    torch.manual_seed(seeds.derive(seed, "weights"))
    spec = sampler.spec(1, 10, 10)
    learner = contestant.cls(spec, MLP((1,), MLP.Config()), contestant.cls.Config(**contestant.config))
    outer = Outer(**(contestant.outer or ADAM))
    meta_train(learner, sampler, outer, Budget(tasks=n_tasks), Traced(), seed=seed, device=CPU)
    learner = learner.with_spec(sampler.spec(1, 5, 100)).eval()
    errors = {}
    for steps in STEPS if contestant.steps else STEPS[:1]:
        if contestant.steps:
            learner.config = replace(learner.config, **{contestant.steps: steps})
        draw = seeds.generator(seed, "evaluate", pool)
        batches = [sampler.draw(pool, learner.spec, 50, draw) for _ in range(TEST_TASKS // 50)]
        of_tasks = torch.cat([_errors(learner, batch) for batch in batches])
        ci95 = 1.96 * float(of_tasks.std()) / math.sqrt(TEST_TASKS)
        errors[str(steps)] = {"mean": float(of_tasks.mean()), "ci95": ci95, "median": float(of_tasks.quantile(0.5))}
    return errors


@torch.no_grad()
def _errors(learner: Learner, tasks: TaskBatch) -> Tensor:
    """Return the mean squared error on each task's queries, (n_tasks,)."""
    predictions = Vmap().map(learner, "forward", tasks.support_x, tasks.support_y, tasks.query_x)
    assert isinstance(predictions, Tensor)
    return (predictions - tasks.query_y).square().mean((1, 2)).double()


if __name__ == "__main__":
    torch.set_num_threads(1)
    n_tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    found = {name: run(contestant, n_tasks) for name, contestant in CONTESTANTS.items()}
