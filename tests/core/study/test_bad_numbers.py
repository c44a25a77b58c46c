"""Whatever numbers the data hold, and whatever a learner predicts, a trial copes or fails with its reason."""

import math
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metaopt import cli, plugins
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, Done, Job
from metaopt.testing.setting import corners
from metaopt.train import Budget
from metaopt.tune import Real, declared

# Samplers of data that is bad in a way that `bad` names, and a learner whose predictions are.
LAB = '''
from dataclasses import dataclass
import torch
from torch import nn
from metaopt import tune
from metaopt.environment import Environments
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.task import Examples, TaskBatch, TaskSampler, TaskSpec

BADS = ("nan", "infinity", "huge", "tiny", "identical", "zeros", "constant_feature", "label_noise", "constant_targets")

def spoilt(bad, x, generator):
    """Return examples (..., *x_shape) with something wrong."""
    some = torch.rand(x.shape, generator=generator) < 0.05
    match bad:
        case "nan_sometimes":  # in the second, the fourth, …
            x = x.clone()
            x[1::2] = float("nan")
            return x
        case "nan": return x.masked_fill(some, float("nan"))
        case "infinity": return x.masked_fill(some, float("inf"))
        case "huge": return 1e30 * x
        case "large": return 1e4 * x
        case "tiny": return 1e-30 * x
        case "identical": return torch.ones_like(x)
        case "zeros": return torch.zeros_like(x)
    return x

class Bad(TaskSampler):
    name, kind, encoder = "bad", "classification", "mlp"

    @dataclass(frozen=True)
    class Config:
        bad: str = "nan"
        pictures: bool = False

    def spec(self, n_way, n_shot, n_query):
        return TaskSpec("classification", (1, 16, 16) if self.config.pictures else (6,), n_way, n_shot, n_query,
                        n_train_classes=5, **self.more())

    def more(self):
        return {}

    def drawn(self, n_tasks, n, spec, generator):
        y = torch.arange(spec.n_way).repeat(n).expand(n_tasks, -1)
        means = torch.randn(n_tasks, spec.n_way, *spec.x_shape, generator=generator)
        x = torch.stack([mean[label] for mean, label in zip(means, y)])
        x = x + 0.3 * torch.randn(x.shape, generator=generator)
        if self.config.bad == "constant_feature":
            x.flatten(2)[:, :, 0] = 3.0
        if self.config.bad == "label_noise":
            y = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in y])
        bad = self.config.bad if self.config.bad != "nan_sometimes" or self.pool != "train" else "none"
        return spoilt(bad, x, generator), y, means

    def draw(self, pool, spec, n_tasks, generator):
        self.pool = pool
        x, y, means = self.drawn(n_tasks, spec.n_shot + spec.n_query, spec, generator)
        k = spec.n_way * spec.n_shot
        support_x, support_y = x[:, :k], y[:, :k]
        if self.config.bad == "label_noise":  # as many shots of each class
            support_y = torch.arange(spec.n_way).repeat(spec.n_shot).expand(n_tasks, -1)
        if spec.description_shape:
            support_x = spoilt(self.config.bad, means.flatten(2)[:, :, :4], generator)
            support_y = torch.arange(spec.n_way).expand(n_tasks, -1)
        return TaskBatch(support_x, support_y, x[:, k:], y[:, k:])

    def examples(self, n, generator):
        spec = self.spec(5, 1, 1)
        y = torch.randint(5, (n,), generator=generator)
        x = y.view(-1, *[1] * len(spec.x_shape)) + torch.randn(n, *spec.x_shape, generator=generator)
        described = torch.randn(5, 4, generator=generator) if spec.description_shape else None
        if described is not None:
            described = spoilt(self.config.bad, described, generator)
        return Examples(spoilt(self.config.bad, x, generator), y, described)

class BadDescriptions(Bad):
    name, supports = "bad_descriptions", "descriptions"

    def more(self):
        return {"description_shape": (4,)}

class BadTargets(TaskSampler):
    name, kind, encoder = "bad_targets", "regression", "mlp"
    Config = Bad.Config

    def spec(self, n_way, n_shot, n_query):
        return TaskSpec("regression", (2,), 1, n_shot, n_query)

    def draw(self, pool, spec, n_tasks, generator):
        x = torch.randn(n_tasks, spec.n_shot + spec.n_query, 2, generator=generator)
        y = x.sum(2, keepdim=True)
        if self.config.bad == "constant_feature":
            x[:, :, 0] = 3.0
        if self.config.bad == "label_noise":
            y = torch.randn(y.shape, generator=generator)
        if self.config.bad == "constant_targets":
            y = torch.ones_like(y)
        x, k = spoilt(self.config.bad, x, generator), spec.n_shot
        return TaskBatch(x[:, :k], y[:, :k], x[:, k:], y[:, k:])

class Place(Environments):
    """Pays for being near a place, and shows or pays something bad."""
    horizon = 4

    def __init__(self, told, bad):
        self.told, self.bad = told, bad

    def start(self, n_episodes, draw):
        return torch.zeros(len(self.told), n_episodes, 2)

    def observe(self, state):
        return spoilt(self.bad, state, torch.Generator().manual_seed(0)) if self.bad != "nan" else state

    def step(self, state, action, draw):
        state = state + action.clamp(-0.3, 0.3)
        paid = spoilt(self.bad, -(state - self.told[:, None]).norm(dim=-1), draw)
        return state, paid, torch.zeros(state.shape[:2], dtype=torch.bool)

    def to(self, device):
        return self

class BadEnvironments(TaskSampler):
    name, kind = "bad_environments", "control"
    Config = Bad.Config

    def spec(self, n_way, n_shot, n_query):
        return TaskSpec("control", (2,), 1, n_shot, n_query, y_size=2, n_told=2)

    def environments(self, pool, spec, n_tasks, generator):
        return Place(torch.randn(n_tasks, 2, generator=generator), self.config.bad)

class Odd(Learner):
    """Predicts oddly for one task in two."""
    name, kinds, uses_encoder, any_way = "odd", ("classification", "regression", "control"), False, True

    @dataclass(frozen=True)
    class Config:
        odd: str = tune.choice("nan", "inf", "-inf", "3e38", "1e-45")
        always: bool = tune.choice(False, True)
        loses: bool = tune.choice(False, True)
        steep: bool = tune.choice(False, True)

    def __init__(self, spec, encoder, config):
        super().__init__(spec, encoder, config)
        self.weight = nn.Parameter(torch.randn(()))

    def forward(self, support_x, support_y, query_x):
        predictions = self.weight * query_x.flatten(1)[:, :1].expand(-1, self.spec.n_outputs)
        oddly = (support_x.sum() > 0) | self.config.always
        if not self.training:
            predictions = torch.where(oddly, predictions * 0 + float(self.config.odd), predictions)
        return predictions

    def stream(self, x, y):
        return self(x, y, x)

    def practise(self, environments, update):
        update({"weight": torch.zeros(())})
        return self.weight.detach()

    def adapt(self, environments, draw):
        returns = torch.randn(len(environments), self.spec.n_shot, generator=draw)
        oddly = (environments.told.sum(1, keepdim=True) > 0) | self.config.always
        return None, torch.where(oddly, float(self.config.odd), returns)

    def act(self, memory, seen, draw):
        return torch.zeros(*seen.shape[:2], self.spec.y_size), memory

    def task_loss(self, *task):
        loss = super().task_loss(*task)
        if self.config.steep:  # a loss that is a number, of a slope that is none
            loss = loss + (0 * self.weight).sqrt()
        return loss * float(self.config.odd) if self.config.loses else loss

@hookimpl
def register_task_samplers():
    return [Bad, BadDescriptions, BadEnvironments, BadTargets]

@hookimpl
def register_learners():
    return [Odd]
'''


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[plugins.Registry]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lab")
    (folder / "acme_bad.py").write_text(LAB)
    sys.path.insert(0, str(folder))
    yield plugins.load([*metadata.entry_points(group="metaopt"), metadata.EntryPoint("bad", "acme_bad", "metaopt")])
    sys.path.remove(str(folder))
    del sys.modules["acme_bad"]


