"""Executors are ways to compute one result: each equals the loop, and the loop equals the mathematics."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import dropout

from metaopt import executor as executors
from metaopt.errors import UserError
from metaopt.executor import EXECUTORS, Executor, Loop, Traced, TracedLoop, Vmap, choose, trainable
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder
from metaopt.plugins import BUILT_IN, load
from metaopt.task import Examples, Kind, TaskBatch, TaskSpec
from metaopt_baseline.pretrain import Pretrain
from metaopt_encoders.mlp import MLP
from metaopt_gradient.maml import MAML

REGISTRY = load()

LEARNERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "protonet": {"euclidean": {}, "cosine": {"distance": "cosine", "temperature": 0.2}},
    "maml": {
        "second order": {"inner_steps": 2, "test_steps": 2},
        "first order": {"inner_steps": 2, "test_steps": 2, "first_order": True},
    },
    "reptile": {
        "adam": {"inner_lr": 0.01, "inner_steps": 2, "inner_batch": 4, "test_steps": 3},
        "sgd": {"inner_optimizer": "sgd", "inner_lr": 0.1, "inner_steps": 2, "inner_batch": 4, "test_steps": 3},
    },
    "finetune": {"two steps": {"lr": 0.1, "steps": 2}},
    "pretrain": {"cosine": {}, "euclidean": {"distance": "euclidean"}},
    "pixels": {"plain": {}},
    "anil": {"two steps": {"inner_steps": 2, "test_steps": 2}},
    "baseline": {"three steps": {"steps": 3}},
    "baseline_pp": {"three steps": {"steps": 3}},
    "cnaps": {"plain": {}},
    "eszsl": {"plain": {}},
    "frn": {"plain": {}},
    "hyperhead": {"narrow": {"width": 16}},
    "leo": {"small": {"latent": 8, "steps": 2, "weight_steps": 1}},
    "learned_optimizer": {
        "learned": {"unroll": 2, "hidden": 4},
        "given": {"start": "given", "unroll": 2, "hidden": 4},
    },
    "lstm_meta": {"two steps": {"steps": 2, "hidden": 4}},
    "maml_pp": {
        "second order": {"inner_steps": 2, "first_order": 0.0},
        "first order": {"inner_steps": 2, "first_order": 1.0},
    },
    "mann": {"small": {"controller": 16, "slots": 8, "slot_size": 8, "heads": 2}},
    "matching": {"alone": {}, "full context": {"full_context": True}},
    "meta_sgd": {"two steps": {"inner_steps": 2}},
    "metaoptnet": {"three steps": {"steps": 3}},
    "metanet": {"first order": {"width": 8}, "second order": {"width": 8, "first_order": False}},
    "protonet_zero": {"plain": {}},
    "r2d2": {"plain": {}},
    "relation": {"sum": {}, "mean": {"of_class": "mean"}},
    "rfs": {"plain": {}},
    "simpleshot": {"cl2n": {}, "l2n": {"transform": "l2n"}, "un": {"transform": "un"}},
    "sklearn": {name: {"classifier": name} for name in ("logistic", "svm", "neighbors", "bayes")},
    "snail": {"narrow": {"width": 8}},
}
"""Every built-in learner, with settings for every path through its code."""

DRAWS = {"leo"}
"""Learners that draw random numbers in meta-training, which no two executors draw alike, and none at meta-test."""

ENCODERS: Mapping[str, Mapping[str, tuple[tuple[int, ...], Mapping[str, Any]]]] = {
    "conv4": {
        f"{pool} {norm}": (
            (1, 16, 16),
            {"width": 10, "pool": pool, "norm": norm},
        )  # above 9, patches of 1 × 3 × 3 pixels
        for pool in ("max", "stride")
        for norm in ("layer", "none", "batch")
    },
    "identity": {"vectors": ((5,), {})},
    "mlp": {"vectors": ((5,), {"width": 8})},
    "pyramid": {"three layers": ((1, 8, 8), {"width": 8, "depth": 3})},
    "resnet12": {norm: ((1, 16, 16), {"width": 4, "norm": norm}) for norm in ("layer", "batch")},
    "wide": {"vectors": ((5,), {"width": 8})},
}
"""Every built-in encoder, with the shape of an example and settings for every path through its code."""

REFERENCES = ("protonet euclidean", "maml second order")
"""What every encoder is tested under: no adaptation, and second derivatives."""
OF_EXACT_GRADIENT = ("finetune two steps", "anil two steps", "meta_sgd two steps", "maml_pp second order")
"""Whose meta-training goes down the gradient of the task loss with nothing left out, on common encoders."""
COMMON = ("conv4 max layer", "conv4 stride none", "mlp vectors")
"""What every learner is tested on."""
N_TASKS = 2


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let executors that record what is called often record every first call."""
    monkeypatch.setattr("metaopt.executor.RECORD_AFTER", 1)
    monkeypatch.setattr("metaopt.executor.RECORD_LOOP_AFTER", 1)


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Executor:
    """Return a fresh executor, for the class that a test is parametrised by."""
    fresh: Executor = request.param()
    return fresh


