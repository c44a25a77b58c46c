"""A relation network compares every pair of a class and a query by one network, and is trained by the squared error."""

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import conv2d, group_norm, layer_norm, max_pool2d

from metaopt.nn import Encoder
from metaopt.task import TaskSpec
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_metric.relation import RelationNet

PICTURES, VECTORS = (1, 28, 28), (6,)
both_shapes = pytest.mark.parametrize("x_shape", [PICTURES, VECTORS], ids=["pictures", "vectors"])


def relation(x_shape: tuple[int, ...], n_shot: int = 2, **config: object) -> RelationNet:
    torch.manual_seed(0)
    encoder: Encoder
    if len(x_shape) == 3:
        encoder = Conv4(x_shape, Conv4.Config(width=8, pool="stride"))
    else:
        encoder = MLP(x_shape, MLP.Config(width=8))
    spec = TaskSpec("classification", x_shape, 3, n_shot, 2)
    return RelationNet(spec, encoder, RelationNet.Config(width=16, **config)).double()  # type: ignore[arg-type]


def task(x_shape: tuple[int, ...], n_shot: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return supports of 3 classes, their labels, and 5 queries."""
    draw = Generator().manual_seed(1)
    support_y = torch.randperm(3 * n_shot, generator=draw) % 3
    support_x = torch.randn(len(support_y), *x_shape, generator=draw, dtype=torch.float64)
    return support_x, support_y, torch.randn(5, *x_shape, generator=draw, dtype=torch.float64)


def test_a_pair_of_pictures_is_scored_by_the_papers_module() -> None:
    """Feature maps summed over the class, the query's behind them, two convolutional blocks and two linear layers."""
    learner = relation(PICTURES)
    support_x, support_y, query_x = task(PICTURES)
    scores = learner(support_x, support_y, query_x)
    norm, _, _, second, second_norm, _, _, _, hidden, _, out = learner.relation
    for q, query in enumerate(query_x):
        for k in range(3):
            of_class = sum(learner.encoder.maps(x[None]) for x in support_x[support_y == k])
            maps = torch.cat([of_class, learner.encoder.maps(query[None])], 1)  # (1, 2 * 8, 2, 2)
            for layer, after in ((learner.side_by_side, norm), (second, second_norm)):
                maps = conv2d(maps, layer.weight, layer.bias, padding=1)  # type: ignore[arg-type, union-attr]
                maps = group_norm(maps, 1, after.weight, after.bias).clamp(min=0)  # type: ignore[arg-type]
                maps = max_pool2d(maps, 2) if maps.shape[-1] > 1 else maps
            score = out(hidden(maps.flatten(1)).clamp(min=0))
            torch.testing.assert_close(scores[q, k], score[0, 0], rtol=1e-9, atol=1e-12)


def test_a_pair_of_vectors_is_scored_by_linear_layers() -> None:
    learner = relation(VECTORS)
    support_x, support_y, query_x = task(VECTORS)
    scores = learner(support_x, support_y, query_x)
    norm, _, _, second, second_norm, _, _, _, hidden, _, out = learner.relation
    for q, query in enumerate(query_x):
        for k in range(3):
            pair = torch.cat([learner.encoder(support_x[support_y == k]).sum(0), learner.encoder(query[None])[0]])
            for layer, after in ((learner.side_by_side, norm), (second, second_norm)):
                assert layer.weight.shape[2:] == (1, 1)  # type: ignore[union-attr]
                pair = layer.weight[:, :, 0, 0] @ pair + layer.bias  # type: ignore[index, union-attr, operator]
                pair = layer_norm(pair, (16,), after.weight, after.bias).clamp(min=0)  # type: ignore[arg-type]
            torch.testing.assert_close(scores[q, k], out(hidden(pair).clamp(min=0))[0], rtol=1e-9, atol=1e-12)


@both_shapes
def test_the_loss_is_the_mean_squared_error_to_1_for_the_own_class_and_0_for_others(x_shape: tuple[int, ...]) -> None:
    """Equation 2 of the paper, as a mean."""
    learner, (support_x, support_y, query_x) = relation(x_shape), task(x_shape)
    query_y = torch.tensor([2, 0, 1, 1, 2])
    relations = learner(support_x, support_y, query_x).sigmoid().tolist()
    squares = [
        (r - (y == k)) ** 2 for row, y in zip(relations, query_y.tolist(), strict=True) for k, r in enumerate(row)
    ]
    loss = learner.task_loss(support_x, support_y, query_x, query_y)
    assert loss.item() == pytest.approx(sum(squares) / 15, rel=1e-9)


@both_shapes
def test_the_sum_and_the_mean_of_one_example_are_that_example(x_shape: tuple[int, ...]) -> None:
    by_sum, by_mean = (
        relation(x_shape, n_shot=1, of_class=of_class)(*task(x_shape, 1)) for of_class in ("sum", "mean")
    )
    torch.testing.assert_close(by_sum, by_mean, rtol=1e-12, atol=1e-12)


@both_shapes
def test_showing_every_support_twice_changes_the_sum_and_not_the_mean(x_shape: tuple[int, ...]) -> None:
    support_x, support_y, query_x = task(x_shape)
    for of_class in ("sum", "mean"):
        learner = relation(x_shape, of_class=of_class)
        twice = learner(support_x.repeat(2, *[1] * len(x_shape)), support_y.repeat(2), query_x)
        same = torch.allclose(twice, learner(support_x, support_y, query_x), rtol=1e-9)
        assert same == (of_class == "mean")


@pytest.mark.parametrize("side", [16, 28, 33, 56, 84])
def test_maps_of_any_size_are_compared(side: int) -> None:
    learner = relation((1, side, side))
    assert learner(*task((1, side, side))).shape == (5, 3)


def test_the_module_has_the_papers_number_of_parameters() -> None:
    """Convolutions of 128 and 64 channels to 64, of normalised outputs, then 64 to 8 to 1, as for Omniglot."""
    encoder = Conv4((1, 64, 64), Conv4.Config())
    assert encoder.map_shape == (64, 4, 4)
    learner = RelationNet(TaskSpec("classification", (1, 64, 64), 5, 1, 1), encoder, RelationNet.Config())
    own = sum(p.numel() for p in learner.parameters()) - sum(p.numel() for p in encoder.parameters())
    blocks = (9 * 128 * 64 + 64) + 2 * 64 + (9 * 64 * 64 + 64) + 2 * 64
    assert own == blocks + (64 * 8 + 8) + (8 + 1)
