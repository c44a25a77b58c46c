"""Omniglot is read as downloaded, into pools that are disjoint by class, fast and safely the second time."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Barrier
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from metaopt import cli
from metaopt.errors import UserError
from metaopt.task import POOLS, Pool, TaskBatch, TaskSpec
from metaopt_tasks import omniglot
from metaopt_tasks.omniglot import Omniglot

Sets = Mapping[str, Mapping[str, int]]
"""Of each set, how many characters its alphabets have."""

SETS: Sets = {
    "images_background": {"Greek": 3, "Japanese_(katakana)": 4},
    "images_evaluation": {"Angelic": 3, "Old Church Слово": 2},
    "images_background_small1": {"Greek": 3, "Latin": 2},
    "images_background_small2": {"Greek": 3, "Tagalog": 2},
}
N_DRAWINGS = 4
TRAIN = ("images_background",)
VALIDATION = ("images_background_small2", "-images_background")
TEST = ("images_evaluation",)


def drawing(alphabet: str, character: str, drawer: int) -> bytes:
    """A PNG as in Omniglot, 105 x 105 pixels of 1 bit, black on white: strokes that only its name determines."""
    numbers = np.random.default_rng([*f"{alphabet}/{character}".encode(), drawer])
    pixels = np.ones((105, 105), bool)
    for row, column in numbers.integers(5, 80, (4, 2)):
        pixels[row : row + 20, column : column + 3] = False
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def files_of(sets: Sets) -> dict[str, bytes]:
    return {
        f"{name}/{alphabet}/character{number:02}/{number:04}_{drawer:02}.png": drawing(
            alphabet, f"character{number:02}", drawer
        )
        for name, alphabets in sets.items()
        for alphabet, n_characters in alphabets.items()
        for number in range(1, n_characters + 1)
        for drawer in range(1, N_DRAWINGS + 1)
    }


def write_zips(root: Path, sets: Sets = SETS) -> Path:
    root.mkdir(exist_ok=True)
    for name in sets:
        with ZipFile(root / f"{name}.zip", "w", ZIP_DEFLATED) as archive:
            for file, data in files_of({name: sets[name]}).items():
                archive.writestr(file, data)
    return root


def write_folders(root: Path, sets: Sets = SETS) -> Path:
    for file, data in files_of(sets).items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(data)
    return root


def write_split(root: Path, train: str, val: str, test: str) -> str:
    for name, lines in (("train", train), ("val", val), ("test", test)):
        (root / f"{name}.txt").write_text(lines, encoding="utf-8")
    return str(root)


def load(root: Path, **settings: object) -> Omniglot:
    """The sampler of some settings; without any, lists that use all four sets."""
    if not settings.keys() & {"split", *POOLS}:
        settings |= {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return Omniglot(Omniglot.Config(root=str(root), **settings))  # type: ignore[arg-type]


def classes_of(sampler: Omniglot, pool: Pool) -> list[Tensor]:
    """The drawings (n, 1, size, size) uint8 of each class."""
    held = sampler.pools[pool]
    return [held.sources[rows[:n]] for rows, n in zip(held.table, held.sizes.tolist(), strict=True)]


def expected(alphabet: str, number: int, turns: int = 0, size: int = 28) -> Tensor:
    """The drawings (n, 1, size, size) of a character, turned as the published split does: each picture by Pillow."""
    pictures = []
    for drawer in range(1, N_DRAWINGS + 1):
        picture = Image.open(BytesIO(drawing(alphabet, f"character{number:02}", drawer))).convert("L")
        turned = picture.rotate(90 * turns).resize((size, size), Image.Resampling.BILINEAR)
        pictures.append(torch.tensor(255 - np.asarray(turned)))
    return torch.stack(pictures)[:, None]


def same_pools(first: Omniglot, second: Omniglot) -> bool:
    return all(
        torch.equal(first.pools[pool].sources, second.pools[pool].sources)
        and torch.equal(first.pools[pool].table, second.pools[pool].table)
        for pool in POOLS
    )


def cached(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METAOPT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_zips(tmp_path / "data")


# Pictures


def picture(pixels: NDArray[np.bool_], size: int = 28) -> Tensor:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return torch.tensor(omniglot._picture(file.getvalue(), size))


def test_ink_is_one_and_paper_is_zero(root: Path) -> None:
    assert picture(np.zeros((105, 105), bool)).eq(255).all()
    assert picture(np.ones((105, 105), bool)).eq(0).all()
    sampler = load(root)
    x = sampler.draw("train", sampler.spec(3, 1, 1), 4, Generator().manual_seed(0)).support_x
    assert x.dtype == torch.float32
    assert x.min() == 0
    assert 0.5 < x.max() <= 1
    assert 0 < x.mean() < 0.3  # a drawing is mostly paper


def test_shrinking_keeps_the_amount_of_ink() -> None:
    pixels = np.ones((105, 105), bool)
    pixels[20:83, 50] = False  # a stroke one pixel wide, which picking single pixels would keep or lose as a whole
    assert picture(pixels).float().mean() / 255 == pytest.approx(63 / 105**2, rel=0.02)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_and_shrinking_commute_to_one_grey_level(turns: int) -> None:
    pixels = np.random.default_rng(0).random((105, 105)) < 0.8
    shrunk_first = picture(pixels).rot90(turns).int()
    turned_first = picture(np.rot90(pixels, turns)).int()
    assert (shrunk_first - turned_first).abs().max() <= 1
    assert (shrunk_first - picture(pixels).int()).abs().max() > 20  # the picture is not its own turn


@pytest.mark.parametrize("size", [1, 14, 105])
def test_size_sets_the_pictures_height_and_width(root: Path, size: int) -> None:
    sampler = load(root, size=size)
    spec = sampler.spec(2, 1, 3)
    assert spec.x_shape == (1, size, size)
    assert sampler.draw("test", spec, 5, Generator().manual_seed(0)).query_x.shape == (5, 6, 1, size, size)
    assert torch.equal(classes_of(sampler, "train")[0], expected("Greek", 1, size=size))


# Pools


def test_a_split_gives_the_classes_it_names_turned_as_it_says(root: Path) -> None:
    split = write_split(
        root,
        "Greek/character02/rot000\nJapanese_(katakana)/character04/rot090\nGreek/character02/rot270\n",
        "\nAngelic/character03/rot180\r\n\n",
        "Old Church Слово/character01/rot000",
    )
    sampler = load(root, split=split)
    wanted: dict[Pool, list[Tensor]] = {
        "train": [expected("Greek", 2), expected("Japanese_(katakana)", 4, 1), expected("Greek", 2, 3)],
        "validation": [expected("Angelic", 3, 2)],
        "test": [expected("Old Church Слово", 1)],
    }
    for pool, pictures in wanted.items():
        for got, want in zip(classes_of(sampler, pool), pictures, strict=True):
            assert (got.int() - want.int()).abs().max() <= 1
    assert sampler.spec(2, 1, 1).n_train_classes == 3


def test_a_split_is_found_relative_to_the_root_or_by_its_own_path(root: Path) -> None:
    (root / "splits").mkdir()
    lines = "Greek/character01/rot000", "Greek/character02/rot000", "Greek/character03/rot000"
    absolute = write_split(root / "splits", *lines)
    assert same_pools(load(root, split="splits"), load(root, split=absolute))


def test_lists_give_whole_sets_and_single_alphabets(root: Path) -> None:
    sampler = load(root, train=TRAIN, validation=("images_background_small2/Tagalog",), test=("images_evaluation",))
    greek, katakana = (
        [expected("Greek", i) for i in (1, 2, 3)],
        [expected("Japanese_(katakana)", i) for i in (1, 2, 3, 4)],
    )
    assert torch.equal(torch.stack(classes_of(sampler, "train")), torch.stack(greek + katakana))
    assert torch.equal(
        torch.stack(classes_of(sampler, "validation")), torch.stack([expected("Tagalog", i) for i in (1, 2)])
    )
    assert [len(sampler.pools[pool]) for pool in POOLS] == [7, 2, 5]
    assert sampler.spec(5, 1, 1).n_train_classes == 7


@pytest.mark.parametrize(
    "entries",
    [
        ("images_background_small2", "-images_background_small2/Greek"),
        ("-images_background_small2/Greek", "images_background_small2"),  # in any order
        ("images_background_small2", "-images_background_small1"),  # a character of two sets is one class
    ],
)
def test_an_entry_with_a_minus_takes_characters_away(root: Path, entries: tuple[str, ...]) -> None:
    sampler = load(root, validation=entries)
    assert torch.equal(
        torch.stack(classes_of(sampler, "validation")), torch.stack([expected("Tagalog", i) for i in (1, 2)])
    )


def test_a_character_that_stands_in_two_sets_of_a_list_is_one_class(root: Path) -> None:
    sampler = load(root, train=("images_background_small1", "images_background_small2"))
    assert len(sampler.pools["train"]) == 3 + 2 + 2
    assert len({pictures.numpy().tobytes() for pictures in classes_of(sampler, "train")}) == 7


def test_rotations_make_four_train_classes_of_each(root: Path) -> None:
    upright, rotated = load(root), load(root, rotations=True)
    classes = classes_of(rotated, "train")
    assert len(classes) == 4 * len(upright.pools["train"])
    for number, pictures in enumerate(classes_of(upright, "train")):
        for turns in range(4):
            turned = np.rot90(pictures.numpy(), turns, (2, 3))
            assert np.array_equal(classes[4 * number + turns].numpy(), turned)


def test_rotations_leave_validation_and_test_classes_upright(root: Path) -> None:
    upright, rotated = load(root), load(root, rotations=True)
    for pool in ("validation", "test"):
        assert len(rotated.pools[pool]) == len(upright.pools[pool])
        assert torch.equal(rotated.pools[pool].sources, upright.pools[pool].sources)


def test_zip_files_and_folders_give_identical_pools(root: Path, tmp_path: Path) -> None:
    assert same_pools(load(root), load(write_folders(tmp_path / "unpacked")))


def test_a_zip_file_goes_before_a_folder_that_may_be_half_unpacked(root: Path) -> None:
    write_folders(root, {"images_background": {"Greek": 1}})
    assert len(load(root).pools["train"]) == 7


def test_litter_beside_the_drawings_is_no_class(root: Path) -> None:
    before = load(root)
    with ZipFile(root / "images_background.zip", "a") as archive:
        archive.writestr("__MACOSX/images_background/Greek/character01/._0001_01.png", b"\0\5\26\7")
        archive.writestr("images_background/Greek/.DS_Store", b"")
        archive.writestr("images_background/Greek/character09/", b"")
    assert same_pools(before, load(root))


def test_nothing_is_unpacked_and_no_member_name_becomes_a_path(root: Path, tmp_path: Path, cache: Path) -> None:
    with ZipFile(root / "images_background.zip", "a") as archive:
        archive.writestr("../../outside/Greek/character01/0001_99.png", drawing("Greek", "character01", 99))
    before = set(tmp_path.rglob("*"))
    assert len(classes_of(load(root), "train")[0]) == N_DRAWINGS + 1
    written = set(tmp_path.rglob("*")) - before
    assert {path.suffix for path in written - {cache}} == {".npy"}
    assert {path.parent for path in written - {cache}} == {cache}


# Tasks


def test_tasks_hold_drawings_of_their_pool_under_labels_that_match(root: Path) -> None:
    sampler = load(root, rotations=True)
    n_way = 2
    for pool in POOLS:
        owner = {
            picture.numpy().tobytes(): number
            for number, pictures in enumerate(classes_of(sampler, pool))
            for picture in pictures
        }
        assert len(owner) == N_DRAWINGS * len(sampler.pools[pool])  # every drawing tells its class
        batch = sampler.draw(pool, sampler.spec(n_way, 1, 2), 20, Generator().manual_seed(0))
        for support_x, support_y, query_x, query_y in zip(*batch.tensors(), strict=True):
            keys = [x.mul(255).round().byte().numpy().tobytes() for x in torch.cat([support_x, query_x])]
            assert len(set(keys)) == n_way * 3
            pairs = {
                (owner[key], label) for key, label in zip(keys, torch.cat([support_y, query_y]).tolist(), strict=True)
            }
            assert len(pairs) == len({number for number, _ in pairs}) == len({label for _, label in pairs}) == n_way


def test_pools_share_no_drawing(root: Path) -> None:
    sampler = load(root, rotations=True)
    drawn = [{x.numpy().tobytes() for x in sampler.pools[pool].sources} for pool in POOLS]
    assert all(drawn)
    assert len(set.union(*drawn)) == sum(map(len, drawn))


def test_labelled_examples_come_from_the_train_classes(root: Path) -> None:
    sampler = load(root)
    examples = sampler.examples(200, Generator().manual_seed(0))
    classes = classes_of(sampler, "train")
    assert set(examples.y.tolist()) == set(range(7))
    for x, y in zip(examples.x, examples.y.tolist(), strict=True):
        assert (classes[y] == x.mul(255).round().byte()).flatten(1).all(1).any()


def test_tasks_too_large_for_a_pool_are_refused_with_what_it_has(root: Path) -> None:
    sampler = load(root)
    sampler.check("test", sampler.spec(5, 1, 3))
    with pytest.raises(UserError, match="the test pool has 5"):
        sampler.check("test", sampler.spec(6, 1, 3))
    with pytest.raises(UserError, match="smallest class of the test pool has 4"):
        sampler.check("test", sampler.spec(5, 1, 4))


def test_an_empty_pool_is_refused_only_when_it_is_used(root: Path) -> None:
    sampler = load(root, train=TRAIN, test=TEST)
    sampler.check("train", sampler.spec(5, 1, 1))
    with pytest.raises(UserError, match=r"the validation pool is empty; .* under tasks\.validation"):
        sampler.check("validation", sampler.spec(5, 1, 1))


# Refusals


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": ()}, r"needs its pools: .*tasks\.split.*splits/vinyals.*tasks\.train.*tasks\.validation"),
        ({"split": "s", "test": TEST}, r"tasks\.test is set beside tasks\.split \(s\).*leave out one"),
        ({"split": "s", "rotations": True}, r"tasks\.rotations is set beside tasks\.split"),
        ({"size": 0}, "tasks.size is 0 pixels; set it to 1 to 105"),
        ({"size": 106}, "tasks.size is 106 pixels; set it to 1 to 105"),
        ({"train": ("images_backgroud",)}, "no set named 'images_backgroud'; did you mean 'images_background'"),
        ({"train": ("..",)}, r"no set named '\.\.'"),
        ({"train": ("",)}, "no set named ''"),
        (
            {"train": ("images_background/Greec",)},
            r"tasks\.train: no alphabet of images_background named 'Greec'; did you mean 'Greek'",
        ),
        ({"test": ("images_evaluation", "-images_evaluation/Angel")}, r"tasks\.test: .*did you mean 'Angelic'"),
        ({"test": ("images_evaluation", "-images_background")}, "-images_background takes away nothing"),
        ({"test": ({"images_evaluation": None},)}, r"tasks\.test: \{'images_evaluation': None\} is not a text"),
        ({"split": "nowhere"}, r"tasks\.split: .*nowhere.train\.txt cannot be read .*train\.txt, val\.txt, test\.txt"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_can(root: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(root, **settings)


GOOD = "Greek/character01/rot000"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Greec/character02/rot000", "no alphabet named 'Greec'; did you mean 'Greek'"),
        ("Greek/charakter02/rot000", "no character of Greek named 'charakter02'; did you mean 'character02'"),
        ("Greek/character02/rot45", "no rotation named 'rot45'"),
        ("Greek/character02", r"'Greek/character02' is not of the form <alphabet>/<character>/rot<degrees>"),
        ("images_background/Greek/character02/rot000", "is not of the form"),
        (GOOD, f"{GOOD} stands in line 1 too"),
        ("Tagalog/character01/rot000", "no alphabet named 'Tagalog'"),  # it stands in a small set only
    ],
)
def test_a_line_of_a_split_that_cannot_be_is_refused_by_its_number(root: Path, line: str, says: str) -> None:
    split = write_split(root, f"{GOOD}\n\n{line}\n", "Greek/character03/rot000", "Angelic/character01/rot000")
    with pytest.raises(UserError, match=rf"train\.txt:3: .*{re.escape(says) if '<' in says else says}"):
        load(root, split=split)


def test_a_split_file_without_classes_is_refused(root: Path) -> None:
    split = write_split(root, GOOD, "\n", "Angelic/character01/rot000")
    with pytest.raises(UserError, match=r"val\.txt names no class"):
        load(root, split=split)


def test_a_split_file_that_is_no_text_is_refused(root: Path) -> None:
    split = write_split(root, GOOD, GOOD, GOOD)
    (root / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"val\.txt cannot be read"):
        load(root, split=split)


@pytest.mark.parametrize(
    "settings",
    [
        {"train": ("images_background",), "validation": ("images_background/Greek",)},
        {"train": ("images_background_small1",), "validation": ("images_background_small2",)},
        {"train": ("images_background_small1",), "validation": (), "test": ("images_background_small2",)},
        {"train": (), "validation": ("images_background_small1/Greek",), "test": ("images_background",)},
    ],
)
def test_pools_are_disjoint_by_class_whichever_set_holds_it(root: Path, settings: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(UserError, match=r"Greek/character01 is in the (train|validation) pool and in the .* pool"):
        load(root, **settings)


def test_a_character_turned_may_not_stand_in_another_pool(root: Path) -> None:
    split = write_split(root, GOOD, "Angelic/character01/rot000", "Greek/character01/rot090")
    with pytest.raises(UserError, match="Greek/character01 is in the train pool and in the test pool"):
        load(root, split=split)


@pytest.mark.parametrize("given", ["", "nowhere"])
def test_data_that_are_absent_are_refused_with_where_to_get_them(tmp_path: Path, given: str) -> None:
    config = Omniglot.Config(root=given and str(tmp_path / given), train=TRAIN)
    with pytest.raises(UserError, match=r"no Omniglot data: .*github\.com.*--set tasks\.root=DIR.*METAOPT_DATA"):
        Omniglot(config)


def test_metaopt_data_holds_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_zips(tmp_path / "omniglot")
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    assert same_pools(Omniglot(Omniglot.Config(train=TRAIN)), load(root, train=TRAIN))
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"there is no folder .*elsewhere.omniglot; download"):
        Omniglot(Omniglot.Config(train=TRAIN))


def test_a_zip_file_cut_off_anywhere_is_refused_by_its_name(root: Path) -> None:
    path = root / "images_background.zip"
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"images_background\.zip cannot be read .*download it again from https://"):
            load(root)


def test_a_bit_flipped_in_a_zip_file_changes_no_picture_unseen(root: Path, tmp_path: Path) -> None:
    path = root / "images_background.zip"
    whole, good = path.read_bytes(), load(root)
    with ZipFile(path) as archive:
        directory = archive.start_dir  # behind it stand names and dates, in front of it the drawings
    refused = 0
    for place in np.linspace(0, directory - 1, 60).astype(int):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        for file in cached(tmp_path / "cache"):
            file.unlink()
        try:
            assert same_pools(load(root), good)
        except UserError:
            refused += 1
    assert refused > 30


def test_a_damaged_drawing_in_a_zip_file_is_refused_by_its_name(root: Path) -> None:
    path = root / "images_background.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\0\0\0\0" + whole[104:])  # in the first drawing, behind its name
    with pytest.raises(UserError, match=r"images_background\.zip: .*0001_01\.png is damaged .*download .* https://"):
        load(root)


def test_a_drawing_packed_to_burst_is_refused_unread(root: Path) -> None:
    with ZipFile(root / "images_background.zip", "a", ZIP_DEFLATED) as archive:
        archive.writestr("images_background/Greek/character01/0001_99.png", bytes(omniglot.MAX_BYTES + 1))
    with pytest.raises(UserError, match=r"0001_99\.png is damaged \(it has 1,048,577 bytes, more than 1,048,576\)"):
        load(root)


def test_a_damaged_drawing_in_a_folder_is_refused_by_its_name(tmp_path: Path, cache: Path) -> None:
    root = write_folders(tmp_path / "data")
    path = root / "images_evaluation/Angelic/character02/0002_03.png"
    whole, good = path.read_bytes(), expected("Angelic", 2)[2, 0].numpy()
    damaged = [b"", whole[:20], whole[:-20], b"GIF89a" + whole[6:]]
    damaged += [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(len(whole))]
    refused = 0
    for data in damaged:
        try:
            assert np.array_equal(omniglot._picture(data, 28), good)  # whatever is accepted shows what was drawn
        except (OSError, SyntaxError, ValueError):
            refused += 1
    assert refused > 0.9 * len(damaged)
    for data in damaged[:5]:
        path.write_bytes(data)
        with pytest.raises(
            UserError, match=r"images_evaluation: Angelic/character02/0002_03\.png is damaged .*download"
        ):
            load(root)
    assert not any("evaluation" in file.name for file in cached(cache))


def test_a_set_without_drawings_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "images_background").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images_background holds no <alphabet>/<character>/<drawing>\.png"):
        load(tmp_path / "empty", train=TRAIN)
    ZipFile(root / "images_background.zip", "w").close()
    with pytest.raises(UserError, match=r"images_background\.zip holds no <alphabet>"):
        load(root)


# The cache


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sets decoded so far."""
    names: list[str] = []
    decode = omniglot._decode

    def noted(source: omniglot._Set, size: int) -> Iterator[NDArray[np.uint8]]:
        names.append(source.name)
        return decode(source, size)

    monkeypatch.setattr(omniglot, "_decode", noted)
    return names