@dataclass(frozen=True)
class Case:
    """A learner, what it stands on, and what it learns."""

    learner: type[Learner]
    config: Any
    encoder: type[Encoder]
    encoder_config: Any
    spec: TaskSpec
    learner_path: str = ""
    encoder_path: str = ""

    def __str__(self) -> str:
        return f"{self.learner_path}, {self.encoder_path}, {self.spec.kind}"

    def build(self) -> Learner:
        """Return a float64 learner whose parameters, the normalisations' affine ones too, are random."""
        torch.manual_seed(0)
        learner = self.learner(self.spec, self.encoder(self.spec.x_shape, self.encoder_config), self.config).double()
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return learner

    def batch(self) -> TaskBatch | Examples:
        """Return what an outer step of the learner is given."""
        if self.learner.trains_on != "examples":
            return tasks(self.spec)
        draw = Generator().manual_seed(2)
        x = torch.randn(12, *self.spec.x_shape, dtype=torch.float64, generator=draw)
        y = torch.randint(self.spec.n_train_classes, (12,), generator=draw)
        shape = self.spec.n_train_classes, *self.spec.description_shape
        return Examples(x, y, torch.randn(shape, dtype=torch.float64, generator=draw))


def spec_of(kind: Kind, x_shape: tuple[int, ...]) -> TaskSpec:
    if kind == "regression":
        return TaskSpec(kind, x_shape, n_way=1, n_shot=4, n_query=3, y_size=2)
    return TaskSpec(kind, x_shape, n_way=3, n_shot=2, n_query=2, n_train_classes=7)


