"""A matching network is attention over labels, by closed forms; its context is read as the paper's LSTMs read it."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]
from torch import Generator, Tensor, nn
from torch.nn.functional import cosine_similarity

from metaopt.nn import Encoder
from metaopt.task import TaskSpec
from metaopt_metric.matching import MatchingNet
from metaopt_metric.protonet import ProtoNet

N_FEATURES = 4


class AsIs(Encoder):
    """Features are the example's numbers."""

    n_features = N_FEATURES

    def forward(self, x: Tensor) -> Tensor:
        return x


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def labels(n_way: int, n_shot: int) -> Tensor:
    """Return the labels of a support set in a random order, (n_way * n_shot,)."""
    return torch.randperm(n_way * n_shot, generator=Generator().manual_seed(3)) % n_way


def task(n_shot: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return supports of 3 classes, their labels, and 7 queries."""
    return normal(3 * n_shot, N_FEATURES), labels(3, n_shot), normal(7, N_FEATURES, seed=1)


def matching(n_shot: int = 2, **config: object) -> MatchingNet:
    torch.manual_seed(0)
    spec, encoder = TaskSpec("classification", (N_FEATURES,), 3, n_shot, 2), AsIs((N_FEATURES,), Encoder.Config())
    return MatchingNet(spec, encoder, MatchingNet.Config(**config)).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_probabilities_are_the_labels_weighted_by_a_softmax_of_cosines(temperature: float) -> None:
    """Equation 1 and section 2.1.1 of the paper, example by example."""
    support_x, support_y, query_x = task(n_shot=3)
    scores = matching(n_shot=3, temperature=temperature)(support_x, support_y, query_x)
    for query, row in zip(query_x, scores.exp(), strict=True):
        attention = [float((cosine_similarity(query, x, dim=0) / temperature).exp()) for x in support_x]
        expected = [
            sum(a for a, y in zip(attention, support_y, strict=True) if y == k) / sum(attention) for k in (0, 1, 2)
        ]
        assert row.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("full_context", [False, True])
def test_scores_are_logarithms_of_probabilities(full_context: bool) -> None:
    scores = matching(full_context=full_context)(*task())
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(7).double(), rtol=1e-12, atol=0)


def test_at_one_shot_it_is_a_prototypical_network_of_cosine_distance_at_twice_the_temperature() -> None:
    """|a − b|² is 2 − 2 cos(a, b) for a and b of length 1."""
    learner = matching(n_shot=1, temperature=0.3)
    protonet = ProtoNet(learner.spec, learner.encoder, ProtoNet.Config(distance="cosine", temperature=0.6))  # type: ignore[arg-type]
    torch.testing.assert_close(learner(*task(1)), protonet(*task(1)).log_softmax(1), rtol=1e-9, atol=1e-12)


def test_when_it_is_cold_the_nearest_neighbour_decides() -> None:
    support_x, support_y, query_x = normal(15, 4), labels(3, 5), normal(50, 4, seed=1)
    expected = (
        KNeighborsClassifier(1, metric="cosine").fit(support_x.numpy(), support_y.numpy()).predict(query_x.numpy())
    )
    assert matching(n_shot=5, temperature=0.01)(support_x, support_y, query_x).argmax(1).tolist() == expected.tolist()
    assert len(set(expected.tolist())) == 3


def test_supports_are_read_in_order_by_a_bidirectional_lstm() -> None:
    """Appendix A.2: g(x, S) is the output of each direction, and g'(x)."""
    learner, support_x = matching(full_context=True), task()[0]
    lstm = nn.LSTM(N_FEATURES, N_FEATURES, bidirectional=True).double()
    for suffix, cell in (("", learner.forwards), ("_reverse", learner.backwards)):
        for name, weight in cell.named_parameters():
            getattr(lstm, f"{name}_l0{suffix}").data = weight.data
    both = lstm(support_x)[0].unflatten(1, (2, N_FEATURES)).sum(1)
    torch.testing.assert_close(learner._in_context(support_x), both + support_x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reads", [1, 3])
def test_queries_read_the_supports_by_the_papers_equations(reads: int) -> None:
    """Appendix A.1, query by query, with a cell written out whose weights for h and r stand side by side."""
    learner = matching(full_context=True, reads=reads)
    support_x, _, query_x = task()
    cell = learner.reader
    of_query, of_read = cell.weight_ih.split(N_FEATURES, 1)
    of_state = torch.cat([cell.weight_hh, of_read], 1)
    for query, expected in zip(query_x, learner._reading(query_x, support_x), strict=True):
        h, c = torch.zeros(2, N_FEATURES).double()
        for _ in range(reads):
            attention = (support_x @ h).exp() / (support_x @ h).exp().sum()
            read = (attention[:, None] * support_x).sum(0)
            i, f, g, o = (of_query @ query + of_state @ torch.cat([h, read]) + cell.bias_ih + cell.bias_hh).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh() + query
        torch.testing.assert_close(h, expected, rtol=1e-9, atol=1e-12)


def test_lstms_of_zeros_say_nothing() -> None:
    """Their outputs are 0, and with nothing but the skip connections full context is none."""
    learner = matching(full_context=True)
    assert not torch.allclose(learner(*task()), matching()(*task()), rtol=1e-2)
    for parameter in learner.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(learner(*task()), matching()(*task()), rtol=1e-12, atol=1e-12)


def test_only_in_full_context_does_the_order_of_the_supports_matter() -> None:
    support_x, support_y, query_x = task()
    for full_context in (False, True):
        learner = matching(full_context=full_context)
        turned = learner(support_x.flip(0), support_y.flip(0), query_x)
        assert torch.allclose(turned, learner(support_x, support_y, query_x), rtol=1e-9) != full_context
    assert MatchingNet.order_matters


def test_without_full_context_it_has_no_parameters_but_the_encoders() -> None:
    assert not list(matching().parameters())
    assert len(list(matching(full_context=True).parameters())) == 3 * 4
