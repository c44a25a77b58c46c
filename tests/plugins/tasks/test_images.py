"""A folder or zip file of pictures becomes pools that do not leak; what is wrong is named and nothing written."""

import csv
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Generator, Tensor

import metaopt.cache
from metaopt.errors import UserError
from metaopt.task import POOLS
from metaopt_tasks import images
from metaopt_tasks.images import Images

N_EXAMPLES = 4


def pixels_of(name: str, size: tuple[int, int] = (20, 30), channels: int = 3) -> NDArray[np.uint8]:
    """A smooth picture (height, width, channels) that only its name determines."""
    draw = np.random.default_rng(list(name.encode("utf-8", "backslashreplace")))
    coarse = draw.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    return np.kron(coarse, np.ones((size[0] // 4, size[1] // 4, 1), np.uint8))


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def picture(name: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels_of(name)), **options)


def grey_picture(name: str) -> bytes:
    return encoded(Image.fromarray(pixels_of(name)[:, :, 0]))


def files_of(classes: list[str], n: int = N_EXAMPLES) -> dict[str, bytes]:
    return {f"{name}/{number}.png": picture(f"{name}/{number}") for name in classes for number in range(n)}


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def load(root: Path, **config: Any) -> Images:
    return Images(Images.Config(root=str(root), **{"split": "2/2/2", **config}))


def names(sampler: Images) -> dict[str, list[str]]:
    return {pool: [c.name for c in sampler.classes[pool]] for pool in POOLS}


def pictures(sampler: Images, name: str) -> Tensor:
    """The pictures (n, channels, size, size) of a class."""
    (found,) = (
        sampler.pools[pool].sources[torch.from_numpy(c.rows)]
        for pool in POOLS
        for c in sampler.classes[pool]
        if c.name == name
    )
    return found


def same(first: Images, second: Images) -> bool:
    every = [name for members in names(first).values() for name in members]
    return names(first) == names(second) and all(
        torch.equal(pictures(first, name), pictures(second, name)) for name in every
    )


CLASSES = ["ant", "bee", "cat", "dog", "emu", "fox"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METAOPT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "data", files_of(CLASSES))


def cached(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


# Folders, zip files, tables


def test_a_folder_a_class_gives_pools_that_are_disjoint_by_class(root: Path) -> None:
    sampler = load(root)
    assert sorted(name for members in names(sampler).values() for name in members) == CLASSES
    assert [len(members) for members in names(sampler).values()] == [2, 2, 2]
    for name in CLASSES:
        want = [
            np.asarray(Image.fromarray(pixels_of(f"{name}/{n}")).resize((84, 84), 2, reducing_gap=3)) for n in range(4)
        ]
        assert torch.equal(pictures(sampler, name), torch.tensor(np.stack(want)).permute(0, 3, 1, 2))


def test_a_zip_file_gives_what_its_folder_gives(root: Path, tmp_path: Path) -> None:
    assert same(load(root), load(write_zip(tmp_path / "data.zip", files_of(CLASSES))))


def test_a_folder_around_all_classes_and_litter_change_nothing(root: Path, tmp_path: Path) -> None:
    files = {f"my data/v2/{name}": content for name, content in files_of(CLASSES).items()}
    litter = {
        "__MACOSX/my data/._ant.png": b"\0\5\26\7",
        "my data/v2/ant/.DS_Store": b"",
        "my data/v2/ant/._0.png": b"\0\5",
        "my data/v2/README.txt": b"cats and dogs",
        "my data/v2/ant/Thumbs.db": b"?",
    }
    assert same(load(root), load(write(tmp_path / "nested", files | litter)))
    assert same(load(root), load(write_zip(tmp_path / "nested.zip", files | litter)))


def test_folders_above_classes_are_groups_of_any_depth(tmp_path: Path) -> None:
    classes = [f"{group}/{name}" for group in ("land/wild", "land/farm", "sea", "air") for name in ("a", "b")]
    root = write(tmp_path / "data", files_of(classes))
    sampler = load(root, split="2/1/1", split_by="group")
    groups = [{c.group for c in sampler.classes[pool]} for pool in POOLS]
    assert [len(group) for group in groups] == [2, 1, 1]
    assert set.union(*groups) == {"land/wild", "land/farm", "sea", "air"}
    assert (
        load(root, split="", train=("land/wild", "sea"), validation=("air/a",), test=("air/b",))
        .spec(2, 1, 1)
        .n_train_classes
        == 4
    )


def test_folders_train_val_and_test_are_the_pools(tmp_path: Path) -> None:
    places = dict(zip(CLASSES, ("train", "train", "val", "val", "test", "test"), strict=True))
    files = {f"{places[name.partition('/')[0]]}/{name}": content for name, content in files_of(CLASSES).items()}
    for root in (write(tmp_path / "data", files), write_zip(tmp_path / "data.zip", files)):
        assert names(load(root, split="")) == {"train": CLASSES[:2], "validation": CLASSES[2:4], "test": CLASSES[4:]}


def test_a_class_in_train_and_test_is_refused_unless_classes_are_divided_anew(tmp_path: Path, root: Path) -> None:
    files = {
        f"{'train' if number < 3 else 'test'}/{name}/{number}.png": picture(f"{name}/{number}")
        for name in CLASSES
        for number in range(4)
    }
    split = write(tmp_path / "split", files)
    with pytest.raises(UserError, match=r"'ant' stands in the pools 'test' and 'train'.*set tasks\.split to 60/20/20"):
        load(split, split="")
    merged = load(split)
    assert names(merged) == names(load(root))
    assert all(len(pictures(merged, name)) == 4 for name in CLASSES)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    sampler = load(write(tmp_path / "data", files_of(["car", "bus", "train", "bike", "tram", "boat"])), split="")
    assert "train" in [name for members in names(sampler).values() for name in members]


def rows_to_csv(path: Path, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def flat(root: Path) -> list[list[str]]:
    """The pictures in one folder `images` of `root`, as mini-ImageNet has them; returns rows file, label."""
    files = files_of(CLASSES)
    write(root, {f"images/{name.replace('/', '_')}": content for name, content in files.items()})
    return [[name.replace("/", "_"), name.partition("/")[0]] for name in files]


def test_the_tables_of_mini_imagenet_are_read_as_published(tmp_path: Path, root: Path) -> None:
    rows = flat(tmp_path / "mini")
    for pool, classes in (("train", CLASSES[:2]), ("val", CLASSES[2:4]), ("test", CLASSES[4:])):
        rows_to_csv(tmp_path / "mini" / f"{pool}.csv", [["filename", "label"], *(r for r in rows if r[1] in classes)])
    sampler = load(tmp_path / "mini", csv=".", split="")
    assert names(sampler) == {"train": CLASSES[:2], "validation": CLASSES[2:4], "test": CLASSES[4:]}
    assert all(torch.equal(pictures(sampler, name), pictures(load(root), name)) for name in CLASSES)


def test_one_table_gives_labels_pools_and_groups(tmp_path: Path) -> None:
    rows = [[f"images/{file}", label, "insects" if label in "ant bee" else "others"] for file, label in flat(tmp_path)]
    rows_to_csv(tmp_path / "labels.csv", [["file", "label", "group"], *rows])
    assert names(load(tmp_path, csv="labels.csv")) == names(load(tmp_path, csv=str(tmp_path / "labels.csv")))
    by_group = load(tmp_path, csv="labels.csv", split="", train=("others",), test=("insects",))
    assert names(by_group) == {"train": CLASSES[2:], "validation": [], "test": CLASSES[:2]}
    rows_to_csv(tmp_path / "pools.csv", [["file", "label", "pool"], *([f, c, "test"] for f, c, _ in rows)])
    assert names(load(tmp_path, csv="pools.csv", split="")) == {"train": [], "validation": [], "test": CLASSES}


def test_a_table_labels_the_pictures_of_a_zip_file_and_may_leave_some_out(tmp_path: Path) -> None:
    rows = flat(tmp_path / "mini")
    path = write_zip(
        tmp_path / "mini.zip", {f"images/{f}": (tmp_path / "mini/images" / f).read_bytes() for f, _ in rows}
    )
    table = rows_to_csv(tmp_path / "labels.csv", [["file", "label"], *rows[:-4]])
    sampler = load(path, csv=str(table), split="2/2/1")
    assert sorted(name for members in names(sampler).values() for name in members) == CLASSES[:-1]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([["ant_9.png", "ant"]], r"there is no picture 'ant_9\.png' in .*; write its path from there"),
        ([["../outside.png", "ant"]], r"there is no picture '\.\./outside\.png'"),
        ([["/etc/passwd", "ant"]], r"there is no picture '/etc/passwd'"),
        ([["ant_0.png", "ant"], ["images/ant_0.png", "bee"]], r"images/ant_0\.png stands in two rows"),
        ([["ant_0.png", ""]], r"row 1 has no label"),
        ([["", "ant"]], r"row 1 has no file"),
    ],
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, rows: list[list[str]], says: str) -> None:
    flat(tmp_path)
    (tmp_path.parent / "outside.png").write_bytes(picture("outside"))
    rows_to_csv(tmp_path / "labels.csv", [["file", "label"], *rows])
    with pytest.raises(UserError, match=says):
        load(tmp_path, csv="labels.csv")


def test_a_name_that_stands_in_two_folders_needs_its_path(root: Path) -> None:
    rows_to_csv(root / "labels.csv", [["file", "label"], ["0.png", "ant"]])
    with pytest.raises(UserError, match=r"there are 6 pictures named '0\.png'"):
        load(root, csv="labels.csv")


def test_a_table_that_is_missing_or_has_other_columns_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"tasks\.csv: there is no .*labels\.csv"):
        load(root, csv="labels.csv")
    rows_to_csv(root / "labels.csv", [["file", "klass"], ["ant/0.png", "ant"]])
    with pytest.raises(UserError, match=r"tasks\.csv: .*labels\.csv: no column named 'label'; "):
        load(root, csv="labels.csv")
    for pool in ("train", "val"):
        rows_to_csv(root / f"{pool}.csv", [["file", "label"], [f"{'ant' if pool == 'val' else 'bee'}/0.png", pool]])
    with pytest.raises(UserError, match=r"test\.csv cannot be read \(.*No such file"):
        load(root, csv=".")


# How pictures are decoded


def decoded(content: bytes, channels: int = 3, size: int = 28, fit: str = "stretch") -> Tensor:
    return torch.tensor(images._picture(content, channels, size, fit))


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA"])
def test_formats_without_loss_give_the_same_numbers(format: str) -> None:
    few_colours = Image.fromarray(pixels_of("a") // 128 * 255)
    options = {"lossless": True} if format == "WEBP" else {}
    assert torch.equal(decoded(encoded(few_colours, format, **options)), decoded(encoded(few_colours)))


def test_a_jpeg_far_larger_than_needed_gives_nearly_the_same_numbers() -> None:
    large = Image.fromarray(pixels_of("a", (800, 1200)))
    difference = decoded(encoded(large, "JPEG", quality=95)).int() - decoded(encoded(large)).int()
    assert difference.abs().float().mean() < 2


def test_a_picture_keeps_its_mean_when_it_shrinks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 256, 3), dtype=np.uint8)
    small = decoded(encoded(Image.fromarray(noise)), size=8)
    np.testing.assert_allclose(small.float().mean((1, 2)), noise.mean((0, 1)), atol=1)
    assert small.float().std() < 0.1 * noise.std()  # averaged, not picked