def tasks(spec: TaskSpec, n_tasks: int = N_TASKS) -> TaskBatch:
    draw = Generator().manual_seed(1)

    def half(n: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x = torch.randn(n_tasks, spec.n_way * n, *shape, dtype=torch.float64, generator=draw)
        if spec.kind == "regression":
            return x, torch.randn(n_tasks, n, spec.y_size, dtype=torch.float64, generator=draw)
        return x, torch.rand(n_tasks, spec.n_way * n, generator=draw).argsort(1) % spec.n_way

    return TaskBatch(*half(spec.n_shot, spec.support_shape), *half(spec.n_query, spec.x_shape))


def cases() -> Iterator[Case]:
    """Yield every learner on the common encoders and the references on every encoder; refused pairs are left out."""
    for (name, paths), (encoder_name, encoder_paths) in product(LEARNERS.items(), ENCODERS.items()):
        learner, encoder = REGISTRY.learner(name), REGISTRY.encoder(encoder_name)
        for (path, config), (encoder_path, (x_shape, settings)) in product(paths.items(), encoder_paths.items()):
            titles = f"{name} {path}", f"{encoder_name} {encoder_path}"
            if titles[0] in REFERENCES or titles[1] in COMMON:
                for kind in learner.kinds:
                    spec = spec_of(kind, x_shape)
                    if learner.supports == "descriptions":
                        spec = replace(spec, n_shot=1, description_shape=(4,))
                    case = Case(learner, learner.Config(**config), encoder, encoder.Config(**settings), spec, *titles)
                    with suppress(UserError):
                        case.build()
                        yield case


def run_by(executors: Iterable[type[Executor]], cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Run a test on each case with each executor, and mark as slow what takes seconds to get ready."""
    return pytest.mark.parametrize(
        ("case", "executor"),
        [
            pytest.param(
                case, executor, id=f"{case}, {executor.name}", marks=[pytest.mark.slow] * records(case, executor)
            )
            for case in cases
            for executor in (executors if case.learner.batchable else [Loop])
        ],
        indirect=["executor"],
    )


def records(case: Case, executor: type[Executor]) -> bool:
    """Whether an executor records what takes seconds to record."""
    return executor not in (Loop, Vmap) and not (case.learner_path in REFERENCES and case.encoder_path == "mlp vectors")


ALL = EXECUTORS.values()
OTHERS = [executor for executor in ALL if executor is not Loop]
CASES = list(cases())
TRAINED = [case for case in CASES if case.learner.trains_on != "nothing" and trainable(case.build())]
EXACT = [case for case in TRAINED if case.learner_path in (*REFERENCES, *OF_EXACT_GRADIENT)]
ON_VECTORS = [case for case in TRAINED if case.encoder_path == "mlp vectors"]
every_executor = pytest.mark.parametrize("executor", ALL, ids=EXECUTORS, indirect=True)


def outer_step(case: Case, learner: Learner, executor: Executor) -> tuple[Tensor, Gradients]:
    """Return the loss of the learner's outer step and the gradients it hands to the optimiser."""
    learner.train(case.learner.name not in DRAWS)
    handed: list[Gradients] = []
    loss = learner.outer_step(case.batch(), executor, handed.append)
    (gradients,) = handed
    return loss, gradients


def assert_same(actual: tuple[Tensor, Gradients], expected: tuple[Tensor, Gradients]) -> None:
    """Compare losses and gradients, whose rounding errors here are below 1e-13.

    The absolute tolerance is for a bias before batch normalisation, which does nothing: its gradient is rounding,
    that Reptile's Adam divides by its own size.
    """
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-9, atol=0)
    assert set(actual[1]) == set(expected[1])
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-4, "zeros would be no test"
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, rtol=1e-9, atol=1e-9)


def test_every_built_in_learner_and_encoder_has_a_row() -> None:
    def built_in(classes: Mapping[str, type]) -> set[str]:
        return {name for name, cls in classes.items() if REGISTRY.provider(cls).distribution == BUILT_IN}

    acting = {name for name, cls in REGISTRY.learners.items() if cls.kinds == ("control",)}  # by no executor
    assert built_in(REGISTRY.learners) - acting == set(LEARNERS)
    assert built_in(REGISTRY.encoders) == set(ENCODERS)
    assert {case.learner.name for case in CASES} == set(LEARNERS), "each suits an encoder"


@run_by(OTHERS, CASES)
def test_predictions_are_those_of_the_learner_called_task_by_task(case: Case, executor: Executor) -> None:
    learner, batch = case.build().eval(), tasks(case.spec)
    inputs = batch.support_x, batch.support_y, batch.query_x
    expected = torch.stack([learner(*task) for task in zip(*inputs, strict=True)]).detach()
    with torch.no_grad():
        predictions = executor.map(learner, "forward", *inputs)
    assert isinstance(predictions, Tensor)
    assert predictions.shape == (N_TASKS, case.spec.n_way * case.spec.n_query, case.spec.n_outputs)
    torch.testing.assert_close(predictions, expected, rtol=1e-9, atol=1e-9)


