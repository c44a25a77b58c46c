"""What every learner keeps to: queries apart, the support set as a set; and what the base class gives."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from metaopt.errors import UserError
from metaopt.executor import Executor, Loop, Vmap
from metaopt.learner import Gradients, Learner
from metaopt.plugins import load
from metaopt.task import Examples, Kind, Supports, TaskBatch, TaskSpec
from metaopt.tune import declared

REGISTRY = load()
SHAPES: dict[tuple[int, ...], str] = {(5,): "mlp", (1, 16, 16): "conv4"}
"""Shapes of examples, each with the encoder of task samplers that give them."""


def spec_of(kind: Kind, x_shape: tuple[int, ...], supports: Supports = "examples") -> TaskSpec:
    if kind == "regression":
        return TaskSpec(kind, x_shape, n_way=1, n_shot=12, n_query=4)
    described = (3,) if supports == "descriptions" else ()
    return TaskSpec(kind, x_shape, n_way=3, n_shot=4, n_query=2, n_train_classes=7, description_shape=described)


SEES_THE_ORDER: dict[str, dict[str, Any]] = {"matching": {"full_context": True}}
"""Of learners for which the order of the support set matters with some settings only, those settings."""


def build(cls: type[Learner], spec: TaskSpec, *, norm: str = "layer", **config: Any) -> Learner:
    """Return a float64 learner as a study with defaults builds it, but for a narrow encoder and few steps."""
    encoder = REGISTRY.encoder(SHAPES[spec.x_shape])
    settings: dict[str, Any] = {"width": 8, "norm": norm} if encoder.name == "conv4" else {}
    config = {name: 4 for name in declared(cls.Config) if name in ("steps", "test_steps")} | config
    torch.manual_seed(0)
    return cls(spec, encoder(spec.x_shape, encoder.Config(**settings)), cls.Config(**config)).double().eval()


def task(spec: TaskSpec, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(seed)
    n_support, n_queries = spec.n_way * spec.n_shot, spec.n_way * spec.n_query
    support_x = torch.randn(n_support, *spec.support_shape, dtype=torch.float64, generator=draw)
    query_x = torch.randn(n_queries, *spec.x_shape, dtype=torch.float64, generator=draw)
    if spec.kind == "regression":
        return support_x, torch.randn(n_support, spec.y_size, dtype=torch.float64, generator=draw), query_x
    return support_x, torch.randperm(n_support, generator=draw) % spec.n_way, query_x


def predict(executor: Executor, learner: Learner, *inputs: Tensor) -> Tensor:
    """Return the predictions for the queries of one task, as meta-testing gets them."""
    with torch.no_grad():
        predictions = executor.map(learner, "forward", *(tensor[None] for tensor in inputs))
    assert isinstance(predictions, Tensor)
    return predictions[0]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def suits(cls: type[Learner], spec: TaskSpec) -> bool:
    """Whether a learner takes such tasks and the encoder that goes with them."""
    try:
        build(cls, spec)
    except UserError:
        return False
    return True


def cases(learners: Iterable[type[Learner]], x_shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    """Return each learner with each size of task it learns and each of these executors that can run it."""
    return [
        pytest.param(cls, spec, executor(), id=f"{cls.name}, {kind}, {SHAPES[x_shape]}, {executor.name}")
        for cls, x_shape, executor in product(learners, x_shapes, (Loop, Vmap))  # others equal these: test_executor.py
        for kind in cls.kinds
        if (executor is Loop or cls.batchable) and suits(cls, spec := spec_of(kind, x_shape, cls.supports))
    ]


LEARNERS = [cls for cls in REGISTRY.learners.values() if cls.kinds != ("control",)]  # those act, and predict nothing
CASE = ("cls", "spec", "executor")
CASES = cases(LEARNERS)
every_learner = pytest.mark.parametrize(CASE, CASES)
every_learner_looped = pytest.mark.parametrize(CASE, [case for case in CASES if isinstance(case.values[2], Loop)])
every_inductive_learner = pytest.mark.parametrize(CASE, cases([cls for cls in LEARNERS if not cls.transductive]))
every_learner_of_pictures = pytest.mark.parametrize(
    CASE, cases([cls for cls in LEARNERS if cls.uses_encoder], [(1, 16, 16)])
)


def test_every_learner_is_tested_on_some_encoder() -> None:
    assert {case.values[0] for case in CASES} == set(LEARNERS)


@every_inductive_learner
def test_the_prediction_for_a_query_depends_on_no_other_query(
    cls: type[Learner], spec: TaskSpec, executor: Executor
) -> None:
    learner = build(cls, spec)
    support_x, support_y, query_x = task(spec)
    together = predict(executor, learner, support_x, support_y, query_x)
    changed = torch.cat([query_x[:1], 10 * task(spec, seed=9)[2][1:]])
    beside_others = predict(executor, learner, support_x, support_y, changed)
    assert close(beside_others[0], together[0])
    assert not close(beside_others[1], together[1]), "the prediction for a query depends on that query"
    assert close(predict(executor, learner, support_x, support_y, query_x[:1])[0], together[0])
    assert close(predict(executor, learner, support_x, support_y, query_x.flip(0)).flip(0), together)


@every_learner_of_pictures
def test_batch_normalisation_makes_it_depend_on_the_other_queries(
    cls: type[Learner], spec: TaskSpec, executor: Executor
) -> None:
    learner = build(cls, spec, norm="batch")
    support_x, support_y, query_x = task(spec)
    together = predict(executor, learner, support_x, support_y, query_x)
    half = predict(executor, learner, support_x, support_y, query_x[: len(query_x) // 2])
    assert not torch.allclose(half, together[: len(half)], rtol=1e-3)


@every_learner
def test_the_order_of_the_support_set_matters_where_a_learner_says_so_and_nowhere_else(
    cls: type[Learner], spec: TaskSpec, executor: Executor
) -> None:
    learner = build(cls, spec, **SEES_THE_ORDER.get(cls.name, {}))
    support_x, support_y, query_x = task(spec)
    order = torch.randperm(len(support_x), generator=Generator().manual_seed(4))
    predictions = predict(executor, learner, support_x, support_y, query_x)
    shuffled = predict(executor, learner, support_x[order], support_y[order], query_x)
    assert close(shuffled, predictions) != cls.order_matters
    mislabelled = predict(executor, learner, support_x[order], support_y, query_x)
    assert not close(mislabelled, shuffled), "which label belongs to which example does matter"


@pytest.mark.parametrize("executor", [Loop(), Vmap()], ids=["loop", "vmap"])
def test_reptile_on_whole_batches_does_not_see_the_order_of_the_support_set(executor: Executor) -> None:
    spec = spec_of("classification", (5,))
    learner = build(REGISTRY.learner("reptile"), spec, inner_batch=50)
    support_x, support_y, query_x = task(spec)
    predictions = predict(executor, learner, support_x, support_y, query_x)
    assert close(predict(executor, learner, support_x.flip(0), support_y.flip(0), query_x), predictions)


@every_learner_looped
def test_a_learner_serves_tasks_with_other_numbers_of_shots_and_queries(
    cls: type[Learner], spec: TaskSpec, executor: Executor
) -> None:
    """And of ways where it says so."""
    n_way = 5 if cls.any_way else spec.n_way
    other = replace(spec, n_way=n_way, n_shot=1, n_query=3)
    learner = build(cls, spec)
    served = learner.with_spec(other)
    predictions = predict(executor, served, *task(other))
    assert predictions.shape == (n_way * 3, other.n_outputs)
    assert predictions.isfinite().all()
    assert learner.spec == spec


SPEC = spec_of("classification", (5,))


class Plain(Learner):
    """A linear network that learns nothing from the support set; its every fact comes from the base class."""

    name = "plain"

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec, nn.Linear(5, 3), self.Config())

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores: Tensor = self.encoder(query_x)
        return scores


def test_the_loss_is_cross_entropy_in_classification_and_the_mean_squared_error_in_regression() -> None:
    predictions = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    log_likelihood = (predictions.exp() / predictions.exp().sum(1, keepdim=True)).log()
    expected = -(log_likelihood[0, 0] + log_likelihood[1, 1]) / 2
    torch.testing.assert_close(Plain(SPEC).loss(predictions, labels), expected)
    targets = torch.zeros(2, 3, dtype=torch.float64)
    expected = torch.tensor((4 + 1 + 0.25 + 0 + 1 + 9) / 6, dtype=torch.float64)
    torch.testing.assert_close(Plain(spec_of("regression", (5,))).loss(predictions, targets), expected)


def test_the_task_loss_is_the_loss_of_the_predictions_for_the_queries() -> None:
    learner = Plain(SPEC)
    support_x, support_y, query_x = (t.float() if t.is_floating_point() else t for t in task(SPEC))
    query_y = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = cross_entropy(learner(support_x, support_y, query_x), query_y)
    assert torch.equal(learner.task_loss(support_x, support_y, query_x, query_y), expected)


def test_the_outer_step_hands_the_executors_gradient_to_the_optimiser_and_returns_its_loss() -> None:
    learner = Plain(SPEC).double()
    x, y = torch.randn(2, 6, 5, dtype=torch.float64), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    batch = TaskBatch(x, y, x + 1, y)
    handed: list[Gradients] = []
    loss = learner.outer_step(batch, Loop(), handed.append)
    expected_loss, expected = Loop().gradient(learner, batch)
    assert torch.equal(loss, expected_loss)
    (gradients,) = handed
    assert set(gradients) == set(expected) == {"encoder.weight", "encoder.bias"}
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_a_learner_that_trains_on_tasks_takes_no_examples() -> None:
    with pytest.raises(AssertionError):
        Plain(SPEC).outer_step(Examples(torch.zeros(1, 5), torch.zeros(1)), Loop(), lambda gradients: None)


def test_a_learner_for_another_size_of_task_shares_its_parameters_with_the_one_it_is_made_of() -> None:
    learner = Plain(SPEC)
    other = learner.with_spec(TaskSpec("classification", (5,), 3, 1, 1))
    assert other.spec.n_shot == 1
    assert learner.spec is SPEC
    assert learner.with_spec(SPEC) is learner
    for name, parameter in learner.named_parameters():
        assert other.get_parameter(name) is parameter


def test_a_learner_without_forward_says_so() -> None:
    class Empty(Learner):
        name = "empty"

    with pytest.raises(NotImplementedError, match="the learner Empty does not define `forward`"):
        Empty(SPEC, nn.Identity(), None)(*task(SPEC))
