"""A recorded function replays what it did, whatever the inputs, with fewer operators."""

import logging
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metaopt import executor
from metaopt.executor import Loop, Traced, TracedLoop, Vmap
from metaopt.graph import clean, record
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskBatch, TaskSpec


def operators(function: Any, *inputs: Tensor) -> tuple[int, int]:
    """Return how many operators a function runs, before and after cleaning."""
    module = make_fx(function)(*inputs)
    before = sum(node.op == "call_function" for node in module.graph.nodes)
    clean(module.graph)
    module.recompile()
    for got, want in zip(module(*inputs), function(*inputs), strict=True):
        assert torch.equal(got, want)
    return before, sum(node.op == "call_function" for node in module.graph.nodes)


def test_what_is_computed_twice_is_computed_once() -> None:
    assert operators(lambda x: [x.sin() + x.sin(), x.sin()], torch.rand(3)) == (4, 2)


def test_views_that_change_nothing_are_left_out() -> None:
    assert operators(lambda x: [x.view(2, 3).expand(2, 3).view(2, 3) + 1], torch.rand(2, 3)) == (4, 1)


def test_an_operator_that_undoes_another_is_left_out_with_it() -> None:
    assert operators(lambda x: [x.t().t() + 1, x.transpose(0, 1).transpose(0, 1) + 2], torch.rand(2, 3)) == (6, 2)


def test_a_view_of_a_view_is_a_view_of_the_first() -> None:
    assert operators(lambda x: [x.view(6).view(3, 2) + 1], torch.rand(2, 3)) == (3, 2)


def test_random_numbers_are_never_taken_for_the_same() -> None:
    module = make_fx(lambda x: [torch.rand_like(x), torch.rand_like(x)])(torch.rand(5))
    clean(module.graph)
    module.recompile()
    first, second = module(torch.rand(5))
    assert not torch.equal(first, second)


def test_what_is_written_in_place_is_not_taken_for_what_it_was_before() -> None:
    def function(x: Tensor) -> list[Tensor]:
        first, second = torch.ones_like(x), torch.ones_like(x)
        first.mul_(3)
        return [x * first, x * second]

    x = torch.rand(4)
    replayed = record(function, [x])(x)
    assert torch.equal(replayed[0], 3 * x)
    assert torch.equal(replayed[1], x)


def test_a_record_holds_for_other_values_of_the_same_shapes() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x @ y, torch.func.grad(lambda z: (z @ y).square().sum())(x)]

    replay = record(function, [torch.rand(2, 3), torch.rand(3, 2)])
    x, y = torch.rand(2, 3), torch.rand(3, 2)
    for got, want in zip(replay(x, y), function(x, y), strict=True):
        assert torch.equal(got, want)


def test_what_has_a_size_that_values_decide_is_not_recorded() -> None:
    x = torch.tensor([1.0, -1.0, 2.0])
    with pytest.raises(ValueError, match="depends on the inputs' values"):
        record(lambda x: [x[x > 0] * 2], [x])
    assert record(lambda x: [x[[2, 0]] * 2], [x])(x)[0].tolist() == [4.0, 2.0]


class Slope(Learner):
    """Predicts queries by a weight, after one step on the support set."""

    name = "slope"
    kinds = ("regression",)
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec, nn.Identity(), None)
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda weight: (support_x @ weight - support_y[:, 0]).square().mean())(self.weight)
        return (query_x @ (self.weight - 0.1 * gradient))[:, None]


SPEC = TaskSpec("regression", (2,), 1, 4, 5)


def tasks(n: int = 3, seed: int = 0) -> TaskBatch:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(n, 4, 2), (n, 4, 1), (n, 5, 2), (n, 5, 1)]
    return TaskBatch(*(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "RECORD_AFTER", 2)
    monkeypatch.setattr(executor, "RECORD_LOOP_AFTER", 2)


def test_replayed_gradients_are_those_of_vmap_bit_for_bit_also_after_the_parameters_moved() -> None:
    learner, traced = Slope(SPEC), Traced()
    for seed in range(4):
        loss, gradients = traced.gradient(learner, tasks(seed=seed))
        want_loss, want = Vmap().gradient(learner, tasks(seed=seed))
        assert torch.equal(loss, want_loss)
        assert torch.equal(gradients["weight"], want["weight"])
        with torch.no_grad():
            learner.weight -= 0.1 * gradients["weight"]
    assert len(traced.replays) == 1


def test_a_replayed_loop_is_the_loop_but_for_rounding() -> None:
    learner, replayed = Slope(SPEC), TracedLoop()
    for seed in range(4):
        batch = tasks(5, seed)
        (loss, gradients), (want_loss, want) = replayed.gradient(learner, batch), Loop().gradient(learner, batch)
        torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients["weight"], want["weight"], rtol=1e-12, atol=1e-12)
        inputs = batch.tensors()[:3]
        with torch.no_grad():
            got, predicted = replayed.map(learner, "forward", *inputs), Loop().map(learner, "forward", *inputs)
            learner.weight -= 0.1 * gradients["weight"]
        assert isinstance(got, Tensor)
        assert isinstance(predicted, Tensor)
        torch.testing.assert_close(got, predicted, rtol=1e-12, atol=1e-12)
    assert len(replayed.replays) == 2


def test_replayed_predictions_are_those_of_the_loop() -> None:
    learner, traced = Slope(SPEC).eval(), Traced()
    for seed in range(4):
        inputs = tasks(seed=seed).tensors()[:3]
        with torch.no_grad():
            got, want = traced.map(learner, "forward", *inputs), Loop().map(learner, "forward", *inputs)
        assert isinstance(got, Tensor)
        assert isinstance(want, Tensor)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert len(traced.replays) == 1


def test_another_number_of_tasks_has_a_record_of_its_own() -> None:
    learner, traced = Slope(SPEC), Traced()
    for n in (2, 3, 2, 3, 2, 3):
        assert torch.equal(
            traced.gradient(learner, tasks(n))[1]["weight"], Vmap().gradient(learner, tasks(n))[1]["weight"]
        )
    assert len(traced.replays) == 2


def test_what_is_called_seldom_is_not_recorded() -> None:
    traced = Traced()
    traced.gradient(Slope(SPEC), tasks())
    assert not traced.replays


class Moody(Slope):
    """Changes with the progress of meta-training, and says so."""

    name = "moody"
    traceable = False

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return super().forward(support_x, support_y, query_x) * (1 + self.progress)


def test_a_learner_that_says_it_is_not_traceable_is_not_recorded() -> None:
    learner, traced = Moody(SPEC), Traced()
    losses = []
    for step in range(4):
        learner.progress = step / 4
        losses.append(float(traced.gradient(learner, tasks())[0]))
    assert not traced.replays
    assert len(set(losses)) == 4


class Unrecordable(Slope):
    """Works under vmap and cannot be recorded."""

    name = "unrecordable"

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        if torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None:
            raise RuntimeError("not on the record")
        return super().forward(support_x, support_y, query_x)


def test_what_cannot_be_recorded_goes_on_under_vmap_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    learner, traced = Unrecordable(SPEC), Traced()
    with caplog.at_level(logging.INFO, logger="metaopt.executor"):
        results: list[Gradients] = [traced.gradient(learner, tasks())[1] for _ in range(4)]
    assert all(torch.equal(result["weight"], results[0]["weight"]) for result in results)
    assert [record.getMessage() for record in caplog.records] == [
        "gradient of unrecordable is not replayed (RuntimeError: not on the record)"
    ]