@pytest.mark.parametrize("write", [write_zips, write_folders])
def test_each_set_is_decoded_once_a_size_and_then_read_from_the_cache(
    tmp_path: Path, decodes: list[str], cache: Path, write: Callable[[Path], Path]
) -> None:
    root = write(tmp_path / "data")
    first = load(root)
    assert sorted(decodes) == ["images_background", "images_background_small2", "images_evaluation"]
    assert len(cached(cache)) == 3
    assert same_pools(load(root), first)
    assert len(decodes) == 3
    load(root, size=14)
    assert len(decodes) == 6
    assert same_pools(load(root), first)
    assert len(decodes) == 6


def test_only_the_sets_that_are_named_are_decoded(root: Path, decodes: list[str]) -> None:
    load(root, train=("images_background_small2/Tagalog", "images_background_small2/Greek"))
    assert decodes == ["images_background_small2"]


@pytest.mark.parametrize("write", [write_zips, write_folders])
def test_a_cache_of_other_drawings_is_not_used(
    tmp_path: Path, decodes: list[str], write: Callable[[Path, Sets], Path]
) -> None:
    more = {"images_background": {"Greek": 4}}
    load(write(tmp_path / "data", {"images_background": {"Greek": 3}}), train=TRAIN)
    sampler = load(write(tmp_path / "data", more), train=TRAIN)
    assert len(decodes) == 2
    assert same_pools(sampler, load(write(tmp_path / "elsewhere", more), train=TRAIN))
    assert len(decodes) == 3  # another place