@run_by(OTHERS, TRAINED)
def test_outer_steps_are_those_of_the_loop(case: Case, executor: Executor) -> None:
    learner = case.build()
    step = outer_step(case, learner, executor)
    assert set(step[1]) == set(trainable(learner))
    assert_same(step, outer_step(case, learner, Loop()))


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_the_loops_gradient_matches_finite_differences(case: Case) -> None:
    """Along three random directions in the space of all parameters.

    The step is small, because at a kink of ReLU or max-pooling the loss after a step of MAML jumps.
    """
    learner, batch = case.build(), tasks(case.spec)
    _, gradient = Loop().gradient(learner, batch)
    start, size, draw = copy.deepcopy(learner.state_dict()), 1e-8, Generator().manual_seed(3)
    for _ in range(3):
        direction = {name: torch.randn(g.shape, dtype=g.dtype, generator=draw) for name, g in gradient.items()}
        losses = []
        for way in (1, -1):
            learner.load_state_dict({name: weight + way * size * direction[name] for name, weight in start.items()})
            losses.append(sum(learner.task_loss(*task).item() for task in zip(*batch.tensors(), strict=True)) / N_TASKS)
        slope = (losses[0] - losses[1]) / (2 * size)
        along = sum((gradient[name] * direction[name]).sum().item() for name in gradient)
        assert abs(slope) > 1e-3
        assert along == pytest.approx(slope, rel=1e-5)


@run_by(ALL, EXACT)
def test_the_gradient_of_a_batch_is_the_mean_of_its_tasks_gradients(case: Case, executor: Executor) -> None:
    learner, batch = case.build(), tasks(case.spec)
    alone = [executor.gradient(learner, TaskBatch(*(t[i : i + 1] for t in batch.tensors()))) for i in range(N_TASKS)]
    mean = {name: torch.stack([gradient[name] for _, gradient in alone]).mean(0) for name in trainable(learner)}
    assert_same(executor.gradient(learner, batch), (torch.stack([loss for loss, _ in alone]).mean(), mean))


MLP_CONFIG = MLP.Config(width=8)
CLASSES = spec_of("classification", (5,))
ADAPTS = Case(MAML, MAML.Config(inner_steps=1, test_steps=2), MLP, MLP_CONFIG, CLASSES)