def test_transparent_pictures_stand_on_white() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)  # black ink, and black under what is transparent
    pixels[:, :8, 3] = 255
    for channels in (1, 3):
        shown = decoded(encoded(Image.fromarray(pixels)), channels, 16)
        assert shown[:, :, :7].eq(0).all()
        assert shown[:, :, 9:].eq(255).all()
    palette = Image.fromarray(pixels[:, :, :3]).quantize(4)
    assert decoded(encoded(palette, transparency=bytes([0] * 4)), 1, 16).eq(255).all()


def test_pictures_of_16_bits_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    shown = decoded(encoded(Image.fromarray(ramp)), 1, 16).flatten()
    assert torch.equal(shown, torch.arange(256, dtype=torch.uint8))


def test_pictures_of_32_bits_have_no_range_and_are_refused(tmp_path: Path) -> None:
    files = files_of(CLASSES) | {"ant/float.tiff": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")}
    with pytest.raises(UserError, match=r"ant/float\.tiff is damaged \(its pixels are numbers of 32 bits"):
        load(write(tmp_path / "data", files))


def test_a_picture_stands_as_its_camera_noted() -> None:
    upright = Image.fromarray(pixels_of("a", (32, 32)))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert torch.equal(decoded(encoded(turned, exif=exif)), decoded(encoded(upright)))
    assert not torch.equal(decoded(encoded(turned)), decoded(encoded(upright)))


def test_crop_keeps_proportions_and_stretch_keeps_all() -> None:
    wide = Image.fromarray(pixels_of("a", (28, 84)))
    middle = wide.crop((28, 0, 56, 28))
    assert torch.equal(decoded(encoded(wide), fit="crop"), decoded(encoded(middle)))
    assert not torch.equal(decoded(encoded(wide)), decoded(encoded(middle)))
    assert torch.equal(
        decoded(encoded(ImageOps.mirror(wide))), decoded(encoded(wide)).flip(2)
    )  # what is left and right of the middle counts


@pytest.mark.parametrize(
    ("config", "x_shape"),
    [({}, (3, 84, 84)), ({"colour": "grey"}, (1, 28, 28)), ({"size": 16}, (3, 16, 16)), ({"size": 1}, (3, 1, 1))],
)
def test_settings_give_the_shape(root: Path, config: dict[str, Any], x_shape: tuple[int, ...]) -> None:
    sampler = load(root, **config)
    spec = sampler.spec(2, 1, 3)
    assert spec.x_shape == x_shape
    batch = sampler.draw("test", spec, 5, Generator().manual_seed(0))
    assert batch.query_x.shape == (5, 6, *x_shape)
    assert batch.query_x.dtype == torch.float32
    assert 0 <= batch.query_x.min() < batch.query_x.max() <= 1


def test_auto_is_grey_only_where_all_pictures_are(tmp_path: Path) -> None:
    grey = {f"{name}/{n}.png": grey_picture(f"{name}/{n}") for name in CLASSES for n in range(4)}
    assert load(write(tmp_path / "grey", grey)).spec(2, 1, 1).x_shape == (1, 28, 28)
    mixed = grey | {"ant/0.png": picture("ant/0")}
    assert load(write(tmp_path / "mixed", mixed)).spec(2, 1, 1).x_shape == (3, 84, 84)
    assert load(tmp_path / "grey", colour="rgb").spec(2, 1, 1).x_shape == (3, 84, 84)


# Refusals


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"size": -1}, r"tasks\.size is -1 pixels; set it to 1 to 1024, or to 0"),
        ({"size": 4096}, r"tasks\.size is 4096 pixels"),
        ({"colour": "gray"}, r"tasks\.colour: no choice named 'gray'; did you mean 'grey'"),
        ({"fit": "pad"}, r"tasks\.fit: no choice named 'pad'; choose one of: crop, stretch"),
        ({"damaged": "ignore"}, r"tasks\.damaged: no choice named 'ignore'"),
        ({"split": "7/2/2"}, r"tasks\.split is 7/2/2, 11 classes, and there are 6"),
        ({"split_by": "group"}, r"belong to no groups"),
        ({"split": "", "train": ("ants",)}, r"no class or group named 'ants'; did you mean 'ant'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_nothing_is_written(
    root: Path, cache: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        load(root, **config)
    assert cached(cache) == []


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tasks\.root is empty; name a folder or zip file of pictures with --set"):
        Images(Images.Config())
    with pytest.raises(UserError, match=r"tasks\.root: there is no .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no pictures; .* <class>/<picture>"):
        load(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("cats")
    with pytest.raises(UserError, match=r"a\.txt cannot be read as a folder or zip file"):
        load(tmp_path / "a.txt")


def test_pictures_that_stand_in_no_class_or_above_one_are_refused(tmp_path: Path, root: Path) -> None:
    write(tmp_path / "bare", {"a.png": picture("a")})
    with pytest.raises(UserError, match=r"a\.png stands in no folder of a class; move it to <class>/a\.png"):
        load(tmp_path / "bare")
    write(root, {"ant/red/0.png": picture("red")})
    with pytest.raises(UserError, match=r"the folder ant holds pictures beside the folder ant/red"):
        load(root)


def test_a_class_beside_train_and_test_is_refused(tmp_path: Path) -> None:
    write(tmp_path, files_of(["train/ant", "test/bee", "extra/cat"]))
    with pytest.raises(UserError, match=r"holds the folders test and train beside extra/cat; give every class a place"):
        load(tmp_path)


def test_a_class_of_one_picture_is_refused_before_the_first_trial_with_numbers_that_work(tmp_path: Path) -> None:
    root = write(tmp_path / "data", files_of(CLASSES) | {"gnu/0.png": picture("gnu")})
    sampler = load(root, split="", train=("ant", "gnu"), test=("bee", "cat"))
    with pytest.raises(UserError, match=r"'gnu' of the train pool has 1; set tasks\.min_examples to 4, which leaves 1"):
        sampler.check("train", sampler.spec(2, 1, 3))
    kept = load(root, split="2/2/2", min_examples=4)
    for pool in POOLS:
        kept.check(pool, kept.spec(2, 1, 3))


def test_the_same_picture_in_two_pools_is_refused_with_both_names(tmp_path: Path, cache: Path) -> None:
    files = files_of(CLASSES) | {"fox/copy.png": picture("ant/1"), "fox/other.bmp": picture("ant/2", format="BMP")}
    lists: dict[str, Any] = {"split": "", "train": CLASSES[:2], "validation": CLASSES[2:4], "test": CLASSES[4:]}
    root = write(tmp_path / "data", files)
    for _ in range(2):  # from the pictures, then from the cache
        with pytest.raises(
            UserError, match=r"ant/1\.png of the train pool and fox/copy\.png of the test pool are identical \(4 exa"
        ):
            load(root, **lists)
        assert len(cached(cache)) == 1
    skipped = load(root, duplicates="skip", **lists)
    assert len(pictures(skipped, "ant")) == 2
    assert len(pictures(skipped, "fox")) == 4
    load(root, **lists | {"train": CLASSES[:1] + CLASSES[5:], "test": CLASSES[4:5]})  # in one pool they are no leak


# Damage, links, names


def damaged() -> dict[str, bytes]:
    whole, jpeg = picture("whole"), picture("whole", format="JPEG")
    return {
        "ant/empty.png": b"",
        "bee/cut.png": whole[:-20],
        "cat/head.png": whole[:20],
        "cat/cut.jpg": jpeg[: len(jpeg) // 2],
        "dog/flipped.png": whole[:60] + bytes([whole[60] ^ 4]) + whole[61:],
        "dog/text.gif": b"these are no pixels",
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_picture_is_refused_by_its_name_and_nothing_is_written(
    root: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    files = files_of(CLASSES) | {name: damaged()[name]}
    for place in (write(root, files), write_zip(tmp_path / "data.zip", files)):
        with pytest.raises(UserError, match=rf"{name} is damaged \(.*\); replace it, or set tasks\.damaged to skip"):
            load(place)
    assert cached(cache) == []


def test_damaged_pictures_are_skipped_where_the_study_says_so_and_from_the_cache_too(root: Path, cache: Path) -> None:
    good = load(root)
    write(root, damaged())
    for _ in range(2):
        assert same(load(root, damaged="skip"), good)
    with pytest.raises(UserError, match="is damaged"):  # a cache that skipped them is not used
        load(root)
    assert len(cached(cache)) == 2


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_of_a_picture_are_decoded_or_refused_by_name(data: st.DataObject, tmp_path: Path) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    whole = bytearray(picture("a", format=format))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    path = write_zip(tmp_path / "fuzzed.zip", files_of(CLASSES, 2) | {"ant/fuzzed.png": content})
    try:
        found = load(path, size=8)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert len(pictures(found, "ant")) == 3
    assert not refusal or "ant/fuzzed.png is damaged" in refusal


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_zip_file_damaged_anywhere_changes_no_picture_unseen(data: st.DataObject, tmp_path: Path) -> None:
    files = files_of(CLASSES, 2)
    path = write_zip(tmp_path / "a.zip", files)
    good, whole = load(path, size=8), bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        found = load(path, size=8)
    except UserError:
        return
    for name in names(good)["train"]:
        if name in names(found)["train"]:  # a flipped bit may rename a class, in the directory at the end
            assert len(pictures(found, name)) <= 2
            held = {x.numpy().tobytes() for x in pictures(good, name)}
            assert {x.numpy().tobytes() for x in pictures(found, name)} <= held


def test_symbolic_links_are_refused_unless_asked_for(root: Path, tmp_path: Path, cache: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"gnu/0.png": picture("gnu/0"), "secret.png": picture("secret")})
    links = {"ant/link.png": elsewhere / "secret.png", "gnu": elsewhere / "gnu"}
    for name, target in links.items():
        (root / name).symlink_to(target)
        with pytest.raises(UserError, match=rf"{name} is a symbolic link; set tasks\.follow_links to true, or remove"):
            load(root)
        (root / name).unlink()
    assert cached(cache) == []
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "ant" / "notes").symlink_to("nowhere")  # neither a folder nor a picture
    (root / "bee" / "up").symlink_to(root)  # a circle
    followed = load(root, follow_links=True, split="3/2/2")
    assert len(pictures(followed, "ant")) == N_EXAMPLES + 1
    assert len(pictures(followed, "gnu")) == 1
    (root / "ant" / "lost.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError, match=r"cannot be read \(.*lost\.png"):
        load(root, follow_links=True, split="3/2/2")


def test_the_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert same(load(tmp_path / "link"), load(root))


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/up.png", "C:/up.png", "a\\..\\up.png", ".."])
def test_a_zip_file_with_names_that_lead_out_is_refused_and_nothing_is_written(
    tmp_path: Path, cache: Path, name: str
) -> None:
    path = write_zip(tmp_path / "a.zip", files_of(CLASSES) | {name: picture("up")})
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(UserError, match=r"which leads out of it; pack it anew"):
        load(path)
    assert set(tmp_path.parent.rglob("*")) == before
    assert cached(cache) == []


def test_a_zip_file_is_never_unpacked(tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "a.zip", files_of(CLASSES))
    before = set(tmp_path.rglob("*"))
    load(path)
    (written,) = set(tmp_path.rglob("*")) - before - {cache}
    assert written.parent == cache


def test_a_file_too_large_unpacked_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    with pytest.raises(UserError, match=r"ant/0\.png is damaged \(it has \d+ bytes, more than 50\)"):
        load(write_zip(tmp_path / "a.zip", files_of(CLASSES)))


def test_a_zip_file_that_lies_about_the_size_of_a_picture_is_refused(tmp_path: Path, cache: Path) -> None:
    """Its directory says 100 bytes, and the packed bytes unpack to ten million."""
    path = tmp_path / "a.zip"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in files_of(CLASSES).items():
            archive.writestr(name, content)
        archive.writestr("ant/bomb.png", bytes(10**7))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 10**7)) >= 1
    path.write_bytes(content.replace(struct.pack("<I", 10**7), struct.pack("<I", 100)))
    with pytest.raises(UserError, match=r"ant/bomb\.png is damaged \(Bad CRC-32"):
        load(path)
    assert len(pictures(load(path, damaged="skip"), "ant")) == N_EXAMPLES


def test_a_picture_of_more_pixels_than_memory_holds_is_refused_undecoded(root: Path, cache: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        header += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    write(root, {"ant/huge.png": header})
    with pytest.raises(UserError, match=r"ant/huge\.png is damaged \(Image size \(3600000000 pixels\) exceeds"):
        load(root)
    assert cached(cache) == []


def test_names_may_hold_spaces_and_any_letters(tmp_path: Path) -> None:
    classes = ["Ωμέγα", "ど う ぶ つ", 'a\'b "c"', "-rf", "%s{}", "naïve [bold]x[/]"]
    root = write(tmp_path / "mes données", files_of(classes))
    sampler = load(root)
    assert sorted(name for members in names(sampler).values() for name in members) == sorted(classes)
    assert same(sampler, load(write_zip(tmp_path / "mes données.zip", files_of(classes))))


def test_names_that_are_no_unicode_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "data", files_of(CLASSES))
    try:
        os.rename(root / "ant", os.fsencode(root) + b"/\xe4nt")
    except OSError:
        pytest.skip("this file system stores names in Unicode only")
    load(root)
    for pool in POOLS:
        load(root).check(pool, load(root).spec(2, 1, 3))


# The cache


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each picture decoded so far."""
    done: list[int] = []
    decode = images._picture

    def noted(content: bytes, channels: int, size: int, fit: str) -> NDArray[np.uint8]:
        done.append(len(content))
        return decode(content, channels, size, fit)

    monkeypatch.setattr(images, "_picture", noted)
    return done


def test_pictures_are_decoded_once_and_then_mapped_whatever_the_split(root: Path, decodes: list[int]) -> None:
    first = load(root)
    assert len(decodes) == 24
    assert same(load(root), first)
    load(root, split="60/20/20", split_seed=3)
    assert len(decodes) == 24
    load(root, size=16)
    assert len(decodes) == 48


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "ant/0.png").write_bytes(picture("new")),
        lambda root: (root / "ant/9.png").write_bytes(picture("new")),
        lambda root: (root / "ant/3.png").unlink(),
        lambda root: (root / "ant/3.png").rename(root / "ant/4.png"),
        lambda root: os.utime(root / "ant/3.png", (1, 1)),
    ],
    ids=["replaced", "added", "removed", "renamed", "touched"],
)
def test_a_cache_of_other_pictures_is_never_used(
    root: Path, tmp_path: Path, decodes: list[int], change: Callable[[Path], object]
) -> None:
    load(root)
    change(root)
    del decodes[:]
    found = load(root)
    assert decodes
    fresh = write_zip(tmp_path / "z.zip", {f"ant/{p.name}": p.read_bytes() for p in sorted((root / "ant").iterdir())})
    only = Images(Images.Config(root=str(fresh), train=("ant",)))
    assert torch.equal(pictures(found, "ant"), pictures(only, "ant"))


def test_a_cache_interrupted_half_way_is_built_anew(
    root: Path, cache: Path, decodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> NDArray[np.uint8]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(images, "digest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    assert cached(cache) == []
    del decodes[:]
    load(root)
    assert len(decodes) == 24
    assert len(cached(cache)) == 1


def test_all_pools_read_one_mapped_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[NDArray[Any]] = []
    make = metaopt.cache.array

    def noted(*given: Any) -> NDArray[Any]:
        arrays.append(make(*given))
        return arrays[-1]

    monkeypatch.setattr(metaopt.cache, "array", noted)
    sampler = load(root)
    (mapped,) = arrays
    assert isinstance(mapped, np.memmap)
    assert all(np.shares_memory(sampler.pools[pool].sources.numpy(), mapped) for pool in POOLS)


def test_tasks_hold_the_pictures_of_their_labels(root: Path) -> None:
    sampler = load(root, size=8)
    owner = {x.numpy().tobytes(): name for name in CLASSES for x in pictures(sampler, name)}
    assert len(owner) == 24
    for pool in POOLS:
        batch = sampler.draw(pool, sampler.spec(2, 1, 3), 10, Generator().manual_seed(0))
        every_x = torch.cat([batch.support_x, batch.query_x], 1).mul(255).round().byte()
        every_y = torch.cat([batch.support_y, batch.query_y], 1)
        for x, y in zip(every_x, every_y, strict=True):
            pairs = {(owner[e.numpy().tobytes()], label) for e, label in zip(x, y.tolist(), strict=True)}
            assert len(pairs) == 2
            assert {name for name, _ in pairs} == set(names(sampler)[pool])
