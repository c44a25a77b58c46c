"""The numbers that a study prints are held against the truth, where it is known in closed form or by design."""

import math
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from metaopt import plugins
from metaopt.executor import Vmap
from metaopt.learner import Learner
from metaopt.nn import class_means, squared_distances
from metaopt.study.file import resolve
from metaopt.study.search import run
from metaopt.study.statistics import paired
from metaopt.study.trial import Bench
from metaopt.task import TaskSpec
from metaopt.terminal import Quiet
from metaopt.train import Scores, meta_test
from metaopt_objectives.accuracy import Accuracy
from metaopt_tasks.gaussian import Gaussian, bayes_accuracy

CPU = torch.device("cpu")
FEATURES = 6
SAMPLER = Gaussian(Gaussian.Config(features=FEATURES))

# A learner that sees the world along a direction drawn when it is built: which one decides how good it is. Its strength
# changes nothing, so that all its trials are equally good but for their luck.
LOTTERY = """
from dataclasses import dataclass
import torch
from torch import nn
from metaopt import tune
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.nn import class_means, squared_distances

class Lottery(Learner):
    name, uses_encoder, trains_on = "lottery", False, "nothing"

    @dataclass(frozen=True)
    class Config:
        strength: float = tune.real(1.0, 2.0, default=1.0)

    def __init__(self, spec, encoder, config):
        super().__init__(spec, encoder, config)
        self.register_buffer("scale", torch.randn(*spec.x_shape).exp())

    def forward(self, support_x, support_y, query_x):
        means = class_means(support_x * self.scale, support_y, self.spec.n_way)
        return -self.config.strength * squared_distances(query_x * self.scale, means)

@hookimpl
def register_learners():
    return [Lottery]
"""
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": FEATURES, "n_way": 5, "n_shot": 1, "n_query": 5},
    "learners": ["lottery"],
    "trials": 10,
    "evaluation": {"tasks": 30, "finalists": 1, "report_tasks": 30},
}


class Bayes(Learner):
    """The Bayes classifier of Gaussian tasks: nearest mean, the means shrunk as the prior says."""

    name = "bayes"

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shrink = 1 / (1 + 1 / self.spec.n_shot)
        return -squared_distances(query_x, shrink * class_means(support_x, support_y, self.spec.n_way))


def per_task(n_tasks: int, spec: TaskSpec) -> Tensor:
    learner, draw = Bayes(spec, nn.Identity(), None), Generator().manual_seed(0)
    objective = Accuracy(Accuracy.Config())
    return meta_test(learner, SAMPLER, "test", objective, n_tasks, Vmap(), draw=draw, device=CPU).per_task


def test_intervals_cover_the_accuracy_that_is_known_in_closed_form_as_often_as_they_say() -> None:
    spec = SAMPLER.spec(5, 1, 5)
    truth = bayes_accuracy(5, 1, FEATURES)
    repetitions = [Scores(part) for part in per_task(100_000, spec).split(100)]
    covered = np.mean([abs(one.mean - truth) <= one.ci95 for one in repetitions])
    assert len(repetitions) == 1000
    assert 0.93 < covered < 0.97


def test_intervals_of_paired_differences_cover_the_true_difference_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    luck, noise = draw.normal(size=(1000, 50)), draw.normal(0.3, 0.5, size=(1000, 50))
    found = [paired(tasks + more, tasks) for tasks, more in zip(luck, noise, strict=True)]
    assert 0.93 < np.mean([abs(one.mean - 0.3) <= one.ci95 for one in found]) < 0.97


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[plugins.Registry]:
    torch.set_num_threads(1)
    (tmp_path / "acme_lottery.py").write_text(LOTTERY)
    monkeypatch.syspath_prepend(str(tmp_path))
    lottery = metadata.EntryPoint("lottery", "acme_lottery", "metaopt")
    yield plugins.load([*metadata.entry_points(group="metaopt"), lottery])
    del sys.modules["acme_lottery"]


def test_the_best_score_of_a_search_is_too_good_and_its_fresh_score_is_not(
    registry: plugins.Registry, tmp_path: Path
) -> None:
    searched, fresh, tested = [], [], []
    for seed in range(24):
        bench = Bench(resolve(STUDY | {"seed": seed}, "s.yaml", registry), registry, CPU)
        [winner] = run(bench, tmp_path / str(seed), Quiet())["finalists"]
        searched.append(winner["search"]["mean"])
        fresh.append(winner["fresh"]["mean"])
        tested.append(winner["report"]["mean"])
    bench = Bench(resolve(STUDY, "s.yaml", registry), registry, CPU)
    params = bench.study.space.default("lottery")
    luck = [bench.score(bench.build(params, seed), "validation", f"truth {seed}", 64).mean for seed in range(150)]
    truth, error = np.mean(luck), np.std(luck) / math.sqrt(len(luck))

    def bias(scores: list[float]) -> float:
        """Return by how many standard errors their mean exceeds the truth."""
        return float((np.mean(scores) - truth) / math.hypot(np.std(scores) / math.sqrt(len(scores)), error))

    assert bias(searched) > 4, "the maximum of ten noisy numbers"
    assert abs(bias(fresh)) < 3
    assert abs(bias(tested)) < 3