def carry_out(registry: plugins.Registry, tasks: dict[str, Any], learner: str, **more: Any) -> Done:
    """Meta-train a learner at its defaults for a few tasks and score it."""
    raw = {
        "name": "s",
        "tasks": {"n_shot": 2, "n_query": 3, **tasks},
        "learners": more.pop("learners", [learner]),
        "encoder": {"conv4": {"width": 8}} if tasks.get("pictures") else {"mlp": {"width": 8, "depth": 1}},
        "executor": "loop",
        "transductive": True,
        **more,
    }
    bench = Bench(resolve(raw, "s.yaml", registry), registry, torch.device("cpu"))
    params = bench.study.space.default(learner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers; what came of them is looked at
        return bench.run(Job(0, params, 0, Budget(tasks=8), "validation", "search", 6))


def tasks_for(cls: Any, bad: str) -> dict[str, Any]:
    """Return the tasks that a learner can learn."""
    if cls.supports == "descriptions":
        return {"sampler": "bad_descriptions", "n_way": 3, "bad": bad}
    if cls.kinds == ("control",):
        return {"sampler": "bad_environments", "bad": bad}
    if "classification" not in cls.kinds:
        return {"sampler": "bad_targets", "bad": bad}
    return {"sampler": "bad", "n_way": 3, "bad": bad, "pictures": cls.name in {"frn", "cnaps"}}


LEARNERS = sorted(plugins.load().learners)


def kinds(*quick: str, slow: tuple[str, ...]) -> list[Any]:
    return [*quick, *(pytest.param(kind, marks=pytest.mark.slow) for kind in slow)]


@pytest.mark.parametrize("bad", kinds("identical", slow=("zeros", "tiny", "constant_feature", "label_noise")))
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_learner_copes_with_data_that_tell_nothing(registry: plugins.Registry, learner: str, bad: str) -> None:
    copes(carry_out(registry, tasks_for(registry.learner(learner), bad), learner))


def copes(done: Done) -> None:
    assert (done.result.state, done.result.reason) == ("complete", None)
    assert done.result.not_finite == 0
    assert done.result.mean is not None
    assert math.isfinite(done.result.mean)


@pytest.mark.parametrize("bad", kinds("nan", slow=("infinity", "huge", "large")))
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_learner_counts_tasks_that_are_no_numbers_as_the_worst_or_fails_with_a_reason(
    registry: plugins.Registry, learner: str, bad: str
) -> None:
    counts_or_fails(carry_out(registry, tasks_for(registry.learner(learner), bad), learner))


def counts_or_fails(done: Done) -> None:
    if done.result.state == "complete":
        assert all(map(math.isfinite, done.per_task))
    else:
        assert done.result.state == "failed"
        assert done.result.reason
        assert len(done.result.reason.splitlines()) == 1


@pytest.mark.parametrize("learner", ["r2d2", "metaoptnet", "eszsl", "frn", "rfs"])
def test_a_closed_form_stays_one_where_examples_are_the_same_at_both_ends_of_every_range(
    registry: plugins.Registry, learner: str
) -> None:
    cls = registry.learner(learner)
    for config in corners(cls.Config):
        for bad in ("identical", "zeros"):
            copes(carry_out(registry, tasks_for(cls, bad), learner, learners={learner: config or None}))


@pytest.mark.parametrize("learner", ["maml", "anil", "meta_sgd", "maml_pp", "reptile", "finetune"])
def test_an_inner_loop_that_explodes_is_counted_or_fails_with_a_reason(
    registry: plugins.Registry, learner: str
) -> None:
    cls = registry.learner(learner)
    widest = {
        name: parameter.high
        for name, parameter in declared(cls.Config).items()
        if isinstance(parameter, Real) and "lr" in name
    }
    assert widest
    for tasks in (dict[str, Any](sampler="bad", n_way=3), {"sampler": "bad_targets"}):
        if registry.task_sampler(tasks["sampler"]).kind in cls.kinds:
            done = carry_out(registry, {**tasks, "bad": "large"}, learner, learners={learner: widest})
            counts_or_fails(done)


OBJECTIVES = plugins.load().meta_objectives


def odd_tasks(cls: Any) -> dict[str, Any]:
    if cls.name == "at_presentation":
        return {"sampler": "bad", "n_way": 2, "bad": "none", "stream": True, "n_query": 0}
    if cls.kinds == ("control",):
        return {"sampler": "bad_environments", "bad": "none"}
    if "classification" not in cls.kinds:
        return {"sampler": "bad_targets", "bad": "none"}
    return {"sampler": "bad", "n_way": 3, "bad": "none"}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_counts_predictions_that_are_no_numbers_as_the_worst_or_fails_the_trial(
    registry: plugins.Registry, name: str
) -> None:
    cls = registry.meta_objective(name)
    for odd in ("nan", "inf", "-inf", "3e38", "1e-45"):
        done = carry_out(
            registry, odd_tasks(cls), "odd", learners={"odd": {"odd": odd, "always": False}}, objective=name
        )
        infinite = odd in {"nan", "inf", "-inf"}
        if infinite and cls.worst is None:
            assert (odd, done.result.state) == (odd, "failed")
            assert done.result.reason
            assert done.result.reason.endswith("validation tasks have predictions that are not finite")
            continue
        assert (odd, done.result.state, done.result.reason) == (odd, "complete", None)
        assert all(map(math.isfinite, done.per_task))
        assert (done.result.not_finite > 0) is infinite
        if infinite:
            assert done.per_task.count(float(cls.worst)) >= done.result.not_finite


@pytest.mark.parametrize(("odd", "became"), [("nan", "nan"), ("inf", "-?inf|nan"), ("3e38", "-?inf|nan")])
def test_a_loss_that_is_no_number_fails_the_trial_with_the_tasks_it_took(
    registry: plugins.Registry, odd: str, became: str
) -> None:
    done = carry_out(
        registry, {"sampler": "bad", "n_way": 3, "bad": "none"}, "odd", learners={"odd": {"odd": odd, "loses": True}}
    )
    assert done.result.state == "failed"
    assert re.fullmatch(rf"the meta-training loss became ({became}) after \d+ tasks", str(done.result.reason))


@pytest.mark.parametrize(("per_step", "state"), [(2, "failed"), (8, "complete")])
def test_a_gradient_that_is_no_number_fails_the_trial_or_its_tasks_are_counted(
    registry: plugins.Registry, per_step: int, state: str
) -> None:
    done = carry_out(
        registry, {"sampler": "bad", "n_way": 3, "bad": "none"}, "odd",
        learners={"odd": {"steep": True, "loses": False, "always": False}}, outer={"tasks_per_step": per_step},
    )  # fmt: skip
    assert done.result.state == state, done.result.reason
    if state == "failed":
        assert re.fullmatch(r"the meta-training loss became nan after 4 tasks", str(done.result.reason))
    else:  # it was the last step
        assert done.result.not_finite == 6


def test_constant_targets_are_scored(registry: plugins.Registry) -> None:
    for objective in ("r2", "mse"):
        tasks = {"sampler": "bad_targets", "bad": "constant_targets"}
        done = carry_out(registry, tasks, "maml", objective=objective)
        assert (done.result.state, done.result.not_finite) == ("complete", 0)
        assert all(map(math.isfinite, done.per_task))


@pytest.mark.parametrize("executor", ["loop", "vmap", "traced"])
@pytest.mark.parametrize("learner", ["r2d2", "metaoptnet", "maml"])
def test_a_task_that_is_no_number_spoils_no_other_task(registry: plugins.Registry, learner: str, executor: str) -> None:
    done = carry_out(registry, {"sampler": "bad", "n_way": 3, "bad": "nan_sometimes"}, learner, executor=executor)
    assert (done.result.state, done.result.reason) == ("complete", None)
    assert 0 < done.result.not_finite < 6


def test_a_study_of_nothing_but_failures_has_exit_code_1_and_their_reasons_grouped(
    registry: plugins.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "load", lambda: registry)
    raw = {
        "name": "s",
        "tasks": {"sampler": "bad", "n_way": 3, "n_shot": 2, "n_query": 3, "bad": "none"},
        "learners": {"odd": {"odd": ["nan", "inf"], "loses": True, "always": False}, "protonet": None},
        "encoder": {"mlp": {"width": 8, "depth": 1}},
        "outer": {"lr": None},
        "trials": 4,
        "budget": {"tasks": 4},
        "evaluation": {"tasks": 4},
    }
    raw["tasks"]["bad"], raw["objective"] = "nan", "log_loss"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = cli.main(["study", "run", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "run"), "--quiet"])
    out = capsys.readouterr().out
    assert code == 1
    said = re.findall(r"^(\d+) failed: (\w+): (.+)$", out, re.MULTILINE)
    assert sum(int(n) for n, _, _ in said) == 4
    assert len(said) == len(set(said)) < 4
