"""A zero-shot prototypical network scores by distance to what a linear map makes of descriptions, at length 1."""

import torch
from torch import Generator

from metaopt.task import TaskSpec
from metaopt_encoders.identity import Identity
from metaopt_metric.protonet import ProtoNet
from metaopt_metric.protonet_zero import ProtoNetZero

SPEC = TaskSpec("classification", (6,), 3, 1, 2, n_train_classes=5, description_shape=(4,))


def learner(temperature: float = 1.0) -> ProtoNetZero:
    torch.manual_seed(0)
    config = ProtoNetZero.Config(width=8, temperature=temperature)
    return ProtoNetZero(SPEC, Identity((6,), Identity.Config()), config).double()


def test_it_is_a_prototypical_network_whose_supports_are_the_embedded_descriptions() -> None:
    """At one shot: with the maps done beforehand, ProtoNet on the identity gives the same scores."""
    draw = Generator().manual_seed(0)
    described, query = (torch.randn(n, k, generator=draw, dtype=torch.float64) for n, k in ((3, 4), (5, 6)))
    labels = torch.tensor([2, 0, 1])
    zero = learner(temperature=2.0)
    made = zero.of_description(described)
    made = made / made.norm(dim=1, keepdim=True)
    spec = TaskSpec("classification", (8,), 3, 1, 2)
    one_shot = ProtoNet(spec, Identity((8,), Identity.Config()), ProtoNet.Config(temperature=2.0))
    torch.testing.assert_close(zero(described, labels, query), one_shot(made, labels, zero.of_query(query)))


def test_a_description_stretched_means_the_same_where_nothing_is_added() -> None:
    zero = learner()
    torch.nn.init.zeros_(zero.of_description.bias)
    described, query = torch.randn(3, 4).double(), torch.randn(5, 6).double()
    stretched = described * torch.tensor([1.0, 3.0, 0.2]).double()[:, None]
    labels = torch.arange(3)
    torch.testing.assert_close(zero(stretched, labels, query), zero(described, labels, query))
