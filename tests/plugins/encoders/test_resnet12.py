"""ResNet-12 has the paper's sizes, and its blocks are their formula."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, max_pool2d

from metaopt.errors import UserError
from metaopt.tune import declared
from metaopt_encoders.resnet12 import ResNet12

NORMS = ["layer", "batch"]


def resnet12(x_shape: tuple[int, ...], norm: str = "layer", width: int = 4) -> ResNet12:
    """Return a float64 encoder whose every parameter is random, the normalisation's affine too."""
    torch.manual_seed(0)
    encoder = ResNet12(x_shape, ResNet12.Config(width, norm)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_options_tested_here_are_all_there_are() -> None:
    assert str(declared(ResNet12.Config)["norm"]) == "one of " + ", ".join(NORMS)
    assert declared(ResNet12.Config)["norm"].transductive == ("batch",)  # type: ignore[union-attr]


def test_the_default_has_the_papers_sizes() -> None:
    """Widths 64, 160, 320, 640, and 16,000 features of 84 pixels (Lee et al., 2019, section 4.1).

    Twelve 3×3 convolutions and four shortcuts without bias, a scale and a shift a channel after each of the sixteen.
    """
    encoder = ResNet12((3, 84, 84), ResNet12.Config())
    assert (encoder.map_shape, encoder.n_features) == ((640, 5, 5), 16000)
    parameters, n_in = 0, 3
    for n_out in (64, 160, 320, 640):
        parameters += 9 * (n_in * n_out + 2 * n_out * n_out) + n_in * n_out + 4 * 2 * n_out
        n_in = n_out
    assert sum(p.numel() for p in encoder.parameters()) == parameters == 12424320


@pytest.mark.parametrize("sides", [(16, 16), (28, 28), (33, 20)])
def test_forward_gives_n_features_whatever_the_sides_of_a_picture(sides: tuple[int, int]) -> None:
    encoder = resnet12((3, *sides), width=5)
    x = pictures(2, 3, *sides)
    assert encoder.maps(x).shape == (2, *encoder.map_shape)  # type: ignore[misc]
    assert torch.equal(encoder(x), encoder.maps(x).flatten(1))
    assert encoder(x).shape == (2, encoder.n_features)


@pytest.mark.parametrize("x_shape", [(1, 15, 15), (1, 28, 15)])
def test_pictures_that_cannot_be_halved_four_times_are_refused_and_told_what_works(x_shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=re.escape(f"{x_shape[1:]} pixels are too few; use 16 or more")):
        ResNet12(x_shape, ResNet12.Config())


@pytest.mark.parametrize("x_shape", [(6,), (28, 28)])
def test_examples_that_are_no_pictures_are_refused(x_shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=re.escape(f"not examples of shape {x_shape}")):
        ResNet12(x_shape, ResNet12.Config())


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_is_three_convolutions_beside_a_shortcut_by_their_formulas(norm: str) -> None:
    encoder = resnet12((2, 16, 16), norm)
    block, x = encoder.blocks[0], pictures(5, 2, 16, 16)

    def normalised(x: Tensor, layers: nn.Module) -> Tensor:
        convolution, normalisation = layers.children()
        weight: Tensor = convolution.weight  # type: ignore[assignment]
        x = conv2d(x, weight, padding=weight.shape[-1] // 2)
        across = (1, 2, 3) if norm == "layer" else (0, 2, 3)
        x = (x - x.mean(across, keepdim=True)) / (x.var(across, correction=0, keepdim=True) + 1e-5).sqrt()
        return normalisation.weight[:, None, None] * x + normalisation.bias[:, None, None]  # type: ignore[index, union-attr]

    h = x
    for number, step in enumerate(block.path[::2]):  # type: ignore[index, arg-type]
        h = normalised(h if number == 0 else leaky_relu(h, 0.1), step)
    expected = max_pool2d(leaky_relu(h + normalised(x, block.shortcut), 0.1), 2)  # type: ignore[arg-type]
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_features_of_a_picture_depend_on_the_others_under_batch_statistics_only(norm: str, training: bool) -> None:
    encoder, x = resnet12((1, 16, 16), norm).train(training), pictures(4, 1, 16, 16)
    assert torch.allclose(encoder(x)[:2], encoder(x[:2]), rtol=1e-9, atol=1e-12) == (norm != "batch")


@pytest.mark.parametrize("norm", NORMS)
def test_an_encoder_keeps_no_memory_of_what_it_has_seen(norm: str) -> None:
    encoder = resnet12((1, 16, 16), norm).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(pictures(4, 1, 16, 16))
    assert set(before) == {name for name, _ in encoder.named_parameters()}, "no buffers, so no running statistics"
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
