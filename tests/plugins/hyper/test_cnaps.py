"""CNAPs modulates the encoder's normalisation layers, and writes a head for what comes out."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from metaopt.errors import UserError
from metaopt.nn import Encoder, class_means
from metaopt.task import TaskSpec
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.identity import Identity
from metaopt_encoders.mlp import MLP
from metaopt_encoders.resnet12 import ResNet12
from metaopt_hyper.cnaps import CNAPs

SPEC = TaskSpec("classification", (1, 16, 16), n_way=3, n_shot=2, n_query=2)

ENCODERS = [
    pytest.param(lambda: Conv4(SPEC.x_shape, Conv4.Config(width=8, pool="stride")), id="conv4"),
    pytest.param(lambda: ResNet12(SPEC.x_shape, ResNet12.Config(width=4)), id="resnet12"),
]


def cnaps(encoder: Encoder | None = None, strength: float = 1.0, penalty: float = 0.001) -> CNAPs:
    """Return a learner in float64 whose modulation is strong, where it begins weak."""
    torch.manual_seed(0)
    encoder = encoder or Conv4(SPEC.x_shape, Conv4.Config(width=8, pool="stride"))
    learner = CNAPs(SPEC, encoder, CNAPs.Config(penalty)).double()
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if name.endswith("strength"):
                parameter.mul_(strength)
    return learner


def task() -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    x = torch.randn(10, *SPEC.x_shape, dtype=torch.float64, generator=draw)
    return x[:6], torch.randperm(6, generator=draw) % 3, x[6:]


def head(learner: CNAPs, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
    means = class_means(support, support_y, 3)
    return query @ (means + learner.weight(means)).T + learner.bias(means)[:, 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("build", ENCODERS)
def test_scale_and_shift_are_applied_to_what_each_normalisation_layer_gives(build: partial[Encoder]) -> None:
    learner, (support_x, support_y, query_x) = cnaps(build()), task()
    by_hand = copy.deepcopy(learner.encoder)
    if isinstance(by_hand, Conv4):  # layer by layer, which is slower
        by_hand.blocks = nn.Sequential(*(nn.Sequential(*block) for block in by_hand.blocks))
    representation = learner.set_encoder(support_x).mean(0)
    normalisations = [module for module in by_hand.modules() if isinstance(module, nn.GroupNorm)]
    assert len(normalisations) == len(learner.films) > 3
    for layer, film in zip(normalisations, learner.films, strict=True):
        scale, shift = film(representation)
        assert min(scale.abs().max(), shift.abs().max()) > 0.01, "too little would be no test"
        layer.register_forward_hook(
            lambda module, inputs, out, scale=scale, shift=shift: (
                (1 + scale[:, None, None]) * out + shift[:, None, None]
            )
        )
    expected = head(learner, by_hand(support_x), support_y, by_hand(query_x))
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-7, atol=1e-9)


def test_with_no_strength_the_head_stands_on_the_encoder_as_it_is() -> None:
    learner, (support_x, support_y, query_x) = cnaps(strength=0.0), task()
    expected = head(learner, learner.encoder(support_x), support_y, learner.encoder(query_x))
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def test_modulation_begins_weak_and_its_strength_is_penalised() -> None:
    torch.manual_seed(0)
    learner = CNAPs(SPEC, Conv4(SPEC.x_shape, Conv4.Config(width=8)), CNAPs.Config(penalty=0.1)).double()
    strengths = torch.cat([p.flatten() for name, p in learner.named_parameters() if name.endswith("strength")])
    assert 0 < strengths.abs().max() < 0.01
    support_x, support_y, query_x = task()
    query_y = torch.tensor([0, 1, 2, 0])
    plain = cross_entropy(learner(support_x, support_y, query_x), query_y)
    loss = learner.task_loss(support_x, support_y, query_x, query_y)
    torch.testing.assert_close(loss - plain, 0.1 * strengths.square().sum(), rtol=1e-6, atol=1e-12)


def test_the_set_encoder_is_another_one() -> None:
    learner = cnaps()
    theirs = {id(parameter) for parameter in learner.encoder.parameters()}
    assert not theirs & {id(parameter) for parameter in learner.set_encoder.parameters()}


@pytest.mark.parametrize(
    "encoder",
    [
        MLP((1, 16, 16), MLP.Config()),
        Identity((1, 16, 16), Identity.Config()),
        Conv4(SPEC.x_shape, Conv4.Config(norm="none")),
    ],
    ids=["mlp", "identity", "conv4 without normalisation"],
)
def test_an_encoder_with_nothing_to_modulate_is_refused_and_told_what_has(encoder: Encoder) -> None:
    with pytest.raises(UserError, match=re.escape(f"the encoder {encoder.name} has none; take one that has, such as")):
        CNAPs(SPEC, encoder, CNAPs.Config())


@pytest.mark.parametrize("build", ENCODERS)
def test_the_gradient_reaches_every_parameter(build: partial[Encoder]) -> None:
    torch.manual_seed(0)
    learner, (support_x, support_y, query_x) = CNAPs(SPEC, build(), CNAPs.Config()).double(), task()
    learner.task_loss(support_x, support_y, query_x, torch.tensor([0, 1, 2, 0])).backward()
    unmoved = [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.any()]
    assert unmoved == []