@run_by(ALL, ON_VECTORS)
def test_no_executor_writes_to_the_learner(case: Case, executor: Executor) -> None:
    learner = case.build()
    trained = set(trainable(learner))
    if case.learner.trains_on == "examples":  # its outer step is its own, and may keep a mean of what it has seen
        outer_step(case, learner, executor)
    before = copy.deepcopy(learner.state_dict())
    if case.learner.trains_on == "tasks":
        outer_step(case, learner, executor)
    executor.map(learner, "forward", *tasks(case.spec).tensors()[:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert set(trainable(learner)) == trained
    assert learner.training == (case.learner.name not in DRAWS)


@every_executor
def test_one_executor_follows_the_weights_the_mode_the_learner_and_the_size_of_the_tasks(executor: Executor) -> None:
    """What an executor remembers from one call must not be wrong in the next."""
    learner, other = ADAPTS.build(), replace(ADAPTS, config=MAML.Config(inner_lr=0.3)).build()
    more_shots = TaskSpec("classification", (5,), n_way=3, n_shot=4, n_query=1)
    seen = []

    def compare(learner: Learner, batch: TaskBatch) -> None:
        step = executor.gradient(learner, batch)
        assert_same(step, Loop().gradient(learner, batch))
        seen.append(step[0].item())

    compare(learner, tasks(CLASSES))
    compare(other, tasks(CLASSES))
    with torch.no_grad():
        learner.get_parameter("net.1.weight").mul_(2)
    compare(learner, tasks(CLASSES))
    compare(learner.eval(), tasks(CLASSES))
    compare(learner.train(), tasks(CLASSES, n_tasks=5))
    compare(learner.with_spec(more_shots), tasks(more_shots))
    learner.get_parameter("net.0.layers.0.bias").requires_grad_(False)
    compare(learner, tasks(CLASSES, n_tasks=4))
    assert len(set(seen)) == len(seen), "each change must change the loss"


@every_executor
def test_what_the_loss_does_not_use_has_a_gradient_of_zero(executor: Executor) -> None:
    case = Case(Pretrain, Pretrain.Config(), MLP, MLP_CONFIG, CLASSES)  # its classifier has no part in predictions
    _, gradients = executor.gradient(case.build(), tasks(CLASSES))
    unused = {name for name, gradient in gradients.items() if not gradient.any()}
    assert unused == {"classifier.weight", "classifier.bias"}


@run_by(ALL, ON_VECTORS)
def test_frozen_parameters_get_no_gradient_and_change_nobody_elses(case: Case, executor: Executor) -> None:
    learner = case.build()
    loss, whole = outer_step(case, learner, Loop())
    frozen, *rest = trainable(learner)
    if not rest:
        pytest.skip("it has one parameter")
    learner.get_parameter(frozen).requires_grad_(False)
    assert_same(outer_step(case, learner, executor), (loss, {name: whole[name] for name in rest}))


class Two(Learner):
    """Returns two things by name, of any task."""

    name = "two"

    def sums(self, support_x: Tensor, query_x: Tensor) -> dict[str, Tensor]:
        return {"support": support_x.sum(), "query": query_x.sum(0)}


@every_executor
def test_methods_that_return_a_dict_are_stacked_by_name(executor: Executor) -> None:
    batch = tasks(CLASSES)
    result = executor.map(Two(CLASSES, nn.Identity(), None), "sums", batch.support_x, batch.query_x)
    assert isinstance(result, dict)
    assert set(result) == {"support", "query"}
    torch.testing.assert_close(result["support"], batch.support_x.sum((1, 2)))
    torch.testing.assert_close(result["query"], batch.query_x.sum(1))


class Forgetful(Learner):
    """Predicts the queries, with half of their numbers left out at random."""

    name = "forgetful"

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return dropout(torch.ones_like(query_x), 0.5)


@every_executor
def test_chance_in_a_learner_is_drawn_anew_for_every_task(executor: Executor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masks = executor.map(Forgetful(CLASSES, nn.Identity(), None), "forward", *tasks(CLASSES, 8).tensors()[:3])
    assert isinstance(masks, Tensor)
    drawn = {tuple(mask.flatten().tolist()) for mask in masks}
    assert {number for mask in drawn for number in mask} == {0.0, 2.0}
    assert len(drawn) == 8


@pytest.mark.parametrize("recorder", [Traced, TracedLoop])
@pytest.mark.parametrize(("calls", "replays"), [(1, False), (7, True)])
def test_what_was_replayed_before_a_checkpoint_is_replayed_from_the_first_call_after_it(
    recorder: type[Traced | TracedLoop], calls: int, replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "RECORD_AFTER", 3)
    monkeypatch.setattr(executors, "RECORD_LOOP_AFTER", 5)
    learner, batch, before, after = ADAPTS.build(), tasks(ADAPTS.spec), recorder(), recorder()
    for _ in range(calls):
        before.gradient(learner, batch)
    after.take_up(learner, json.loads(json.dumps(before.calls(learner))))
    after.gradient(learner, batch)
    assert bool(before.replays) == bool(after.replays) == replays


def test_an_executor_is_chosen_by_its_name() -> None:
    for name, cls in EXECUTORS.items():
        assert type(choose(name, CLASSES)) is cls
        assert cls.name == name


@pytest.mark.parametrize("x_shape", [(5,), (1, 28, 28)])
def test_auto_is_one_of_the_executors_for_examples_of_any_shape(x_shape: tuple[int, ...]) -> None:
    assert type(choose("auto", spec_of("classification", x_shape))) in EXECUTORS.values()
    assert type(choose("auto", spec_of("classification", x_shape), "cuda")) is Traced


def test_an_unknown_executor_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no executor named 'vmpa'; did you mean 'vmap'"):
        choose("vmpa", CLASSES)
