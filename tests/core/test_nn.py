"""Class means, distances and gradient descent equal their closed forms, and their derivatives do too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from metaopt.errors import UserError
from metaopt.nn import ChannelsLast, Encoder, class_means, descend, reduced, squared_distances

SEED = st.integers(0, 2**32)
SIZE = st.integers(1, 6)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def random_symmetric(n: int, seed: int) -> Tensor:
    """Return a symmetric positive definite matrix, (n, n)."""
    root = normal(n, n, seed=seed)
    return root @ root.T / n + torch.eye(n, dtype=torch.float64)


@st.composite
def every_class_at_least_once(draw: DrawFn) -> tuple[Tensor, int]:
    """Labels (n,) in any order and in any numbers, and how many classes there are."""
    n_way = draw(st.integers(1, 6))
    more = draw(st.lists(st.integers(0, n_way - 1), max_size=10))
    return torch.tensor(draw(st.permutations([*range(n_way), *more]))), n_way


@given(every_class_at_least_once(), SIZE, SEED)
@settings(deadline=None)
def test_class_means_are_the_means_of_each_class(labelled: tuple[Tensor, int], n_features: int, seed: int) -> None:
    labels, n_way = labelled
    features = normal(len(labels), n_features, seed=seed)
    expected = torch.stack([features[labels == label].mean(0) for label in range(n_way)])
    torch.testing.assert_close(class_means(features, labels, n_way), expected, rtol=1e-12, atol=1e-12)


@given(every_class_at_least_once(), SEED)
@settings(deadline=None)
def test_an_example_moves_its_class_mean_by_one_over_the_class_size(labelled: tuple[Tensor, int], seed: int) -> None:
    labels, n_way = labelled
    jacobian = jacrev(lambda features: class_means(features, labels, n_way))(normal(len(labels), 1, seed=seed))
    member = labels == torch.arange(n_way)[:, None]  # (n_way, n)
    expected = member.double() / member.sum(1, keepdim=True)
    torch.testing.assert_close(jacobian[:, 0, :, 0], expected, rtol=1e-12, atol=0)


def test_class_means_of_many_tasks_at_once_are_those_of_each() -> None:
    features = normal(4, 6, 3, seed=0)
    labels = torch.stack([torch.randperm(6, generator=Generator().manual_seed(i)) % 3 for i in range(4)])
    batched = vmap(lambda f, y: class_means(f, y, 3))(features, labels)
    expected = torch.stack([class_means(f, y, 3) for f, y in zip(features, labels, strict=True)])
    torch.testing.assert_close(batched, expected, rtol=1e-12, atol=1e-12)


@given(SIZE, SIZE, SIZE, SEED, st.floats(-1e3, 1e3))
@settings(deadline=None)
def test_squared_distances_are_those_of_cdist(n: int, m: int, n_features: int, seed: int, offset: float) -> None:
    a, b = normal(n, n_features, seed=seed) + offset, normal(m, n_features, seed=seed + 1) + offset
    expected = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    # The binomial formula loses what the squared norms have above the distance, and no more.
    rounding = 8 * torch.finfo(torch.float64).eps * (a.square().sum(1).max() + b.square().sum(1).max())
    torch.testing.assert_close(squared_distances(a, b), expected, rtol=1e-12, atol=n_features * float(rounding))


def test_squared_distances_are_smooth_at_distance_zero() -> None:
    """The gradient of |a − b|² is 2 (a − b) and its second derivative twice the unit matrix, at a = b too."""
    b = normal(1, 3, seed=0)
    for a in (b.clone(), b + 1):
        gradient = grad(lambda a: squared_distances(a, b).sum())(a)
        torch.testing.assert_close(gradient, 2 * (a - b), rtol=1e-12, atol=1e-12)
        curvature = jacrev(jacrev(lambda a: squared_distances(a, b).sum()))(a)
        torch.testing.assert_close(curvature.reshape(3, 3), 2 * torch.eye(3, dtype=torch.float64))


@given(st.integers(0, 6), st.floats(0.01, 0.3), SEED)
@settings(deadline=None, max_examples=30)
def test_descent_on_a_quadratic_is_a_matrix_power_and_so_is_its_derivative(steps: int, lr: float, seed: int) -> None:
    """On ½ wᵀAw each step multiplies w by I − lr A; the derivative of the end by the start is that power itself."""
    matrix, start = random_symmetric(3, seed), normal(3, seed=seed + 1)
    power = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - lr * matrix, steps)

    def end(start: Tensor) -> Tensor:
        return descend(lambda weights: 0.5 * weights["w"] @ matrix @ weights["w"], {"w": start}, lr, steps)["w"]

    torch.testing.assert_close(end(start), power @ start, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(jacrev(end)(start), power, rtol=1e-9, atol=1e-9)


def test_first_order_descent_ends_alike_and_its_derivative_is_the_unit_matrix() -> None:
    matrix, start = random_symmetric(3, 0), normal(3, seed=1)

    def end(start: Tensor, first_order: bool) -> Tensor:
        loss_weights = {"w": start}
        return descend(lambda w: 0.5 * w["w"] @ matrix @ w["w"], loss_weights, 0.1, 3, first_order=first_order)["w"]

    assert torch.equal(end(start, True), end(start, False))
    assert not torch.equal(end(start, True), start)
    assert torch.equal(jacrev(end)(start, True), torch.eye(3, dtype=torch.float64))


def test_descent_adapts_without_writing_to_the_weights_it_is_given_even_where_gradients_are_off() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weights: dict[str, Tensor] = {"w": weight}
    with torch.no_grad():
        after = descend(lambda w: w["w"].square().sum(), weights, 0.25, 1)
    assert after["w"].item() == 1.0  # 2 − 0.25 · 2 · 2
    assert weights == {"w": weight}
    assert weight.item() == 2.0
    assert weight.grad is None


def test_channels_last_changes_the_layout_in_memory_and_nothing_else() -> None:
    pictures = normal(2, 3, 4, 5, seed=0)
    laid_out = ChannelsLast()(pictures)
    assert torch.equal(laid_out, pictures)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    assert not pictures.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_is_the_identity_to_derivatives_of_any_order_and_to_vmap() -> None:
    """Of the sum of cubes the gradient is 3 x² and the derivative of its sum 6 x, task by task and all at once."""
    pictures = normal(3, 2, 3, 4, 5, seed=0)

    def gradient(x: Tensor) -> Tensor:
        found: Tensor = grad(lambda x: ChannelsLast()(x).pow(3).sum())(x)
        return found

    def curvature(x: Tensor) -> Tensor:
        found: Tensor = grad(lambda x: ChannelsLast()(gradient(x)).sum())(x)
        return found

    torch.testing.assert_close(gradient(pictures[0]), 3 * pictures[0].square(), rtol=1e-12, atol=0)
    torch.testing.assert_close(curvature(pictures[0]), 6 * pictures[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(vmap(ChannelsLast())(pictures), pictures, rtol=0, atol=0)
    torch.testing.assert_close(vmap(curvature)(pictures), 6 * pictures, rtol=1e-12, atol=0)


def test_an_encoder_without_forward_or_a_grid_says_so() -> None:
    class Empty(Encoder):
        name = "empty"

    encoder = Empty((3,), Empty.Config())
    assert encoder.map_shape is None
    with pytest.raises(NotImplementedError, match="the encoder Empty does not define `forward`"):
        encoder(torch.zeros(1, 3))
    with pytest.raises(UserError, match="the encoder empty has no features on a grid; take one for pictures"):
        encoder.maps(torch.zeros(1, 3))


# Precision


class OneLayer(Encoder):
    name = "one_layer"

    def __init__(self, x_shape: tuple[int, ...], config: object = None) -> None:
        super().__init__(x_shape, config)
        self.n_features = 16
        self.layer = nn.Linear(x_shape[0], 16)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(x)
        return features


def test_an_encoder_in_bfloat16_gives_what_its_rounded_weights_give_as_float32_and_keeps_its_weights() -> None:
    torch.manual_seed(0)
    encoder, x = OneLayer((8,)), torch.randn(5, 8)
    exact, state = encoder(x), {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.precision = "bfloat16"
    features = encoder(x)
    assert features.dtype == torch.float32
    rounded = [tensor.bfloat16() for tensor in (x, encoder.layer.weight, encoder.layer.bias)]
    assert torch.equal(features, torch.nn.functional.linear(*rounded).float())
    assert not torch.equal(features, exact)
    torch.testing.assert_close(features, exact, atol=0.05, rtol=0.05)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


class Places(Encoder):
    """The pixels that come in."""

    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, None)
        self.map_shape = x_shape[0], x_shape[1], x_shape[2]

    def maps(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_an_encoder_of_a_resolution_is_given_the_mean_of_the_pixels_that_become_one() -> None:
    x = torch.rand(2, 3, 8, 4)
    encoder = Places((3, 4, 2))
    encoder.resolution = 4
    means = x.view(2, 3, 4, 2, 2, 2).mean((3, 5))
    torch.testing.assert_close(encoder.grid(x), means)
    torch.testing.assert_close(encoder(x), means.flatten(1))
    together = vmap(encoder)(x[None].expand(3, -1, -1, -1, -1))
    torch.testing.assert_close(together, means.flatten(1).expand(3, -1, -1))


def test_pictures_are_made_smaller_and_never_larger_and_keep_their_form() -> None:
    assert reduced((1, 40, 20), 10) == (1, 10, 5)
    assert reduced((1, 40, 1), 10) == (1, 10, 1)
    assert reduced((1, 8, 8), 10) == (1, 8, 8)
    assert reduced((40,), 10) == (40,)
    assert reduced((1, 40, 20), None) == (1, 40, 20)


def test_gradients_reach_through_bfloat16_by_vmap_too() -> None:
    torch.manual_seed(0)
    encoder, x = OneLayer((8,)), torch.randn(3, 5, 8)
    encoder.precision = "bfloat16"
    weights = {name: parameter.detach() for name, parameter in encoder.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        features: Tensor = functional_call(encoder, weights, (x,))
        return features.square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for task in range(3):
        alone = grad(loss)(weights, x[task])
        for name in weights:
            torch.testing.assert_close(together[name][task], alone[name], atol=0.1, rtol=0.02)
