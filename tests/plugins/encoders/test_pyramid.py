"""A pyramid has the layers that it says, halves a picture at each, and refuses those too small for it."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch

from metaopt.errors import UserError
from metaopt_encoders.pyramid import Pyramid


def pyramid(x_shape: tuple[int, ...], **config: Any) -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(x_shape, Pyramid.Config(**config))


@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("sides", [(56, 56), (33, 84), (105, 105)])
def test_forward_gives_n_features_on_the_grid_that_map_shape_says(
    sides: tuple[int, int], depth: int, pool: str
) -> None:
    encoder, x = pyramid((3, *sides), width=8, depth=depth, pool=pool), torch.randn(2, 3, *sides)
    assert encoder(x).shape == (2, encoder.n_features)
    assert encoder.maps(x).shape[1:] == encoder.map_shape


def test_56_pixels_and_32_channels_give_a_third_of_a_million_parameters() -> None:
    encoder = pyramid((1, 56, 56))
    channels = [1, 32, 64, 96, 128, 128]
    convolutions = sum(9 * a * b + b for a, b in pairwise(channels))
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + 2 * sum(channels[1:])
    assert encoder.map_shape == (128, 2, 2)


def test_a_pooled_pyramid_is_strided_once_and_as_large_as_a_strided_one() -> None:
    pooled, strided = pyramid((1, 40, 40), pool="max"), pyramid((1, 40, 40))
    strides = [layer.stride[0] for block in pooled.layers for layer in block if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [2, 1, 1, 1, 1]
    assert sum(p.numel() for p in pooled.parameters()) == sum(p.numel() for p in strided.parameters())


def test_too_few_pixels_and_vectors_are_refused() -> None:
    with pytest.raises(UserError, match=re.escape("(16, 16) pixels are too few; use 17 or more, or a smaller depth")):
        pyramid((1, 16, 16))
    assert pyramid((1, 17, 17), width=8).map_shape[1:] == (1, 1)
    with pytest.raises(UserError, match=re.escape("(30, 30) pixels are too few; use 31 or more, or a smaller depth")):
        pyramid((1, 30, 30), pool="max")
    assert pyramid((1, 31, 31), width=8, pool="max").map_shape[1:] == (1, 1)
    with pytest.raises(UserError, match="needs pictures"):
        pyramid((16,))
