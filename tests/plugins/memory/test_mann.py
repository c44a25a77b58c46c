"""A memory-augmented network is its equations, and hears of a label one step late."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import cosine_similarity

from metaopt.task import TaskSpec
from metaopt_encoders.identity import Identity
from metaopt_memory.mann import MANN, State, strings

CLASSES = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=2)
TARGETS = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=2, y_size=2)
SMALL = {"controller": 7, "slots": 9, "slot_size": 5, "heads": 2}

both_kinds = pytest.mark.parametrize("spec", [CLASSES, TARGETS], ids=["classification", "regression"])


def mann(spec: TaskSpec = CLASSES, **config: float) -> MANN:
    """Return a float64 network large enough in its weights for every path to matter."""
    torch.manual_seed(0)
    settings = MANN.Config(**{**SMALL, **config})  # type: ignore[arg-type]
    learner = MANN(spec, Identity((4,), Identity.Config()), settings).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return learner


def sequence(spec: TaskSpec, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = Generator().manual_seed(seed)
    x = torch.randn(n, 4, dtype=torch.float64, generator=draw)
    if spec.kind == "regression":
        return x, torch.randn(n, spec.y_size, dtype=torch.float64, generator=draw)
    return x, torch.randperm(n, generator=draw) % spec.n_way


def changed(spec: TaskSpec, y: Tensor, step: int) -> Tensor:
    """Return the labels with another one at `step`."""
    y = y.clone()
    y[step] = y[step] + 1 if spec.kind == "regression" else (y[step] + 1) % spec.n_way
    return y


@both_kinds
def test_the_prediction_at_a_step_cannot_depend_on_that_steps_label_and_the_next_one_does(spec: TaskSpec) -> None:
    learner, (x, y) = mann(spec), sequence(spec)
    told = learner.stream(x, y)
    assert told.shape == (6, spec.n_outputs)
    for step in range(6):
        otherwise = learner.stream(x, changed(spec, y, step))
        assert torch.equal(otherwise[: step + 1], told[: step + 1])
        if step < 5:
            assert not torch.allclose(otherwise[step + 1], told[step + 1], rtol=1e-6)


@given(n_way=st.integers(1, 700))
def test_labels_are_one_hot_up_to_five_classes_and_as_few_letters_as_tell_apart_those_of_more(n_way: int) -> None:
    labels = strings(n_way)
    lengths = {n for n in range(1, 6) if 5**n >= n_way}
    assert torch.equal(labels.sum(1), torch.full((n_way,), float(min(lengths))))
    assert len(labels.unique(dim=0)) == n_way
    assert set(labels.unique().tolist()) <= {0.0, 1.0}
    assert n_way > 5 or torch.equal(labels, torch.eye(n_way))


def test_a_class_of_more_than_five_scores_what_its_letters_do() -> None:
    spec = TaskSpec("classification", (4,), n_way=7, n_shot=1, n_query=1)
    learner, (x, y) = mann(spec), sequence(spec, 7)
    _, state = learner._present(x, learner._labels(y, x))
    late = learner._labels(y[-1:], x)[0]
    expected = by_hand(learner, torch.cat([x[0], late]), state)[0]  # of the first letter's five and the second's two
    assert expected.shape == (7,)
    scores = learner(x, y, x[:1])[0]
    assert expected[:5].tolist() == pytest.approx((scores[:5] - expected[5]).tolist())
    assert (scores[5] - scores[0]).item() == pytest.approx((expected[6] - expected[5]).item())


@both_kinds
def test_the_prediction_at_a_step_cannot_depend_on_later_examples(spec: TaskSpec) -> None:
    learner, (x, y) = mann(spec), sequence(spec)
    told, (others, _) = learner.stream(x, y), sequence(spec, seed=1)
    for length in range(1, 7):
        other = learner.stream(torch.cat([x[:length], others[length:]]), y)[:length]
        torch.testing.assert_close(other, told[:length], rtol=1e-9, atol=1e-12)  # one product for all: the last bits
        torch.testing.assert_close(learner.stream(x[:length], y[:length]), told[:length], rtol=1e-9, atol=1e-12)


@both_kinds
def test_a_query_is_the_next_example_of_the_support_sets_stream(spec: TaskSpec) -> None:
    learner, (x, y), (query_x, _) = mann(spec), sequence(spec), sequence(spec, 4, seed=1)
    predictions = learner(x, y, query_x)
    for query, prediction in zip(query_x, predictions, strict=True):
        whole = torch.cat([x, query[None]]), torch.cat([y, y[:1]])  # whatever the query's own label is said to be
        torch.testing.assert_close(learner.stream(*whole)[-1], prediction, rtol=1e-9, atol=1e-12)


def by_hand(learner: MANN, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Take one step by the paper's equations, a head and a slot at a time."""
    c, hidden = learner.config, state.hidden
    heard = learner.hear.weight @ inputs + learner.hear.bias
    forget, write, out, new = (heard + learner.recall.weight @ torch.cat([state.read, hidden])).chunk(4)
    cell = torch.sigmoid(forget) * state.cell + torch.sigmoid(write) * torch.tanh(new)
    hidden = torch.sigmoid(out) * torch.tanh(cell)
    keys = torch.tanh(learner.key(hidden)).split(c.slot_size)
    alphas = torch.sigmoid(learner.alpha(hidden))
    memory, usage, all_weights = state.memory.clone(), c.decay * state.usage, []
    for key in keys:
        closeness = torch.stack([cosine_similarity(key, row, dim=0) for row in memory])
        weights = torch.exp(c.sharpness * closeness)
        all_weights.append(weights / weights.sum())
        usage = usage + all_weights[-1]
    by_usage = sorted(range(c.slots), key=lambda slot: state.usage[slot].item())[: c.heads]
    memory[by_usage] = 0
    for head, key in enumerate(keys):
        for slot in range(c.slots):
            weight = alphas[head] * state.read_weights[head, slot] + (1 - alphas[head]) * (slot == by_usage[head])
            memory[slot] += weight * key
            usage[slot] += weight
    read = torch.cat([(weights[:, None] * memory).sum(0) for weights in all_weights])
    prediction = learner.out(torch.cat([hidden, read]))
    return prediction, State(hidden, cell, memory, read, torch.stack(all_weights), usage)


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_step_is_the_papers_equations(heads: int, sharpness: float) -> None:
    """Over more presentations than there are slots, so that the least used are written over."""
    learner, (x, y) = mann(heads=heads, slots=7, sharpness=sharpness), sequence(CLASSES, 12)
    predictions = learner.stream(x, y)
    state, label = learner._start(x), torch.zeros(3, dtype=torch.float64)
    for step in range(12):
        expected, state = by_hand(learner, torch.cat([x[step], label]), state)
        torch.testing.assert_close(predictions[step], expected, rtol=1e-9, atol=1e-9)
        label = torch.eye(3, dtype=torch.float64)[y[step]]
    assert 12 * heads > 7, "the memory must have been filled"


