"""Glyphs are characters that differ, in hands that differ: hard for pixels, not for whoever looks at shapes."""

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, normalize

from metaopt.errors import UserError
from metaopt.task import POOLS, ClassPool, Pool, TaskBatch
from metaopt_tasks import glyphs
from metaopt_tasks.glyphs import N_POINTS, N_STROKES, Characters, Glyphs


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def sampler(**settings: Any) -> Glyphs:
    few = {f"{pool}_classes": 30 for pool in POOLS}
    return Glyphs(Glyphs.Config(**(few | settings)))


def same(one: TaskBatch, other: TaskBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def pictures_of(source: Glyphs, pool: Pool) -> Tensor:
    """(n_classes, n_examples, size, size) in [0, 1]."""
    size = source.config.size
    return source._pool(pool).sources.view(-1, source.config.examples, size, size) / 255


def correlations(pictures: Tensor, others: Tensor) -> Tensor:
    """(n, n_others), of pictures blurred by a pixel, so that lines side by side count as alike."""
    blurred = (avg_pool2d(x[:, None], 3, stride=1, padding=1).flatten(1) for x in (pictures, others))
    a, b = (normalize(x - x.mean(1, keepdim=True), dim=1) for x in blurred)
    return a @ b.T


def accuracies(tasks: TaskBatch, distances: Tensor) -> Tensor:
    """One a task, of giving each query the label of its nearest support; distances (n_tasks, n_queries, n_support)."""
    predicted = tasks.support_y.gather(1, distances.argmin(2))
    return (predicted == tasks.query_y).double().mean(1)


@pytest.fixture(scope="module")
def one_shot() -> TaskBatch:
    """Five-way one-shot tasks of the test pool as it is by default."""
    source = Glyphs(Glyphs.Config())
    return source.draw("test", source.spec(5, 1, 15), 400, generator())


def test_pixels_read_half_to_two_thirds_of_one_shot_tasks(one_shot: TaskBatch) -> None:
    scores = accuracies(one_shot, torch.cdist(one_shot.query_x.flatten(2), one_shot.support_x.flatten(2)))
    standard_error = float(scores.std()) / math.sqrt(len(scores))
    assert scores.mean() - 3 * standard_error > 0.50
    assert scores.mean() + 3 * standard_error < 0.65


def test_forgiving_a_shift_reads_a_fifth_of_the_queries_more_than_pixels(one_shot: TaskBatch) -> None:
    tasks = TaskBatch(*(tensor[:100] for tensor in one_shot.tensors()))
    support, query = (avg_pool2d(x[:, :, 0], 3, stride=1, padding=1) for x in (tasks.support_x, tasks.query_x))
    shifts = [(down, right) for down in range(-3, 4) for right in range(-3, 4)]
    shifted = (support.roll(shift, dims=(2, 3)).flatten(2) for shift in shifts)
    nearest = torch.stack([torch.cdist(query.flatten(2), moved) for moved in shifted]).amin(0)
    pixels = accuracies(tasks, torch.cdist(tasks.query_x.flatten(2), tasks.support_x.flatten(2)))
    gain = accuracies(tasks, nearest) - pixels  # in the same tasks, so what these are worth cancels
    assert gain.mean() - 3 * gain.std() / math.sqrt(len(gain)) > 0.2


def test_no_two_characters_anywhere_are_near_identical() -> None:
    printed = Glyphs(Glyphs.Config(variation=0.0, examples=2))
    characters = torch.cat([pictures_of(printed, pool)[:, 0] for pool in POOLS])
    assert len(characters) == 1400
    assert correlations(characters, characters).fill_diagonal_(0).max() < 0.92


def test_a_character_in_nearly_the_same_hand_would_count_as_near_identical() -> None:
    printed, written = (pictures_of(sampler(variation=v), "train")[:, 0] for v in (0.0, 0.1))
    assert correlations(printed, written).diagonal().quantile(0.1) > 0.92


def test_hands_differ_within_every_class() -> None:
    pictures = pictures_of(sampler(), "train").flatten(2)  # (n_classes, n_examples, n_pixels)
    distances = torch.cdist(pictures, pictures) + torch.eye(pictures.shape[1]) * 1e9
    assert distances.min() > 1  # no two pictures of a class differ by less than a pixel


def test_without_variation_all_hands_are_alike() -> None:
    pictures = pictures_of(sampler(variation=0.0), "train")
    assert torch.equal(pictures, pictures[:, :1].expand_as(pictures))
    assert pictures.std() > 0.1  # there is something to see


def test_variation_sets_hands_apart() -> None:
    spreads = [pictures_of(sampler(variation=v), "train").var(1).mean() for v in (0.0, 0.5, 1.0, 2.0)]
    assert spreads == sorted(set(spreads))


def test_a_pool_depends_neither_on_the_order_of_asking_nor_on_the_size_of_others() -> None:
    one, other = sampler(), sampler(train_classes=7, validation_classes=9)
    spec = one.spec(5, 1, 3)
    one.draw("train", spec, 2, generator())
    one.draw("validation", spec, 2, generator())
    assert same(one.draw("test", spec, 4, generator()), other.draw("test", spec, 4, generator()))


def test_pools_share_no_picture() -> None:
    source = sampler(variation=0.0)
    pictures = {pool: {p.numpy().tobytes() for p in pictures_of(source, pool)[:, 0]} for pool in POOLS}
    assert all(len(pictures[pool]) == 30 for pool in POOLS)
    assert len(set.union(*pictures.values())) == 90


def test_another_seed_gives_other_characters() -> None:
    one, other = (pictures_of(sampler(seed=seed), "test") for seed in (0, 1))
    assert not torch.equal(one, other)


def test_same_generator_state_same_tasks() -> None:
    source = sampler()
    spec = source.spec(5, 2, 4)
    assert same(source.draw("train", spec, 8, generator(3)), source.draw("train", spec, 8, generator(3)))
    assert not same(source.draw("train", spec, 8, generator(3)), source.draw("train", spec, 8, generator(4)))


def test_tasks_have_the_shapes_of_their_spec_and_ink_between_0_and_1() -> None:
    source = sampler(size=20)
    spec = source.spec(4, 3, 2)
    tasks = source.draw("validation", spec, 6, generator())
    assert spec.x_shape == (1, 20, 20)
    assert tasks.support_x.shape == (6, 12, 1, 20, 20)
    assert tasks.query_x.shape == (6, 8, 1, 20, 20)
    assert tasks.query_x.min() == 0
    assert tasks.query_x.max() == 1
    assert torch.equal(tasks.support_y.sort(1).values, torch.arange(4).repeat_interleave(3).expand(6, 12))


def test_every_picture_holds_a_character_on_white() -> None:
    pictures = torch.cat([pictures_of(sampler(variation=v), "train").flatten(0, 1) for v in (0.0, 1.0, 2.0)])
    ink = pictures.mean((1, 2))
    assert ink.min() > 0.02
    assert ink.max() < 0.5
    assert (pictures.amax((1, 2)) == 1).all()


def test_a_pool_never_asked_for_costs_nothing() -> None:
    source = sampler(train_classes=10**12)  # terabytes of pictures
    spec = source.spec(2, 1, 1)
    source.check("test", spec)
    assert len(source.draw("test", spec, 3, generator())) == 3


def test_examples_are_labelled_by_train_class() -> None:
    source = sampler(train_classes=10, variation=0.0)
    examples = source.examples(100, generator())
    assert source.spec(5, 1, 1).n_train_classes == 10
    assert set(examples.y.tolist()) == set(range(10))
    assert torch.equal(examples.x[:, 0], pictures_of(source, "train")[examples.y, 0])


def test_the_same_hands_write_at_every_size() -> None:
    small, large = (pictures_of(sampler(size=size), "train").flatten(0, 1) for size in (28, 84))
    assert correlations(small, avg_pool2d(large, 3)).diagonal().min() > 0.95


def test_the_number_of_examples_does_not_change_the_characters() -> None:
    few, many = (pictures_of(sampler(examples=n, variation=0.0), "train")[:, 0] for n in (2, 9))
    assert torch.equal(few, many)


def test_check_refuses_what_the_pool_cannot_give_and_accepts_what_it_can() -> None:
    source = sampler(examples=10)
    source.check("test", source.spec(30, 4, 6))
    with pytest.raises(UserError, match="test pool has 30"):
        source.check("test", source.spec(31, 1, 1))
    with pytest.raises(UserError, match="need 11 examples of every class and the smallest class of the test pool"):
        source.check("test", source.spec(5, 4, 7))


@pytest.mark.parametrize(
    ("key", "value", "law"),
    [
        ("size", 7, "8 or more"),
        ("train_classes", 1, "2 or more"),
        ("validation_classes", 0, "2 or more"),
        ("test_classes", -3, "2 or more"),
        ("examples", 1, "2 or more"),
        ("variation", -0.5, "between 0"),
        ("variation", math.nan, "between 0"),
    ],
)
def test_a_setting_without_sense_is_refused_with_key_value_and_law(key: str, value: float, law: str) -> None:
    with pytest.raises(UserError, match=rf"tasks\.{key} is {value}.*{law}"):
        sampler(**{key: value})


def test_a_pool_beyond_memory_is_refused_before_it_is_drawn() -> None:
    source = sampler(train_classes=10**12)
    with pytest.raises(UserError, match=r"tasks\.train_classes is 1000000000000: .* keep a pool below 4,000,000,000"):
        source.check("train", source.spec(5, 1, 1))


def test_the_smallest_settings_give_tasks() -> None:
    source = sampler(size=8, train_classes=2, validation_classes=2, test_classes=2, examples=2)
    spec = source.spec(2, 1, 1)
    for pool in POOLS:
        source.check(pool, spec)
        assert source.draw(pool, spec, 2, generator()).query_x.amax((1, 2, 3, 4)).min() > 0.5


def characters(**given: Tensor) -> Characters:
    """One character: a stroke of length 1 and no others, but for what is given."""
    length = torch.zeros(1, N_STROKES)
    length[:, 0] = 1.0
    none = torch.zeros(1, N_STROKES)
    turns = torch.zeros(1, N_STROKES, glyphs.N_PARTS)
    gap = torch.zeros(1, N_STROKES, 2)
    return Characters(
        **({"length": length, "corner": turns, "bend": turns, "joint": none, "anchor": none, "gap": gap} | given)
    )


def test_a_stroke_that_bends_all_the_way_round_is_a_regular_polygon() -> None:
    bend = torch.full((1, N_STROKES, glyphs.N_PARTS), 2 * math.pi / glyphs.N_PARTS)
    points = glyphs._trace(characters(bend=bend))[0, 0].double()  # (N_POINTS, 2)
    radii = (points - points.mean(0)).norm(dim=1)
    circumradius = 1 / N_POINTS / (2 * math.sin(math.pi / N_POINTS))  # of N_POINTS sides that add up to 1
    torch.testing.assert_close(radii, torch.full_like(radii, circumradius), rtol=1e-4, atol=0)


def test_corners_turn_the_pen_at_once() -> None:
    corner = torch.zeros(1, N_STROKES, glyphs.N_PARTS)
    corner[:, 0, 1:] = math.pi / 2  # a U of three straight sides
    points = glyphs._trace(characters(corner=corner))[0, 0]
    torch.testing.assert_close(points[-1], torch.tensor([0.0, 1 / 3]))
    sides = (points[1:] - points[:-1]).abs()
    assert (sides.amin(1) < 1e-6).all()  # every step goes along an axis


def test_strokes_without_a_gap_touch_those_before_them() -> None:
    drawn = glyphs._characters(200, generator())
    paths = glyphs._trace(drawn)
    touching = (drawn.length > 0) & (drawn.gap == 0).all(2)
    apart = torch.stack(
        [torch.cdist(paths[:, s], paths[:, :s].flatten(1, 2)).amin((1, 2)) for s in range(1, N_STROKES)], 1
    )  # (n, N_STROKES - 1)
    assert touching[:, 1:].sum() > 100
    assert apart[touching[:, 1:]].max() < 1e-3
    assert apart[(drawn.length > 0)[:, 1:] & ~touching[:, 1:]].median() > 0.05


@pytest.mark.parametrize("variation", [0.0, 1.0, 2.0])
def test_characters_fit_the_page(variation: float) -> None:
    paths = glyphs._on_the_page(glyphs._trace(glyphs._characters(300, generator())), variation, generator(1))
    assert paths.abs().max() <= 0.9 + 1e-5
    reach = (paths.amax((1, 2)) - paths.amin((1, 2))) / 2  # (n, 2)
    assert reach.amax(1).min() > 0.5  # each fills half the page or more one way
    assert reach.amin(1).min() > 0.05  # and is no line along an axis


@pytest.mark.parametrize("pen", [0.05, 0.1])
def test_the_profile_of_a_straight_line_is_a_gaussian_cut_off_at_both_ends(pen: float) -> None:
    size, height = 64, 0.23
    paths = torch.full((1, N_STROKES, N_POINTS, 2), height)
    paths[0, 0, :, 0] = torch.linspace(-0.8, 0.8, N_POINTS)  # the other strokes are points, which hold no ink
    paths[0, 1:, :, 0] = -0.5
    picture = glyphs._ink(paths, torch.tensor([pen]), size)[0]  # (size, size)
    distance = (torch.arange(size) + 0.5) * 2 / size - 1 - height
    profile = (((-0.5 * (distance / pen) ** 2).exp() - 0.25) / 0.45).clamp(0, 1)
    middle = picture[:, size // 3 : 2 * size // 3]
    torch.testing.assert_close(middle, profile[:, None].expand_as(middle), rtol=0, atol=1e-3)


def test_a_path_reflected_in_the_diagonal_inks_the_reflected_picture() -> None:
    paths = glyphs._on_the_page(glyphs._trace(glyphs._characters(20, generator())), 1.0, generator(1))
    pens = torch.full((20,), 0.05)
    torch.testing.assert_close(glyphs._ink(paths.flip(3), pens, 28), glyphs._ink(paths, pens, 28).mT)


def test_pictures_are_stored_in_a_byte_a_pixel() -> None:
    pool = sampler()._pool("test")
    assert isinstance(pool, ClassPool)
    assert pool.sources.dtype == torch.uint8
    assert pool.sources.shape == (30 * 20, 1, 28, 28)
