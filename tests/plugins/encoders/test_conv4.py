"""Conv-4 has the sizes of the papers, refuses what it cannot halve, and normalises by the textbook formulas."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from metaopt.errors import UserError
from metaopt.tune import declared
from metaopt_encoders.conv4 import Conv4

POOLS = ["max", "stride"]
NORMS = ["layer", "none", "batch"]


def conv4(x_shape: tuple[int, ...], **config: object) -> Conv4:
    """Return a float64 encoder whose every parameter is random, the normalisation's affine too."""
    torch.manual_seed(0)
    encoder = Conv4(x_shape, Conv4.Config(**{"width": 8, **config})).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_options_tested_here_are_all_there_are() -> None:
    assert str(declared(Conv4.Config)["pool"]) == "one of " + ", ".join(POOLS)
    assert str(declared(Conv4.Config)["norm"]) == "one of " + ", ".join(NORMS)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("sides", [(16, 16), (28, 28), (33, 33), (84, 84), (17, 40)])
def test_forward_gives_n_features_whatever_the_sides_of_a_picture(sides: tuple[int, int], pool: str) -> None:
    encoder, x = conv4((3, *sides), pool=pool), pictures(2, 3, *sides)
    assert encoder(x).shape == (2, encoder.n_features)
    assert encoder.maps(x).shape[1:] == encoder.map_shape
    assert torch.equal(encoder.maps(x).flatten(1), encoder(x))


@pytest.mark.parametrize(("side", "n_features"), [(28, 64), (84, 1600)])
def test_the_default_has_the_papers_sizes(side: int, n_features: int) -> None:
    """64 features of 28 pixels of Omniglot, 1,600 of 84 pixels of miniImageNet (Snell et al., 2017, section 3)."""
    assert Conv4((1, side, side), Conv4.Config()).n_features == n_features


@pytest.mark.parametrize("norm", NORMS)
def test_the_default_has_the_papers_number_of_parameters(norm: str) -> None:
    """Four 3×3 convolutions with bias and, where there is a normalisation, a scale and a shift a channel."""
    encoder = Conv4((1, 28, 28), Conv4.Config(norm=norm))
    convolutions = (9 * 1 * 64 + 64) + 3 * (9 * 64 * 64 + 64)
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + (0 if norm == "none" else 4 * 2 * 64)


@pytest.mark.parametrize("x_shape", [(1, 15, 15), (1, 28, 15), (3, 1, 84)])
def test_pictures_that_cannot_be_halved_four_times_are_refused_and_told_what_works(x_shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=re.escape(f"{x_shape[1:]} pixels are too few; use 16 or more")):
        Conv4(x_shape, Conv4.Config(pool="max"))
    widened = (x_shape[0], *(max(side, 16) for side in x_shape[1:]))
    assert conv4(widened, pool="max")(pictures(2, *widened)).isfinite().all()


def test_strides_halve_upwards_so_that_no_picture_is_too_small_for_them() -> None:
    encoder = conv4((1, 3, 1), pool="stride")
    assert encoder(pictures(2, 1, 3, 1)).shape == (2, encoder.n_features) == (2, 8)


@pytest.mark.parametrize("x_shape", [(6,), (28, 28), ()])
def test_examples_that_are_no_pictures_are_refused(x_shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=re.escape(f"not examples of shape {x_shape}")):
        Conv4(x_shape, Conv4.Config())


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_block_is_convolution_normalisation_relu_and_halving_by_their_formulas(norm: str, pool: str) -> None:
    encoder = conv4((2, 16, 16), norm=norm, pool=pool)
    block, x = encoder.blocks[0], pictures(5, 2, 16, 16)
    assert isinstance(block, nn.Sequential)
    convolution = block[0]
    h = conv2d(x, convolution.weight, convolution.bias, stride=2 if pool == "stride" else 1, padding=1)  # type: ignore[arg-type]
    if norm != "none":
        across = (1, 2, 3) if norm == "layer" else (0, 2, 3)  # of one picture; of one channel over all pictures
        mean = h.mean(across, keepdim=True)
        variance = (h - mean).square().mean(across, keepdim=True)
        affine = next(layer for layer in block if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d))
        scale, shift = affine.weight[:, None, None], affine.bias[:, None, None]
        h = (h - mean) / (variance + 1e-5).sqrt() * scale + shift
    h = h.clamp(min=0)
    if pool == "max":
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    torch.testing.assert_close(block(x), h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_features_of_a_picture_depend_on_the_others_under_batch_statistics_only(
    norm: str, training: bool, pool: str
) -> None:
    encoder, x = conv4((1, 16, 16), norm=norm, pool=pool).train(training), pictures(4, 1, 16, 16)
    assert torch.allclose(encoder(x)[:2], encoder(x[:2]), rtol=1e-9, atol=1e-12) == (norm != "batch")


def test_options_that_make_queries_depend_on_each_other_are_declared_transductive() -> None:
    assert declared(Conv4.Config)["norm"].transductive == ("batch",)  # type: ignore[union-attr]
    assert Conv4.Config().norm != "batch"


@pytest.mark.parametrize("norm", NORMS)
def test_an_encoder_keeps_no_memory_of_what_it_has_seen(norm: str) -> None:
    encoder = conv4((1, 16, 16), norm=norm).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(pictures(4, 1, 16, 16))
    assert set(before) == {name for name, _ in encoder.named_parameters()}, "no buffers, so no running statistics"
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
