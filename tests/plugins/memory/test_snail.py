"""SNAIL is a causal network over the support set and one query at its end, computed once for all queries."""

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import conv1d, pad

from metaopt.task import TaskSpec
from metaopt_encoders.identity import Identity
from metaopt_memory.snail import SNAIL, Attention, Dense

CLASSES = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=2)
TARGETS = TaskSpec("regression", (4,), n_way=1, n_shot=5, n_query=2, y_size=2)

both_kinds = pytest.mark.parametrize("spec", [CLASSES, TARGETS], ids=["classification", "regression"])


def snail(spec: TaskSpec = CLASSES, width: int = 8) -> SNAIL:
    torch.manual_seed(0)
    return SNAIL(spec, Identity((4,), Identity.Config()), SNAIL.Config(width)).double()


def task(spec: TaskSpec) -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    n = spec.n_way * spec.n_shot
    x = torch.randn(n + 3, 4, dtype=torch.float64, generator=draw)
    if spec.kind == "regression":
        return x[:n], torch.randn(n, spec.y_size, dtype=torch.float64, generator=draw), x[n:]
    return x[:n], torch.randperm(n, generator=draw) % spec.n_way, x[n:]


def whole_sequence(learner: SNAIL, x: Tensor) -> Tensor:
    """Run the network over one sequence (length, n_in) by torch's convolutions and a mask; return (length, n_out)."""
    for block in learner.blocks:
        if isinstance(block, Dense):
            kernel = torch.stack([block.before.weight, block.now.weight], 2)  # the past tap, then the present one
            h = conv1d(pad(x.T, (block.dilation, 0)), kernel, block.now.bias, dilation=block.dilation).T
            filtered, gate = h.chunk(2, 1)
            x = torch.cat([x, torch.tanh(filtered) * torch.sigmoid(gate)], 1)
        else:
            assert isinstance(block, Attention)
            scores = block.ask(x) @ block.key(x).T / block.key(x).shape[1] ** 0.5
            causal = torch.ones_like(scores).tril().bool()
            x = torch.cat([x, torch.where(causal, scores, -torch.inf).softmax(1) @ block.value(x)], 1)
    return learner.out(x)  # type: ignore[no-any-return]


@both_kinds
def test_each_query_gets_what_stands_at_the_end_of_a_causal_network_over_the_supports_and_itself(
    spec: TaskSpec,
) -> None:
    learner, (support_x, support_y, query_x) = snail(spec), task(spec)
    labels = torch.eye(3).double()[support_y] if spec.kind == "classification" else support_y
    predictions = learner(support_x, support_y, query_x)
    for query, prediction in zip(query_x, predictions, strict=True):
        inputs = torch.cat([torch.cat([support_x, query[None]]), pad(labels, (0, 0, 0, 1))], 1)  # no label for a query
        torch.testing.assert_close(whole_sequence(learner, inputs)[-1], prediction, rtol=1e-9, atol=1e-12)


@both_kinds
def test_each_example_of_a_stream_gets_what_stands_at_its_place_before_its_label_is_known(spec: TaskSpec) -> None:
    learner, (x, y, _) = snail(spec), task(spec)
    labels = torch.eye(3).double()[y] if spec.kind == "classification" else y
    predictions = learner.stream(x, y)
    for place, prediction in enumerate(predictions):
        known = torch.cat([labels[:place], torch.zeros_like(labels[:1])])
        inputs = torch.cat([x[: place + 1], known], 1)
        torch.testing.assert_close(whole_sequence(learner, inputs)[-1], prediction, rtol=1e-9, atol=1e-12)


def test_a_query_first_asks_for_the_support_that_is_like_it() -> None:
    learner, (support_x, _, _) = snail(), task(CLASSES)
    support = torch.nn.functional.normalize(support_x, dim=1)
    attention = Attention(4, 16, 3).double()
    scores = attention.ask(support) @ attention.key(support).T
    torch.testing.assert_close(scores, scores.T)
    assert torch.equal(scores.argmax(1), torch.arange(6))
    assert all(torch.equal(it.ask.weight, it.key.weight) for it in learner.blocks if isinstance(it, Attention))


@pytest.mark.parametrize("n_shot", [1, 2, 5])
def test_the_convolutions_alone_let_a_query_see_the_whole_support_set(n_shot: int) -> None:
    spec = TaskSpec("classification", (4,), 3, n_shot, 2)
    learner, (support_x, support_y, query_x) = snail(spec), task(spec)
    learner.blocks = torch.nn.ModuleList(learner.blocks[1 : 1 + (3 * n_shot).bit_length()])
    assert all(isinstance(block, Dense) for block in learner.blocks)
    learner.blocks[0] = Dense(7, 8, 1).double()
    for number, block in enumerate(learner.blocks):
        learner.blocks[number] = Dense(7 + 8 * number, 8, block.dilation).double()  # type: ignore[arg-type]
    learner.out = torch.nn.Linear(7 + 8 * len(learner.blocks), 3).double()
    support_x.requires_grad_()
    learner(support_x, support_y, query_x).square().sum().backward()
    assert support_x.grad is not None
    assert (support_x.grad.abs().amax(1) > 0).all()


def test_width_128_is_the_papers_network() -> None:
    """Five ways and one shot: attention 64/32, 256/128, 512/256, and three dense blocks of 128 in each of two TCs."""
    spec = TaskSpec("classification", (64,), 5, 1, 1)
    learner = SNAIL(spec, Identity((64,), Identity.Config()), SNAIL.Config(128))
    attentions = [block for block in learner.blocks if isinstance(block, Attention)]
    assert [(block.key.out_features, block.value.out_features) for block in attentions] == [
        (64, 32), (256, 128), (512, 256)
    ]  # fmt: skip
    dense = [block for block in learner.blocks if isinstance(block, Dense)]
    assert [block.dilation for block in dense] == [1, 2, 4, 1, 2, 4]
    assert learner.out.in_features == 64 + 5 + 32 + 3 * 128 + 128 + 3 * 128 + 256


@both_kinds
def test_the_gradient_reaches_every_parameter(spec: TaskSpec) -> None:
    learner, (support_x, support_y, query_x) = snail(spec), task(spec)
    learner(support_x, support_y, query_x).square().sum().backward()
    for parameter in learner.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-9
