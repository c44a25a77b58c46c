"""The identity hands examples on as they are."""

import pytest
import torch

from metaopt.errors import UserError
from metaopt_encoders.identity import Identity


@pytest.mark.parametrize("x_shape", [(7,), (3, 4), (2, 5, 6)])
def test_features_are_the_examples_numbers(x_shape: tuple[int, ...]) -> None:
    encoder, x = Identity(x_shape, Identity.Config()), torch.randn(4, *x_shape)
    assert torch.equal(encoder(x), x.reshape(4, -1))
    assert encoder(x).shape == (4, encoder.n_features)
    assert list(encoder.parameters()) == []


def test_pictures_stay_on_their_grid() -> None:
    encoder, x = Identity((2, 5, 6), Identity.Config()), torch.randn(4, 2, 5, 6)
    assert encoder.map_shape == (2, 5, 6)
    assert encoder.maps(x) is x


def test_vectors_have_no_grid() -> None:
    encoder = Identity((7,), Identity.Config())
    assert encoder.map_shape is None
    with pytest.raises(UserError, match="the encoder identity has no features on a grid"):
        encoder.maps(torch.randn(4, 7))