def test_new_keys_go_to_slots_of_their_own_until_the_memory_is_full_and_then_to_the_least_used() -> None:
    learner, (x, _) = mann(slots=6, heads=2), sequence(CLASSES, 5)
    with torch.no_grad():
        learner.alpha.weight.zero_()
        learner.alpha.bias.fill_(-1e3)  # nothing goes where it was last read
    state, written = learner._start(x), []
    for row in x:
        before = state
        heard = learner.hear(torch.cat([row, torch.zeros(3, dtype=torch.float64)])[None])
        state = learner._write(before, learner._step(heard, before))
        moved = (state.memory - before.memory).abs().amax(1).nonzero()[:, 0].tolist()
        assert moved == sorted(before.usage.argsort(stable=True)[:2].tolist())
        written.append(moved)
    assert sorted(slot for slots in written[:3] for slot in slots) == list(range(6))


def test_where_a_step_reads_is_told_by_what_earlier_steps_wrote_and_not_by_its_own_key() -> None:
    learner, (x, _) = mann(sharpness=50.0), sequence(CLASSES, 2)
    null = torch.zeros(2, 3, dtype=torch.float64)
    heard = learner.hear(torch.cat([x, null], 1))
    start = learner._start(x)
    first = learner._write(start, learner._step(heard[:1], start))
    torch.testing.assert_close(first.read_weights, torch.full_like(first.read_weights, 1 / 9))  # nothing was there
    second = learner._write(first, learner._step(heard[1:], first))
    own = (second.memory - first.memory).abs().sum(1).argmax()
    assert not first.memory[own].any()
    assert second.read_weights[:, own].max() < 1 / 2


def test_with_the_memory_unheard_it_is_torchs_lstm() -> None:
    learner, (x, y) = mann(), sequence(CLASSES)
    n_in, n_read, size = 4 + 3, 2 * 5, 7
    with torch.no_grad():
        learner.recall.weight[:, :n_read] = 0
        learner.out.weight[:, size:] = 0
    cell = nn.LSTMCell(n_in, size).double()
    order = torch.arange(4 * size).view(4, size)[[1, 0, 3, 2]].flatten()  # torch has input, forget, new, output
    with torch.no_grad():
        cell.weight_ih.copy_(learner.hear.weight[order])
        cell.weight_hh.copy_(learner.recall.weight[order, n_read:])
        cell.bias_ih.copy_(learner.hear.bias[order])
        cell.bias_hh.zero_()
    late = torch.cat([torch.zeros(1, 3), torch.eye(3)[y[:-1]]]).double()
    state, expected = None, []
    for row in torch.cat([x, late], 1):
        state = cell(row[None], state)
        expected.append(learner.out.weight[:, :size] @ state[0][0] + learner.out.bias)
    torch.testing.assert_close(learner.stream(x, y), torch.stack(expected), rtol=1e-9, atol=1e-12)


@both_kinds
def test_the_gradient_reaches_every_parameter(spec: TaskSpec) -> None:
    learner = mann(spec)
    learner.task_loss(*sequence(spec), *sequence(spec, seed=1)).backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in learner.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_presenting_queries_leaves_no_trace() -> None:
    learner, (x, y), (query_x, _) = mann(), sequence(CLASSES), sequence(CLASSES, 4, seed=1)
    before = copy.deepcopy(learner.state_dict())
    first = learner(x, y, query_x)
    assert torch.equal(learner(x, y, query_x), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
