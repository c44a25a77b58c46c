"""A meta network is its algorithm, example by example and query by query."""

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from metaopt.task import TaskSpec
from metaopt_encoders.identity import Identity
from metaopt_memory.metanet import HIDDEN, MetaNet, _log_and_sign

SPEC = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=2)


def metanet(*, at_start: bool = False, **config: object) -> MetaNet:
    """Return one whose weights are those of its start, or any."""
    torch.manual_seed(0)
    settings = MetaNet.Config(**{"width": 6, **config})  # type: ignore[arg-type]
    learner = MetaNet(SPEC, Identity((4,), Identity.Config()), settings).double()
    for module in () if at_start else learner.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return learner


def task() -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    x = torch.randn(9, 4, dtype=torch.float64, generator=draw)
    return x[:6], torch.randperm(6, generator=draw) % 3, x[6:]


def gradients(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the gradient of the mean loss in each of the network's weights, by automatic differentiation."""
    return list(torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters())))


@pytest.mark.parametrize("first_order", [True, False])
def test_predictions_are_those_of_algorithm_1(first_order: bool) -> None:
    """Written with torch's LSTM and one query, one example and one weight matrix at a time."""
    learner, (support_x, support_y, query_x) = metanet(first_order=first_order), task()

    lstm = nn.LSTMCell(2, HIDDEN).double()  # its gates are input, forget, new, output
    order = torch.arange(4 * HIDDEN).view(4, HIDDEN)[[1, 0, 3, 2]].flatten()
    with torch.no_grad():
        lstm.weight_ih.copy_(learner.task_gates.weight[order, :2])
        lstm.weight_hh.copy_(learner.task_gates.weight[order, 2:])
        lstm.bias_ih.copy_(learner.task_gates.bias[order])
        lstm.bias_hh.zero_()
    state = None
    for x, y in zip(support_x.chunk(5), support_y.chunk(5), strict=True):
        state = lstm(_log_and_sign(gradients(learner.key, x, y)[0].flatten()), state)
    assert state is not None
    key_weight = next(learner.key.parameters()) + learner.task_out(state[0]).view(6, 4)

    memory = []
    for x, y in zip(support_x, support_y, strict=True):
        memory.append(
            [learner.example_net(_log_and_sign(g))[..., 0] for g in gradients(learner.base, x[None], y[None])]
        )
    first, second = learner.base.parameters()
    expected = []
    for query in query_x:
        closeness = [cosine_similarity(key_weight @ x, key_weight @ query, dim=0) for x in support_x]
        attention = torch.stack(closeness).softmax(0)
        fast_first, fast_second = (
            sum(a * w for a, w in zip(attention, ws, strict=True)) for ws in zip(*memory, strict=True)
        )
        hidden = (first @ query).relu() + (fast_first @ query).relu()
        expected.append(second @ hidden + fast_second @ hidden)
    predictions = learner(support_x, support_y, query_x)
    torch.testing.assert_close(predictions, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_with_fast_weights_of_zero_only_the_slow_network_is_left() -> None:
    learner, (support_x, support_y, query_x) = metanet(), task()
    nn.init.zeros_(learner.example_net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(learner.example_net[-1].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(learner(support_x, support_y, query_x), learner.base(query_x), rtol=1e-12, atol=1e-12)


def test_a_gradient_becomes_its_logarithm_and_its_sign_or_where_it_is_small_its_size() -> None:
    e = torch.e
    gradient = torch.tensor([e**2, -(e**-3.5), e**-7, e**-9, -(e**-9), 0.0], dtype=torch.float64)
    expected = [[2 / 7, 1], [-0.5, -1], [-1, 1], [-1, e**-2], [-1, -(e**-2)], [-1, 0]]
    torch.testing.assert_close(
        _log_and_sign(gradient), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


def test_fast_weights_of_an_example_start_as_a_step_against_its_gradient() -> None:
    learner = metanet(at_start=True)
    gradient = torch.tensor([2.0, -2.0, 0.1, -0.1, 1e-3, -1e-3, 1e-5, -1e-5, 0.0], dtype=torch.float64)
    step = learner.example_net(_log_and_sign(gradient)).squeeze(-1)
    assert torch.equal(step.sign(), -gradient.sign())


def test_keys_start_as_those_of_the_slow_weights_but_for_little() -> None:
    learner, (support_x, support_y, _) = metanet(at_start=True), task()
    slow, gradient = next(learner.key.parameters()), learner._gradients(learner.key, support_x, support_y)["0.weight"]
    fast = learner._task_weight(gradient)
    assert 0 < fast.norm() < 0.01 * slow.norm()


@pytest.mark.parametrize("first_order", [True, False])
def test_only_what_makes_the_key_networks_gradients_is_out_of_the_first_orders_reach(first_order: bool) -> None:
    learner, (support_x, support_y, query_x) = metanet(first_order=first_order), task()
    cross_entropy(learner(support_x, support_y, query_x), torch.tensor([0, 1, 2])).backward()
    unmoved = {n for n, p in learner.named_parameters() if p.grad is None or not p.grad.any()}
    assert unmoved == ({"key.2.weight"} if first_order else set())
