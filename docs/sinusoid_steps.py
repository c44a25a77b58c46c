"""Sinusoids from five points: the error after 0, 1, 5 and 10 gradient steps, in a table and a plot: `make sinusoids`.

The setting is that of MAML's paper (Finn et al., 2017, section 5.1): networks 40-40, meta-trained with ten support
points. All see as many tasks, but the LSTM meta-learner, which is slow. Rates and steps are as the papers
have them where they say, and were not searched; Reptile's rate was halved after it diverged on validation tasks.
Writes docs/results/sinusoid-steps.json and .svg; the table in the README is made from the former.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drawing import svg
from metaopt import seeds
from metaopt.executor import Traced, Vmap
from metaopt.files import write_json, write_text
from metaopt.learner import Learner
from metaopt.process import on_one_core
from metaopt.task import Pool, TaskBatch, TaskSpec
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
COLOURS = "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#7f7f7f", "#000000"


class Oracle(Learner):
    """A network that is told amplitude and phase beside x, as the paper's: all that the support set could say.

    They are read off the support set, through which, without noise, only one sinusoid of period 2π goes.
    """

    name = "oracle"
    kinds = ("regression",)

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
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


Errors = dict[str, dict[str, float | None]]
"""By the number of steps: mean and interval, where errors of all tasks are finite, and median."""
ADAM = Outer(lr=3e-3, schedule="cosine", tasks_per_step=25)


@dataclass(frozen=True)
class Contestant:
    """A learner, what it is trained with, and which of its hyperparameters is the number of steps at test."""

    cls: type[Learner]
    config: Mapping[str, Any]
    steps: str | None = None
    outer: Outer = ADAM
    tasks: int = 100_000


CONTESTANTS = {
    "maml": Contestant(MAML, {"inner_lr": 0.01, "inner_steps": 1}, "test_steps"),
    "meta_sgd": Contestant(MetaSGD, {"initial_lr": 0.01, "inner_steps": 1}, "inner_steps"),
    "anil": Contestant(ANIL, {"inner_lr": 0.01, "inner_steps": 5}, "test_steps"),
    "reptile": Contestant(
        Reptile,
        {"inner_optimizer": "sgd", "inner_lr": 0.01, "inner_steps": 10, "inner_batch": 10},
        "test_steps",
        Outer(optimizer="sgd", sgd_lr=1.0, schedule="linear", tasks_per_step=25),
    ),
    # A task costs it what eighty cost MAML: an LSTM for each of 1,761 weights.
    "lstm_meta": Contestant(LSTMMetaLearner, {"initial_lr": 0.01, "steps": 5}, "steps", tasks=10_000),
    "hyperhead": Contestant(HyperHead, {"width": 64}),
    "finetune": Contestant(FineTune, {"lr": 0.01}, "steps"),
    "oracle": Contestant(Oracle, {}),
}


def run(contestant: Contestant, n_tasks: int, pool: Pool = "test", seed: int = 0) -> Errors:
    """Meta-train it on so many tasks and return its errors on tasks of a pool, by the number of steps."""
    errors: Errors = {}
    for steps, of_tasks in errors_by_task(contestant, n_tasks, pool, seed).items():
        whole, median = bool(of_tasks.isfinite().all()), float(of_tasks.nan_to_num(math.inf).quantile(0.5))
        errors[steps] = {
            "mean": float(of_tasks.mean()) if whole else None,
            "ci95": 1.96 * float(of_tasks.std()) / math.sqrt(TEST_TASKS) if whole else None,
            "median": median if math.isfinite(median) else None,
        }
    return errors


def errors_by_task(contestant: Contestant, n_tasks: int, pool: Pool = "test", seed: int = 0) -> dict[str, Tensor]:
    """Meta-train it on so many tasks and return its error on each task of a pool, (TEST_TASKS,), by number of steps."""
    sampler = Sinusoid(Sinusoid.Config())
    torch.manual_seed(seeds.derive(seed, "weights"))
    spec = sampler.spec(1, 10, 10)
    learner = contestant.cls(spec, MLP((1,), MLP.Config()), contestant.cls.Config(**contestant.config))
    meta_train(learner, sampler, contestant.outer, Budget(tasks=n_tasks), Traced(), seed=seed, device=CPU)
    learner = learner.with_spec(sampler.spec(1, 5, 100)).eval()
    errors = {}
    for steps in STEPS if contestant.steps else STEPS[:1]:
        if contestant.steps:
            learner.config = replace(learner.config, **{contestant.steps: steps})
        draw = seeds.generator(seed, "evaluate", pool)
        batches = [sampler.draw(pool, learner.spec, 50, draw) for _ in range(TEST_TASKS // 50)]
        errors[str(steps)] = torch.cat([_errors(learner, batch) for batch in batches])
    return errors


@torch.no_grad()
def _errors(learner: Learner, tasks: TaskBatch) -> Tensor:
    """Return the mean squared error on each task's queries, (n_tasks,)."""
    predictions = Vmap().map(learner, "forward", tasks.support_x, tasks.support_y, tasks.query_x)
    assert isinstance(predictions, Tensor)
    return (predictions - tasks.query_y).square().mean((1, 2)).double()


def plot(found: Mapping[str, Any]) -> str:
    """Return the mean errors over the steps as an SVG picture: a line for each learner, the error on a log scale."""
    left, top, width, height = 60, 20, 420, 300
    low, high = 0.01, 10.0

    def place(steps: int, error: float) -> tuple[float, float]:
        share = math.log(max(error, low) / low) / math.log(high / low)
        return left + width * steps / STEPS[-1], top + height * (1 - share)

    parts = []
    for error in (0.01, 0.1, 1.0, 10.0):
        _, y = place(0, error)
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{error:g}</text>')
    for steps in STEPS:
        x, _ = place(steps, low)
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{steps}</text>')
    middle = left + width / 2
    parts.append(f'<text x="{middle}" y="{top + height + 38}" text-anchor="middle">gradient steps</text>')
    parts.append(f'<text transform="translate(14 {top + height / 2}) rotate(-90)" text-anchor="middle">'
                 "mean squared error</text>")  # fmt: skip
    ends: list[tuple[float, float, str, str]] = []
    for (name, errors), colour in zip(found.items(), COLOURS, strict=True):
        points = [(int(steps), error["mean"]) for steps, error in errors.items()]
        shown = [place(*point) for point in points if point[1] is not None and point[1] <= high]
        if len(points) == 1:  # it takes no steps
            shown.append((left + width, shown[0][1]))
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = shown[-1]
        ends.append((y, x, name, colour))
    lowest = 0.0
    for y, x, name, colour in sorted(ends):
        at = max(y, lowest + 15) if x == left + width else y  # names beside the plot do not overlap
        lowest = at if x == left + width else lowest
        parts.append(f'<text x="{x + 8:.1f}" y="{at + 4:.1f}" fill="{colour}">{name}</text>')
    return svg(left + width + 110, top + height + 50, parts)


def main() -> None:
    """Measure all, and write what came of it."""
    on_one_core()
    found = {}
    for name, contestant in CONTESTANTS.items():
        started = time.process_time()
        found[name] = run(contestant, contestant.tasks)
        print(f"{name:<10} {time.process_time() - started:5.0f} s  {found[name]}", flush=True)  # noqa: T201
    rows = {name: {"tasks": CONTESTANTS[name].tasks, "errors": errors} for name, errors in found.items()}
    write_json(FOLDER / "sinusoid-steps.json", rows)
    write_text(FOLDER / "sinusoid-steps.svg", plot(found))


if __name__ == "__main__":
    main()