@pytest.mark.parametrize("zipped", [True, False])
def test_a_drawing_replaced_by_one_as_long_is_seen(tmp_path: Path, decodes: list[str], zipped: bool) -> None:
    name = "Greek/character01/0001_01.png"
    drawings = [drawing("Greek", "character01", drawer) for drawer in range(100)]
    first = drawings[0]
    second = next(data for data in drawings if len(data) == len(first) and data != first)
    for data in (first, second):
        if zipped:
            with ZipFile(tmp_path / "images_background.zip", "w") as archive:
                archive.writestr(f"images_background/{name}", data)
        else:
            path = tmp_path / "images_background" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (pictures,) = classes_of(load(tmp_path, train=TRAIN), "train")
        assert np.array_equal(pictures[0, 0].numpy(), omniglot._picture(data, 28))
    assert len(decodes) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: whole[:7],
        lambda whole: whole[:100],
        lambda whole: whole[:-1],
        lambda whole: b"\0" * len(whole),
        lambda whole: whole.replace(b"|u1", b"|i1"),
        lambda whole: whole.replace(b"28, 28)", b"28, 14)"),
    ],
    ids=["empty", "7 bytes", "100 bytes", "last byte lost", "zeros", "another type", "another shape"],
)
def test_a_torn_cache_is_built_anew(
    root: Path, cache: Path, decodes: list[str], spoil: Callable[[bytes], bytes]
) -> None:
    good = load(root, train=TRAIN)
    (file,) = cached(cache)
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert file.read_bytes() != whole
    assert same_pools(load(root, train=TRAIN), good)
    assert len(decodes) == 2
    assert file.read_bytes() == whole


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("no space left on device")])
def test_a_cache_interrupted_while_it_is_written_leaves_nothing(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException] | BaseException
) -> None:
    def interrupted(_: int) -> None:
        assert len(cached(cache)) == 1  # the part written so far
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        if failure is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                load(root, train=TRAIN)
        else:
            load(root, train=TRAIN)
    assert cached(cache) == []
    load(root, train=TRAIN)
    assert len(cached(cache)) == 1


