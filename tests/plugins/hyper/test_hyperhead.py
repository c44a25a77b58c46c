"""A generated head is linear in a query's features, and knows its support set as sets of features."""

import pytest
import torch
from torch import Generator, Tensor, nn

from metaopt.task import TaskSpec
from metaopt_encoders.identity import Identity
from metaopt_hyper.hyperhead import HyperHead
from metaopt_metric.protonet import ProtoNet

CLASSES = TaskSpec("classification", (4,), n_way=3, n_shot=2, n_query=2)
TARGETS = TaskSpec("regression", (4,), n_way=1, n_shot=6, n_query=2, y_size=2)

both_kinds = pytest.mark.parametrize("spec", [CLASSES, TARGETS], ids=["classification", "regression"])


def hyperhead(spec: TaskSpec) -> HyperHead:
    torch.manual_seed(0)
    return HyperHead(spec, Identity((4,), Identity.Config()), HyperHead.Config(width=16)).double()


def task(spec: TaskSpec) -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    x = torch.randn(10, 4, dtype=torch.float64, generator=draw)
    if spec.kind == "regression":
        return x[:6], torch.randn(6, 2, dtype=torch.float64, generator=draw), x[6:]
    return x[:6], torch.randperm(6, generator=draw) % 3, x[6:]


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class MinusSquaredLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x.square().sum(1, keepdim=True)


def test_a_network_that_writes_twice_the_mean_and_minus_its_squared_length_is_a_prototypical_network() -> None:
    """Snell et al. (2017), section 2.4: −|f − c|² is 2 c·f − |c|² less |f|², which all classes share."""
    learner, (support_x, support_y, query_x) = hyperhead(CLASSES), task(CLASSES)
    learner.weight, learner.bias = Twice(), MinusSquaredLength()  # type: ignore[assignment]
    protonet = ProtoNet(CLASSES, learner.encoder, ProtoNet.Config())  # type: ignore[arg-type]
    written, near = (each(support_x, support_y, query_x).softmax(1) for each in (learner, protonet))
    torch.testing.assert_close(written, near, rtol=1e-9, atol=1e-12)


@both_kinds
def test_predictions_are_linear_in_the_querys_features(spec: TaskSpec) -> None:
    learner, (support_x, support_y, query_x) = hyperhead(spec), task(spec)
    share = torch.tensor([0.5, -1.0, 0.3, 1.2], dtype=torch.float64)  # they sum to 1
    mixed = learner(support_x, support_y, (share @ query_x)[None])
    torch.testing.assert_close(mixed[0], share @ learner(support_x, support_y, query_x), rtol=1e-9, atol=1e-12)


@both_kinds
def test_seeing_every_support_twice_changes_nothing(spec: TaskSpec) -> None:
    """The support set counts by its means: per class, or of the pairs."""
    learner, (support_x, support_y, query_x) = hyperhead(spec), task(spec)
    twice = learner(torch.cat([support_x, support_x]), torch.cat([support_y, support_y]), query_x)
    torch.testing.assert_close(twice, learner(support_x, support_y, query_x), rtol=1e-9, atol=1e-12)


def test_a_class_is_written_by_itself_so_that_relabelling_moves_its_column() -> None:
    learner, (support_x, support_y, query_x) = hyperhead(CLASSES), task(CLASSES)
    renamed = torch.tensor([2, 0, 1])
    scores = learner(support_x, renamed[support_y], query_x)
    torch.testing.assert_close(scores[:, renamed], learner(support_x, support_y, query_x), rtol=1e-9, atol=1e-12)


def test_targets_have_their_part_in_the_head() -> None:
    learner, (support_x, support_y, query_x) = hyperhead(TARGETS), task(TARGETS)
    other = learner(support_x, support_y.roll(1, 0), query_x)
    assert not torch.allclose(other, learner(support_x, support_y, query_x), rtol=1e-3)


@both_kinds
def test_the_gradient_reaches_every_parameter(spec: TaskSpec) -> None:
    learner, (support_x, support_y, query_x) = hyperhead(spec), task(spec)
    learner(support_x, support_y, query_x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-9 for p in learner.parameters())
