"""A block in its faster order is torch's layers in the textbook's, in values and derivatives."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from metaopt import convolution
from metaopt.convolution import ConvBlock, _Moments, _PoolOfProduct
from metaopt.executor import Loop, TracedLoop
from metaopt.task import TaskBatch, TaskSpec
from metaopt_encoders.conv4 import Conv4
from metaopt_gradient.maml import MAML

NORMS = ("layer", "batch", "none")


def block(n_in: int, norm: str, pool: bool, stride: int = 1, n_out: int = 32) -> ConvBlock:
    """Return a block with random numbers for parameters, some of the normalisation's scales negative."""
    layers: list[nn.Module] = [nn.Conv2d(n_in, n_out, 3, stride, padding=1)]
    if norm != "none":
        layers.append(nn.GroupNorm(1, n_out) if norm == "layer" else nn.BatchNorm2d(n_out, track_running_stats=False))
    layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    made = ConvBlock(*layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return made


def derivatives(layers: nn.Module, x: Tensor, fast: bool) -> Iterator[Tensor]:
    """Yield what the layers give, its gradient by x and all parameters, and the gradient of that gradient."""
    inputs = [x, *layers.parameters()]
    y = layers(x) if fast else nn.Sequential.forward(layers, x)  # type: ignore[arg-type]
    yield y
    first = torch.autograd.grad(y.square().mean().sin(), inputs, create_graph=True)
    yield from first
    yield from torch.autograd.grad(torch.stack([one.sin().sum() for one in first]).sum(), inputs)


@pytest.fixture(params=[2**19, 2000], ids=["at once", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "AT_ONCE", request.param)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("pool", "stride"), [(True, 1), (False, 2), (False, 1), (True, 2)])
@pytest.mark.parametrize("n_in", [1, 3, 16])
def test_a_block_is_torchs_layers_to_the_second_derivative(n_in: int, pool: bool, stride: int, norm: str) -> None:
    torch.manual_seed(0)
    layers = block(n_in, norm, pool, stride).double()
    x = torch.randn(5, n_in, 11, 9, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(derivatives(layers, x, True), derivatives(layers, x, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("parts")
def test_a_pooled_product_has_the_derivatives_of_finite_differences() -> None:
    torch.manual_seed(0)
    patches = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)  # 2 × 4 pixels
    columns = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def pooled(patches: Tensor, columns: Tensor) -> Tensor:
        rows: Tensor = _PoolOfProduct.apply(patches, columns, 2, 4)[0]  # type: ignore[no-untyped-call]
        return rows

    assert gradcheck(pooled, (patches, columns))
    assert gradgradcheck(pooled, (patches, columns))


def test_moments_have_the_derivatives_of_finite_differences() -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    for over in ((0, 2, 3), (2, 3)):
        assert gradcheck(_Moments.apply, (x, over))
        assert gradgradcheck(_Moments.apply, (x, over))


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("pool", [True, False])
def test_two_blocks_in_float32_are_as_exact_as_torchs_layers(norm: str, shift: float, pool: bool) -> None:
    """Also of bright pictures, whose moments lose digits where they are not taken about the mean."""
    torch.manual_seed(0)
    first, second = block(1, norm, pool), block(32, norm, pool)
    x = torch.rand(10, 1, 28, 28) + shift

    def errors(fast: bool) -> Tensor:
        exact, rounded = (
            list(gradients(nn.Sequential(first, second).to(dtype), x.to(dtype), fast))
            for dtype in (torch.float64, torch.float32)
        )
        return torch.stack([(a - b).norm() / b.norm() for a, b in zip(rounded, exact, strict=True)])

    ours, theirs = errors(True), errors(False)
    assert ours[0] < 1e-4
    assert ours.max() < max(1e-4, 3 * float(theirs.max()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", [True, False])
def test_two_blocks_in_bfloat16_lead_where_float32_does(norm: str, pool: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(block(1, norm, pool), block(32, norm, pool))
    x = torch.rand(10, 1, 28, 28)

    def gradient(rounded: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            y = net(x)
        return torch.cat([one.flatten() for one in torch.autograd.grad(y.float().square().mean(), net.parameters())])

    exact, rough = (gradient(rounded) for rounded in (False, True))
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough, 0) > 0.99


def gradients(net: nn.Sequential, x: Tensor, fast: bool) -> Iterator[Tensor]:
    """Yield what two blocks give and its gradients by what is not cancelled: weights and normalisations."""
    for layers in net:
        assert isinstance(layers, ConvBlock)
        x = layers(x) if fast else nn.Sequential.forward(layers, x)
    yield x.detach()
    named = {name: parameter for name, parameter in net.named_parameters() if not name.endswith("0.bias")}
    yield from torch.autograd.grad(x.square().mean(), list(named.values()))


def test_what_a_block_returns_has_its_channels_last_in_memory() -> None:
    for pool in (True, False):
        maps = block(32, "batch", pool)(block(1, "batch", pool)(torch.rand(2, 1, 28, 28)))
        assert maps.is_contiguous(memory_format=torch.channels_last)


def test_a_replayed_loop_over_blocks_is_the_loop_but_for_rounding_and_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metaopt.executor.RECORD_LOOP_AFTER", 1)
    torch.manual_seed(0)
    spec = TaskSpec("classification", (1, 16, 16), n_way=3, n_shot=1, n_query=2)
    draw = torch.Generator().manual_seed(0)
    for pool in ("max", "stride"):
        learner = MAML(spec, Conv4(spec.x_shape, Conv4.Config(width=10, pool=pool)), MAML.Config()).double()
        labels = torch.arange(3).expand(3, 3)
        pictures = torch.rand(3, 3, 1, 16, 16, generator=draw), torch.rand(3, 6, 1, 16, 16, generator=draw)
        batch = TaskBatch(pictures[0].double(), labels, pictures[1].double(), labels.repeat(1, 2))
        replayed = TracedLoop()
        (loss, gradients), (want_loss, want) = replayed.gradient(learner, batch), Loop().gradient(learner, batch)
        assert len(replayed.replays) == 1
        torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dict(gradients), dict(want), rtol=1e-9, atol=1e-12)
        _, again = TracedLoop().gradient(learner, batch)
        assert all(torch.equal(gradients[name], again[name]) for name in want)
