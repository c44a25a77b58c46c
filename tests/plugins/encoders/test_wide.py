"""The wide encoder is its formula, and begins as what leaves distances as they are."""

import torch

from metaopt.nn import squared_distances
from metaopt_encoders.wide import Wide


def test_features_are_weighted_inputs_and_a_linear_map_of_these() -> None:
    torch.manual_seed(0)
    encoder = Wide((2, 3), Wide.Config(width=8)).double()
    with torch.no_grad():
        encoder.log_weights.copy_(torch.arange(6.0, dtype=torch.float64).log1p())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    weighted = x.reshape(5, 6) * torch.arange(1.0, 7.0, dtype=torch.float64)
    expected = torch.cat([weighted, weighted @ encoder.map.weight.T], 1)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-12, atol=1e-12)
    assert encoder(x).shape == (5, encoder.n_features) == (5, 6 + 8)


def test_at_first_squared_distances_are_twice_those_of_the_examples_on_average() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 50)
    apart = ~torch.eye(20, dtype=torch.bool)
    ratios = [
        (squared_distances(features, features)[apart] / squared_distances(x, x)[apart]).mean()
        for features in (Wide((50,), Wide.Config(width=512))(x) for _ in range(20))
    ]
    torch.testing.assert_close(torch.stack(ratios).mean(), torch.tensor(2.0), rtol=0.01, atol=0.0)


def test_a_feature_that_no_example_has_is_left_as_it_was() -> None:
    encoder = Wide((4,), Wide.Config(width=8))
    x = torch.randn(6, 4) * torch.tensor([1.0, 1.0, 0.0, 1.0])
    encoder(x).square().sum().backward()
    assert encoder.log_weights.grad is not None
    assert encoder.map.weight.grad is not None
    assert encoder.log_weights.grad.ne(0).tolist() == [True, True, False, True]
    assert not encoder.map.weight.grad[:, 2].any()
