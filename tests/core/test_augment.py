"""Augmented tasks: what is done to a class is done to all of its examples, and what is off changes nothing."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, interpolate, max_pool2d

from metaopt.augment import DIHEDRAL, GRID, PICTURES, Augment, _basis, _dilated, _like
from metaopt.errors import UserError
from metaopt.task import Examples, TaskBatch
from metaopt.tune import declared, extremes

N_WAY, SHOTS, QUERIES, SIDE = 3, 2, 2, 16


def tasks(n_tasks: int = 4, x: Tensor | None = None) -> TaskBatch:
    """Return tasks whose classes are pictures, the same for all examples of a class, unless `x` is given."""
    draw = Generator().manual_seed(0)
    pictures = torch.rand(n_tasks, N_WAY, 1, SIDE, SIDE, generator=draw) if x is None else x
    parts = []
    for each in (SHOTS, QUERIES):
        labels = torch.stack([torch.arange(N_WAY).repeat(each)[torch.randperm(N_WAY * each, generator=draw)]
                              for _ in range(n_tasks)])  # fmt: skip
        parts += [pictures[torch.arange(n_tasks)[:, None], labels], labels]
    return TaskBatch(*parts)


def augmented(batch: TaskBatch, seed: int = 1, **strengths: Any) -> TaskBatch:
    return Augment(**strengths).batch(batch, Generator().manual_seed(seed))


def blob(row: int, column: int) -> Tensor:
    """Return a picture (1, 1, 1, SIDE, SIDE)-like batch with one bright block of 2 by 2 pixels."""
    picture = torch.zeros(1, N_WAY, 1, SIDE, SIDE)
    picture[..., row : row + 2, column : column + 2] = 1.0
    return picture


def centre(picture: Tensor) -> tuple[float, float]:
    """Return the centre of mass (row, column) of a picture (1, SIDE, SIDE), from its middle."""
    mass, at = picture[0], torch.arange(SIDE) - (SIDE - 1) / 2
    return float((mass.sum(1) * at).sum() / mass.sum()), float((mass.sum(0) * at).sum() / mass.sum())


def test_what_is_off_changes_nothing() -> None:
    batch = tasks()
    for one, other in zip(augmented(batch).tensors(), batch.tensors(), strict=True):
        assert torch.equal(one, other)
    assert not Augment().active


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Augment) if field.name not in {"turn", "test_turns", "test_copies"}]
)
def test_each_strength_changes_pictures_and_neither_labels_nor_shapes_nor_the_batch_it_was_given(name: str) -> None:
    batch = tasks()
    before = [tensor.clone() for tensor in batch.tensors()]
    found = augmented(batch, **{name: declared(Augment)[name].high})  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(batch.tensors(), before, strict=True))
    assert torch.equal(found.support_y, batch.support_y)
    assert torch.equal(found.query_y, batch.query_y)
    for x, was in ((found.support_x, batch.support_x), (found.query_x, batch.query_x)):
        assert x.shape == was.shape
        assert x.isfinite().all()
        assert not torch.equal(x, was)


@given(st.sampled_from(list(extremes(declared(Augment)))), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_the_same_generator_gives_the_same_tasks(strength: dict[str, Any], seed: int) -> None:
    first, second = (augmented(tasks(), seed, **strength) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first.tensors(), second.tensors(), strict=True))


# Whole classes


def dihedral(picture: Tensor) -> list[Tensor]:
    turned = [picture.rot90(k, (-2, -1)) for k in range(4)]
    return turned + [one.flip(-1) for one in turned]


@pytest.mark.parametrize("turn", ["task", "class"])
def test_a_turn_is_one_of_eight_and_the_same_for_all_examples_of_a_class(turn: str) -> None:
    batch, seen = tasks(40), set()
    found = augmented(batch, turn=turn)
    for task in range(40):
        turns = {}
        for x, was, y in (
            (found.support_x, batch.support_x, batch.support_y),
            (found.query_x, batch.query_x, batch.query_y),
        ):
            for new, old, label in zip(x[task], was[task], y[task].tolist(), strict=True):
                [which] = [k for k, one in enumerate(dihedral(old)) if torch.equal(one, new)]
                assert turns.setdefault(label, which) == which
        assert turn == "class" or len(set(turns.values())) == 1
        seen |= {tuple(turns.values())}
    assert len({one for turns in seen for one in turns}) == DIHEDRAL, "all eight occur"
    assert turn == "task" or any(len(set(turns)) > 1 for turns in seen)


@pytest.mark.parametrize("strength", [{"slant": 0.3}, {"stretch": 0.3}])
def test_slant_and_stretch_are_the_same_for_all_pictures_of_a_task_and_differ_between_tasks(
    strength: dict[str, float],
) -> None:
    same = torch.rand(1, 1, 1, SIDE, SIDE, generator=Generator().manual_seed(0)).expand(4, N_WAY, -1, -1, -1)
    found = augmented(tasks(4, same), **strength).support_x
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    assert not torch.allclose(found[0], found[1])


# Single examples


@pytest.mark.parametrize("name", ["rotate", "scale", "shift", "elastic", "stroke"])
def test_jitter_differs_between_examples_of_one_picture(name: str) -> None:
    same = torch.rand(1, 1, 1, SIDE, SIDE, generator=Generator().manual_seed(0)).expand(4, N_WAY, -1, -1, -1)
    found = augmented(tasks(4, same), **{name: declared(Augment)[name].high}).support_x  # type: ignore[union-attr]
    assert not torch.allclose(found[0, 0], found[0, 1])


def test_a_rotation_turns_by_no_more_than_the_angle_and_keeps_the_distance_from_the_middle() -> None:
    found = augmented(tasks(1, blob(7, 12)), rotate=30.0)
    angles = []
    for picture in torch.cat([found.support_x[0], found.query_x[0]]):
        row, column = centre(picture)
        assert math.hypot(row, column) == pytest.approx(5.0, abs=0.3)
        angles.append(math.degrees(math.atan2(row, column)))
    assert max(map(abs, angles)) <= 31
    assert max(angles) - min(angles) > 5


def test_a_shift_moves_by_no_more_than_its_share_of_the_picture() -> None:
    found = augmented(tasks(1, blob(7, 7)), shift=0.25)
    moved = [centre(picture) for picture in torch.cat([found.support_x[0], found.query_x[0]])]
    assert max(max(abs(row), abs(column)) for row, column in moved) <= 0.25 * SIDE + 0.1
    assert max(abs(row) for row, _ in moved) > 1


def test_a_larger_scale_spreads_a_picture_about_its_middle() -> None:
    found = augmented(tasks(1, blob(7, 11)), scale=0.3)
    columns = [centre(picture)[1] for picture in torch.cat([found.support_x[0], found.query_x[0]])]
    assert min(columns) < 4.0 < max(columns)


def test_strokes_become_thicker_or_thinner_and_stay_between_their_neighbours() -> None:
    batch = tasks(8)
    found = augmented(batch, stroke=1.0).support_x
    assert found.min() >= 0
    assert found.max() <= 1
    lighter = (found - batch.support_x).mean((2, 3, 4))
    assert (lighter > 0).any()
    assert (lighter < 0).any()


def test_dropout_keeps_the_mean_and_noise_has_the_strength_asked_for() -> None:
    vectors = torch.ones(200, N_WAY, 50)
    found = augmented(tasks(200, vectors), dropout=0.4).support_x
    assert ((found == 0) | ((found - 1 / 0.6).abs() < 1e-6)).all()
    assert float((found == 0).float().mean()) == pytest.approx(0.4, abs=0.01)
    assert float(augmented(tasks(200, vectors), noise=0.3).support_x.std()) == pytest.approx(0.3, abs=0.01)


def test_vectors_are_left_alone_by_what_is_for_pictures() -> None:
    batch = tasks(4, torch.rand(4, N_WAY, 5))
    found = augmented(batch, turn="class", slant=0.5, rotate=20.0, elastic=0.1, stroke=1.0)
    assert torch.equal(found.support_x, batch.support_x)


def test_labelled_examples_are_jittered_and_never_turned() -> None:
    x = torch.rand(5, 1, SIDE, SIDE, generator=Generator().manual_seed(0))
    examples = Examples(x, torch.arange(5))
    turned = Augment(turn="class", slant=0.5, stretch=0.5).examples(examples, Generator().manual_seed(0))
    assert torch.equal(turned.x, x)
    assert not torch.equal(Augment(rotate=20.0).examples(examples, Generator().manual_seed(0)).x, x)


def test_the_views_of_a_task_are_its_turns_and_its_classes_stay_as_they_are() -> None:
    batch, none = tasks(), Generator()
    only_classes = Augment(turn="class", slant=0.5, stretch=0.5, test_copies=2)
    assert all(torch.equal(view.support_x, batch.support_x) for view in only_classes.views(batch, none))
    four, eight = ([*Augment(test_turns=n).views(batch, none)] for n in (4, 8))
    assert torch.equal(eight[0].query_x, batch.query_x)
    assert len({tuple(view.query_x.flatten().tolist()) for view in eight}) == 8
    for quarter, view in enumerate(eight):
        back = view.query_x.flip(-1) if quarter >= 4 else view.query_x
        assert torch.equal(back.rot90(-quarter % 4, (-2, -1)), batch.query_x)
        assert torch.equal(view.query_y, batch.query_y)
        assert quarter >= 4 or torch.equal(view.support_x, four[quarter].support_x)


def test_copies_are_jittered_in_each_turn_but_for_the_first() -> None:
    batch = tasks()
    views = [*Augment(shift=0.2, test_turns=4, test_copies=3).views(batch, Generator().manual_seed(0))]
    turns = [*Augment(test_turns=4).views(batch, Generator())]
    assert len(views) == 12
    same = [any(torch.equal(view.support_x, turn.support_x) for turn in turns) for view in views]
    assert same == [True, False, False] * 4


def test_joined_classes_are_halves_of_two_and_stay_apart() -> None:
    n_way, side = 4, 6
    y = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0]])
    x = torch.rand(1, 8, 1, 1, 1, generator=Generator().manual_seed(0)).expand(1, 8, 1, side, side)
    batch = TaskBatch(x, y, x[:, :4], y[:, :4])
    for seed in range(8):
        joined = Augment(join=1.0).batch(batch, Generator().manual_seed(seed))
        assert torch.equal(joined.support_y, y)
        for pictures, alone, labels in ((joined.support_x, x, y), (joined.query_x, x[:, :4], y[:, :4])):
            first, last = pictures[0, :, 0, 0, 0], pictures[0, :, 0, -1, -1]
            assert torch.equal(first, alone[0, :, 0, 0, 0]), "the first half is its own"
            after = {}
            for place, value in enumerate(last):
                partner = int(torch.nonzero(alone[0, :, 0, 0, 0] == value))
                after.setdefault(int(labels[0, place]), set()).add(int(labels[0, partner]))
            assert {min(classes) for classes in after.values()} == {*range(n_way)}, "each is the second of one"
            assert all(len(classes) == 1 and own not in classes for own, classes in after.items())
    assert not torch.equal(Augment(join=0.5).batch(tasks(), Generator().manual_seed(1)).support_x, tasks().support_x)


def test_the_kth_picture_of_a_class_is_joined_with_the_kth_of_the_next() -> None:
    y = torch.tensor([0, 1, 0, 1, 1, 2])
    assert _like(y, torch.tensor([1, 2, 0])).tolist() == [1, 5, 3, 5, 5, 0]


# Refusals


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_for_pictures_is_refused_for_vectors(name: str) -> None:
    on = {name: "task" if name == "turn" else 0.1}
    with pytest.raises(UserError, match=rf"augment\.{name} is for pictures and the examples have shape \(5,\)"):
        Augment(**on).check((5,))  # type: ignore[arg-type]
    Augment(**on).check((1, 8, 8))  # type: ignore[arg-type]


def test_turns_need_square_pictures() -> None:
    with pytest.raises(UserError, match=r"augment\.turn is for square pictures and these are 8 × 9"):
        Augment(turn="task").check((1, 8, 9))
    with pytest.raises(UserError, match=r"augment\.test_turns is for square pictures and these are 8 × 9"):
        Augment(test_turns=4).check((1, 8, 9))
    with pytest.raises(UserError, match=r"augment\.test_turns is for pictures and the examples have shape \(5,\)"):
        Augment(test_turns=8).check((5,))
    Augment(rotate=10.0, noise=0.1).check((1, 8, 9))
    Augment(noise=0.1, dropout=0.1).check((5,))


# The mathematics of one resampling


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_one_product_gives_the_places_of_an_affine_map_and_of_a_spline_over_the_coarse_grid(
    height: int, width: int, seed: int
) -> None:
    draw = Generator().manual_seed(seed)
    affine, nodes = torch.randn(3, 2, 3, generator=draw), torch.randn(3, 2, GRID, GRID, generator=draw)
    found = (torch.cat([affine, nodes.flatten(2)], 2) @ _basis(height, width)).view(3, 2, height, width)
    smooth = interpolate(nodes, (height, width), mode="bicubic", align_corners=True)
    expected = affine_grid(affine, [3, 1, height, width], align_corners=False).permute(0, 3, 1, 2) + smooth
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_dilation_is_a_maximum_over_three_by_three_pixels(height: int, width: int, seed: int) -> None:
    x = torch.randn(2, 1, height, width, generator=Generator().manual_seed(seed))
    assert torch.equal(_dilated(x), max_pool2d(x, 3, 1, 1))