def test_a_cache_that_cannot_be_written_only_costs_time(
    root: Path, tmp_path: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = load(root)
    (tmp_path / "file").touch()
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "file" / "cache"))  # no folder can stand in a file
    assert same_pools(load(root), good)
    assert same_pools(load(root), good)
    assert len(decodes) == 9


def test_samplers_that_build_the_cache_at_once_do_no_harm(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, decode = Barrier(4, timeout=10), omniglot._decode

    def decode_together(source: omniglot._Set, size: int) -> Iterator[NDArray[np.uint8]]:
        together.wait()
        return decode(source, size)

    monkeypatch.setattr(omniglot, "_decode", decode_together)
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(lambda _: load(root, train=TRAIN), range(4))
    assert all(same_pools(first, other) for other in others)
    assert [file.suffix for file in cached(cache)] == [".npy"]
    assert same_pools(load(root, train=TRAIN), first)  # from the cache: decoding would wait for three others


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"METAOPT_CACHE": "a", "XDG_CACHE_HOME": "b", "HOME": "c"}, "a"),
        ({"XDG_CACHE_HOME": "b", "HOME": "c"}, "b/metaopt"),
        ({"HOME": "c"}, "c/.cache/metaopt"),
    ],
)
def test_the_cache_stands_where_the_environment_says(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("METAOPT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, place in variables.items():
        monkeypatch.setenv(name, str(tmp_path / "env" / place))
    load(root, train=TRAIN)
    assert [file.parent for file in (tmp_path / "env").rglob("*.npy")] == [tmp_path / "env" / folder]


# The real data


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cache for all tests of the real data, which fill it in three seconds."""
    return str(tmp_path_factory.mktemp("warm"))


@pytest.fixture
def real(drawings: Path, warm: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAOPT_CACHE", warm)
    return drawings


def test_folds_keep_an_alphabet_whole_however_it_is_turned_and_score_it_upright(root: Path) -> None:
    sampler = load(root, train=("images_background", "images_background_small1"), test=TEST, rotations=True)
    every = {("Greek", n) for n in (1, 2, 3)} | {("Japanese_(katakana)", n) for n in (1, 2, 3, 4)}
    every |= {("Latin", n) for n in (1, 2)}
    scored = []
    for fold in sampler.folds(3):
        assert isinstance(fold, Omniglot)
        kept = [(one.alphabet, int(one.character[-2:])) for one in fold.listed["validation"]]
        trained = [(one.alphabet, int(one.character[-2:]), one.turns) for one in fold.listed["train"]]
        assert {one.turns for one in fold.listed["validation"]} == {0}
        assert len({alphabet for alphabet, _ in kept}) == 1
        assert sorted(trained) == sorted((*one, turns) for one in every - set(kept) for turns in range(4))
        assert len(fold.pools["validation"]) == len(kept)
        scored += kept
    assert sorted(scored) == sorted(every)
    whole = sampler.whole()
    assert isinstance(whole, Omniglot)
    assert len(whole.pools["train"]) == 4 * len(every)


def test_a_preview_of_folds_needs_no_validation_pool(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"sampler": "omniglot", "root": str(root), "train": ["images_background"], "test": list(TEST),
             "n_way": 2, "n_shot": 1, "n_query": 1}  # fmt: skip
    study = {"name": "s", "tasks": tasks, "learners": ["protonet"], "evaluation": {"folds": 2}}
    (root / "s.yaml").write_text(yaml.safe_dump(study))
    command = ["tasks", "preview", str(root / "s.yaml"), "--output", str(root / "p.png")]
    assert cli.main(command) == 0
    assert cli.main([*command, "--set", "evaluation.folds=0"]) == 1
    assert "the validation pool is empty" in capsys.readouterr().out


def test_omniglot_has_its_published_counts(real: Path) -> None:
    alphabets = {
        name: omniglot._find_set(real, f"images_{name}").alphabets
        for name in ("background", "evaluation", "background_small1", "background_small2")
    }
    assert {name: len(found) for name, found in alphabets.items()} == {
        "background": 30,
        "evaluation": 20,
        "background_small1": 5,
        "background_small2": 5,
    }
    assert {name: sum(map(len, found.values())) for name, found in alphabets.items()} == {
        "background": 964,
        "evaluation": 659,
        "background_small1": 136,
        "background_small2": 156,
    }
    assert alphabets["background"].keys().isdisjoint(alphabets["evaluation"])
    assert alphabets["background_small1"].keys() & alphabets["background_small2"].keys() == {"Greek", "Latin"}
    assert len(alphabets["background_small1"]["Greek"]) + len(alphabets["background_small1"]["Latin"]) == 50
    rows = [rows for found in alphabets.values() for characters in found.values() for rows in characters.values()]
    assert {row.stop - row.start for row in rows} == {20}  # drawers


def test_the_vinyals_split_loads_as_it_was_published(real: Path) -> None:
    sampler = load(real, split="splits/vinyals")
    assert [len(sampler.pools[pool]) for pool in POOLS] == [4 * 1028, 4 * 172, 4 * 423]
    assert all((sampler.pools[pool].sizes == 20).all() for pool in POOLS)
    for pool in POOLS:  # the split lists the four turns of a character one after another
        upright, *turned = (classes_of(sampler, pool)[number] for number in range(4))
        for turns, pictures in enumerate(turned, start=1):
            assert torch.equal(pictures, upright.rot90(turns, (2, 3)))


def test_the_minimal_sets_overlap_as_published(real: Path) -> None:
    small = "images_background_small1", "images_background_small2"
    both = load(real, train=small, test=("images_evaluation",))
    assert len(both.pools["train"]) == 136 + 156 - 50
    whole = load(real, train=("images_background",))
    assert {x.numpy().tobytes() for x in both.pools["train"].sources} <= {
        x.numpy().tobytes() for x in whole.pools["train"].sources
    }
    with pytest.raises(UserError, match=r"Greek/character01 is in the train pool and in the validation pool"):
        load(real, train=small[:1], validation=small[1:])
    apart = load(real, train=small[:1], validation=("images_background_small2/Tagalog",))
    assert [len(apart.pools[pool]) for pool in POOLS] == [136, 17, 0]


def test_unpacked_omniglot_gives_the_same_pools_as_the_zip_files(real: Path, tmp_path: Path) -> None:
    name = "images_background_small1"
    with ZipFile(real / f"{name}.zip") as archive:
        archive.extractall(tmp_path)
    assert same_pools(load(real, train=(name,)), load(tmp_path, train=(name,)))


def test_drawings_of_one_character_are_alike(real: Path) -> None:
    sampler = load(real, train=("images_background_small1",))
    batch = sampler.draw("train", sampler.spec(5, 1, 5), 400, Generator().manual_seed(0))
    support_x, support_y, query_x, query_y = (t.flatten(2) if t.ndim > 2 else t for t in batch.tensors())
    nearest = torch.cdist(query_x, support_x).argmin(2)  # (n_tasks, n_queries)
    correct = (support_y.gather(1, nearest) == query_y).float().mean(1)  # (n_tasks,)
    standard_error = correct.std() / 400**0.5
    assert correct.mean() > 0.2 + 10 * standard_error  # chance is one in five


# The challenge

RUN_SETS: Sets = {"images_background": {"Greek": 3, "Japanese_(katakana)": 4}, "images_evaluation": {"Angelic": 20}}
ORDER = [7 * n % 20 for n in range(20)]  # of the characters that are asked for


def write_runs(path: Path) -> Path:
    """Write the runs as all_runs.zip holds them: in each, characters 1 to 20 of one drawer, asked of the next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for run in range(1, 21):
            pairs = [f"run{run:02}/test/item{n + 1:02}.png run{run:02}/training/class{c + 1:02}.png" for n, c in
                     enumerate(ORDER)]  # fmt: skip
            archive.writestr(f"run{run:02}/class_labels.txt", "\n".join(pairs) + "\n")
            for n, c in enumerate(ORDER):
                name = f"character{c + 1:02}"
                archive.writestr(f"run{run:02}/test/item{n + 1:02}.png", drawing("Angelic", name, run + 1))
                archive.writestr(f"run{run:02}/training/class{c + 1:02}.png", drawing("Angelic", name, run))
    return path


def challenge(root: Path, size: int = 105, **settings: object) -> tuple[TaskSpec, TaskBatch]:
    config = Omniglot.Config(**{"root": str(root), **settings})  # type: ignore[arg-type]
    return Omniglot.benchmark("omniglot-challenge", config, (1, size, size))


def test_the_challenge_pairs_what_is_asked_with_what_is_shown_as_its_files_say(tmp_path: Path) -> None:
    write_runs(tmp_path / "one-shot-classification" / "all_runs.zip")
    spec, batch = challenge(tmp_path)
    assert (spec.n_way, spec.n_shot, spec.n_query, spec.x_shape) == (20, 1, 1, (1, 105, 105))
    assert [tuple(tensor.shape) for tensor in batch.tensors()] == [
        (20, 20, 1, 105, 105), (20, 20), (20, 20, 1, 105, 105), (20, 20),
    ]  # fmt: skip
    assert batch.support_y.tolist() == [list(range(20))] * 20
    assert batch.query_y.tolist() == [ORDER] * 20
    with Image.open(BytesIO(drawing("Angelic", f"character{ORDER[2] + 1:02}", 5))) as asked:
        ink = 1 - np.asarray(asked).astype(np.float32)
    np.testing.assert_array_equal(batch.query_x[3, 2, 0].numpy(), ink)


def test_the_challenge_is_found_zipped_or_not_beside_the_sets_or_below(tmp_path: Path) -> None:
    archive = write_runs(tmp_path / "a" / "all_runs.zip")
    _, first = challenge(tmp_path / "a", 16)
    for place in ("all_runs", "one-shot-classification/all_runs", "one-shot-classification"):
        root = tmp_path / place.replace("/", "-")
        with ZipFile(archive) as runs:
            runs.extractall(root / place)
        assert all(torch.equal(a, b) for a, b in zip(first.tensors(), challenge(root, 16)[1].tensors(), strict=True))
    with pytest.raises(UserError, match=r"^there is no all_runs\.zip in .*; download it from https://"):
        challenge(tmp_path)


@pytest.mark.parametrize("x_shape", [(2048,), (3, 84, 84), (1, 28, 32), (1, 128, 128)])
def test_the_challenge_is_refused_to_models_of_other_examples(tmp_path: Path, x_shape: tuple[int, ...]) -> None:
    config = Omniglot.Config(root=str(tmp_path))
    with pytest.raises(UserError, match=r"105 pixels at most and the model was trained on examples \("):
        Omniglot.benchmark("omniglot-challenge", config, x_shape)


def test_the_challenge_is_refused_to_models_that_saw_its_characters(tmp_path: Path, cache: Path) -> None:
    root = write_zips(tmp_path, RUN_SETS)
    write_runs(root / "all_runs.zip")
    lists = {"train": ("images_background/Greek",), "validation": ("images_background/Japanese_(katakana)",)}
    assert challenge(root, 16, **lists)
    said = r"pool holds Angelic/character01 of images_evaluation, from whose alphabets omniglot-challenge asks; train"
    with pytest.raises(UserError, match="the model's train " + said):
        challenge(root, 16, train=("images_evaluation",))
    with pytest.raises(UserError, match="the model's validation " + said):
        challenge(root, 16, train=("images_background",), validation=("images_evaluation",))


def test_damaged_runs_are_refused_by_the_files_name(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "all_runs.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"all_runs\.zip is damaged \(.*\); download it again"):
        challenge(tmp_path)
    with ZipFile(path, "w") as archive:
        archive.writestr("run01/class_labels.txt", "run01/test/item01.png run01/training/class01.png\n")
    with pytest.raises(UserError, match=r"run01/class_labels\.txt does not pair 20 drawings with 20"):
        challenge(tmp_path)
