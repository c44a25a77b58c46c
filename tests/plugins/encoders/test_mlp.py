"""The multi-layer perceptron is its formula."""

import pytest
import torch
from torch import nn

from metaopt_encoders.mlp import MLP


def test_features_are_rectified_affine_maps_of_each_other() -> None:
    torch.manual_seed(0)
    encoder = MLP((3,), MLP.Config(width=5, depth=2)).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in encoder.layers if isinstance(m, nn.Linear))
    expected = (w2 @ (w1 @ x.T + b1[:, None]).clamp(min=0) + b2[:, None]).clamp(min=0).T
    torch.testing.assert_close(encoder(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 6])
@pytest.mark.parametrize("width", [8, 33])
def test_width_and_depth_set_the_number_of_weights(width: int, depth: int) -> None:
    encoder = MLP((4,), MLP.Config(width, depth))
    first, further = 4 * width + width, width * width + width
    assert sum(parameter.numel() for parameter in encoder.parameters()) == first + (depth - 1) * further


@pytest.mark.parametrize("x_shape", [(1,), (20,), (3, 8, 9)])
def test_forward_gives_n_features_whatever_the_shape_of_an_example(x_shape: tuple[int, ...]) -> None:
    encoder = MLP(x_shape, MLP.Config(width=16))
    assert encoder(torch.randn(2, *x_shape)).shape == (2, encoder.n_features) == (2, 16)


def test_a_picture_is_read_as_the_vector_of_its_pixels() -> None:
    torch.manual_seed(0)
    of_pictures = MLP((1, 2, 3), MLP.Config())
    of_vectors = MLP((6,), MLP.Config())
    of_vectors.load_state_dict(of_pictures.state_dict())
    x = torch.randn(4, 1, 2, 3)
    assert torch.equal(of_pictures(x), of_vectors(x.reshape(4, 6)))


def test_the_default_is_the_network_of_the_sinusoids_of_the_maml_paper() -> None:
    """Two hidden layers of 40 units; with the output unit that a learner adds, 1,761 numbers."""
    encoder = MLP((1,), MLP.Config())
    assert sum(parameter.numel() for parameter in encoder.parameters()) + encoder.n_features + 1 == 1761
