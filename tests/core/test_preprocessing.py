"""Examples are made ready for a learner exactly as the study made them, from plain data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from metaopt.errors import InputError, UserError
from metaopt.preprocessing import Preprocessing
from metaopt.task import TaskSampler
from metaopt_tasks.arrays import Arrays
from metaopt_tasks.bundled import Bundled, load
from metaopt_tasks.images import Images
from metaopt_tasks.omniglot import Omniglot
from metaopt_tasks.table import Table
from metaopt_tasks.text import Text

N_CLASSES, N_EACH = 9, 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))


def kept(sampler: TaskSampler, x_shape: tuple[int, ...]) -> Preprocessing:
    """Return a sampler's preprocessing as it is after it was saved and loaded."""
    made = sampler.preprocessing(x_shape)
    assert type(made) is sampler.made_by
    settings = json.loads(json.dumps(made.settings))
    assert all(array.dtype.kind == "f" for array in made.arrays.values())
    return sampler.made_by(made.x_shape, settings, {name: array.copy() for name, array in made.arrays.items()})


def sources(sampler: Any) -> torch.Tensor:
    """Return all examples of a sampler as its tasks hold them."""
    x: torch.Tensor = sampler.pools["train"].sources
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def pixels(seed: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def pictures(root: Path, shape: tuple[int, ...] = (20, 30, 3), suffix: str = "png") -> Path:
    for number in range(N_CLASSES * N_EACH):
        path = root / f"c{number // N_EACH}" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, shape)).save(path)
    return root


@pytest.mark.parametrize(
    ("shape", "suffix", "config"),
    [((20, 30, 3), "png", {"size": 16}), ((20, 30), "png", {"size": 9, "fit": "crop"}),
     ((200, 300, 3), "jpg", {"size": 28}), ((20, 30, 4), "png", {"colour": "grey"})],
)  # fmt: skip
def test_pictures_are_those_of_the_study_to_the_last_bit(
    tmp_path: Path, shape: tuple[int, ...], suffix: str, config: dict[str, Any]
) -> None:
    root = pictures(tmp_path / "p", shape, suffix)
    sampler = Images(Images.Config(root=str(root), **config))
    expected = sources(sampler)
    make, paths = kept(sampler, tuple(expected.shape[1:])), sorted(root.glob("*/*"), key=lambda p: p.as_posix())
    assert torch.equal(make(paths), expected)
    assert torch.equal(make([str(path) for path in paths]), expected)
    assert torch.equal(make([path.read_bytes() for path in paths]), expected)
    if suffix == "png":  # Pillow's JPEG pictures are decoded whole, where files are decoded smaller
        assert torch.equal(make([Image.open(path) for path in paths]), expected)
        if len(shape) == 2 or shape[2] == 3:
            assert torch.equal(make(np.stack([np.asarray(Image.open(path)) for path in paths])), expected)
    assert torch.equal(make(expected.numpy()), expected)
    assert torch.equal(make(expected), expected)
    for labelled in (True, False):
        read = make.read(root, labelled=labelled)
        assert torch.equal(make(read.examples), expected)
    assert make.read(root, labelled=True).labels == [path.parent.name for path in paths]


def test_drawings_are_ink_on_nothing_as_omniglots_are(tmp_path: Path) -> None:
    for number, name in enumerate(["a", "b", "c"]):
        path = tmp_path / "set" / name / "character01" / f"{number}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels(number, (105, 105))).save(path)
    sampler = Omniglot(Omniglot.Config(root=str(tmp_path), train=("set/a",), validation=("set/b",), test=("set/c",)))
    make = kept(sampler, (1, 28, 28))
    for pool, name in (("train", "a"), ("test", "c")):
        paths = list((tmp_path / "set" / name).glob("*/*.png"))
        expected = sampler.pools[pool].sources.float().div_(255)
        assert torch.equal(make(paths), expected)
        assert torch.equal(make([np.asarray(Image.open(path)) for path in paths]), expected)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p")
    make = kept(Images(Images.Config(root=str(root), size=16)), (3, 16, 16))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    for examples, said in (
        ([tmp_path / "none.png"], r"none.png is no picture that can be read \(No such file"),
        ([tmp_path / "bad.png"], "bad.png is no picture that can be read"),
        ([np.zeros((5, 5))], "picture 0 is no picture that can be read .an array of float64"),
        ([3], "picture 0 is no picture"),
        ([], "there are no pictures"),
        (str(tmp_path / "bad.png"), "put it into a list"),
        (3, "put it into a list"),
        (np.zeros((2, 3, 5, 5)), r"the examples are \(2, 3, 5, 5\) and the model takes \(n, 3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), r"the tensor is \(2, 1, 16, 16\)"),
    ):
        with pytest.raises(InputError, match=said):
            make(examples)
    Image.new("RGB", (4, 4)).save(root / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png stands in no folder of a class"):
        make.read(root, labelled=True)
    (root / "c0" / "link.png").symlink_to(root / "stray.png")
    with pytest.raises(UserError, match="is a symbolic link"):
        make.read(root, labelled=False)


def table(path: Path, rows: int = N_CLASSES * N_EACH) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    made = [
        {"width": round(random.normal(5), 4) if row % 5 else "", "label": f"c{row // N_EACH}",
         "colour": ["red", "green", "", "rare"][int(random.integers(4))], "name": f"n{random.integers(9)}"}
        for row in range(rows)
    ]  # fmt: skip
    path.write_text("\n".join([",".join(made[0]), *(",".join(map(str, row.values())) for row in made)]))
    return made


class Frame:
    """As much of a DataFrame as is read: pandas need not be installed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.columns = list(rows[0])
        self.rows = rows

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.array([row[name] for row in self.rows], object)


@pytest.mark.parametrize("max_categories", [3, 50])
def test_rows_of_a_table_are_those_of_the_study_to_the_last_bit(tmp_path: Path, max_categories: int) -> None:
    rows = table(tmp_path / "t.csv")
    sampler = Table(Table.Config(file=str(tmp_path / "t.csv"), max_categories=max_categories, duplicates="keep"))
    expected = sources(sampler)
    make = kept(sampler, tuple(expected.shape[1:]))
    assert torch.equal(make(rows), expected)
    assert torch.equal(make([{"extra": 1} | row for row in reversed(rows)]).flip(0), expected)
    assert torch.equal(make(Frame(rows)), expected)
    read = make.read(tmp_path / "t.csv", labelled=True)
    assert torch.equal(make(read.examples), expected)
    assert read.labels == [row["label"] for row in rows]
    [new] = make([{"width": None, "colour": "violet", "name": "n0"}])
    assert new.isfinite().all()
    for given_rows, said in (
        ([{"width": 3, "colour": "red"}], "no column named 'name'; .*the model needs every column of its study"),
        ([{"width": "wide", "colour": "red", "name": "n1"}], "the column 'width' held numbers in the study"),
        (np.zeros((3, 3)), "these are no rows with columns by name"),
        ([], "these are no rows"),
        (7, "these are no rows"),
    ):
        with pytest.raises(InputError, match=said):
            make(given_rows)


def test_a_table_is_made_ready_as_scikit_learn_does(tmp_path: Path) -> None:
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = table(tmp_path / "t.csv")
    sampler = Table(Table.Config(file=str(tmp_path / "t.csv"), max_categories=3, duplicates="keep"))
    train = np.concatenate([c.rows for c in sampler.classes["train"]])
    width = np.array([[float(row["width"] or "nan")] for row in rows])
    filled = SimpleImputer(strategy="median").fit(width[train]).transform(width)
    scaled = StandardScaler().fit(filled[train]).transform(filled)
    others = np.array([[row["colour"], row["name"]] for row in rows], object)
    one_hot = OneHotEncoder(sparse_output=False, handle_unknown="infrequent_if_exist", max_categories=3)
    expected = np.hstack([scaled, one_hot.fit(others[train]).transform(others)]).astype(np.float32)
    np.testing.assert_array_equal(sources(sampler).numpy(), expected)


@pytest.mark.parametrize("config", [{}, {"features": 64}, {"features": 64, "svd": 5}])
def test_texts_are_those_of_the_study_to_the_last_bit(tmp_path: Path, config: dict[str, Any]) -> None:
    words = ["weather", "time", "bank", "alarm", "song", "please", "today", "now"]
    random = np.random.default_rng(0)
    pairs = [(" ".join(random.choice(words, 5)) + f" {n}", f"c{n // N_EACH}") for n in range(N_CLASSES * N_EACH)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in pairs))
    for _ in range(2):  # the second time from the cache
        sampler = Text(Text.Config(file=str(path), **config))
        expected = sources(sampler)
        make = kept(sampler, tuple(expected.shape[1:]))
        assert torch.equal(make([text for text, _ in pairs]), expected)
        assert torch.equal(make(np.array([f"  {text.upper()}" for text, _ in pairs])), expected)
    read = make.read(path, labelled=True)
    assert read.labels == [label for _, label in pairs]
    assert torch.equal(make(read.examples), expected)
    assert make([""]).abs().sum() == 0
    for texts, said in (("one text", "give a list of them"), ([3], "give a list"), ([], "there are no texts")):
        with pytest.raises(InputError, match=said):
            make(texts)
    with pytest.raises(ValueError, match="features of version 0"):
        sampler.made_by(make.x_shape, make.settings | {"version": 0}, make.arrays)


def test_embeddings_of_texts_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"v": [float(n), 1.0, 2.0], "label": f"c{n // 3}"} for n in range(27)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    sampler = Text(Text.Config(file=str(tmp_path / "t.json"), vectors="v"))
    make = kept(sampler, (3,))
    assert make.takes == "arrays"
    assert torch.equal(make([row["v"] for row in rows]), sources(sampler))
    assert torch.equal(make(make.read(tmp_path / "t.json", labelled=False).examples), sources(sampler))


@pytest.mark.parametrize("shape", [(27, 4), (27, 6, 5), (27, 6, 5, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_arrays_are_those_of_the_study(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    x = pixels(0, shape).astype(dtype)
    np.savez(tmp_path / "a.npz", X=x, y=np.arange(27) // 3)
    sampler = Arrays(Arrays.Config(file=str(tmp_path / "a.npz")))
    expected = sources(sampler)
    make = kept(sampler, tuple(expected.shape[1:]))
    assert torch.equal(make(x), expected)
    read = make.read(tmp_path / "a.npz", labelled=True)
    assert torch.equal(make(read.examples), expected)
    assert read.labels == [str(n // 3) for n in range(27)]
    np.savez(tmp_path / "q.npz", X=x)
    assert torch.equal(make(make.read(tmp_path / "q.npz", labelled=False).examples), expected)
    with pytest.raises(UserError, match="no array named 'y'"):
        make.read(tmp_path / "q.npz", labelled=True)


@pytest.mark.parametrize("data", ["digits", "wine"])
def test_bundled_data_are_scaled_as_in_the_study(data: str) -> None:
    sampler = Bundled(Bundled.Config(data=data, split="" if data == "digits" else "1/1/1"))
    make = kept(sampler, tuple(sources(sampler).shape[1:]))
    assert torch.equal(make(load(data).data), sources(sampler))
    with pytest.raises(InputError, match=r"the examples are \(3, 2\) and the model takes"):
        make(np.zeros((3, 2)))


@given(hnp.arrays(st.sampled_from([np.float64, np.int32, np.uint8, np.bool_, "U2", "O"]),
                  hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)))  # fmt: skip
def test_any_array_becomes_examples_or_is_refused(array: NDArray[Any]) -> None:
    for shape in ((3,), (1, 2, 2)):
        try:
            made = Preprocessing(shape)(array)
        except InputError:
            continue
        assert made.shape == (len(array), *shape)
        assert made.dtype == torch.float32
        assert made.isfinite().all()


def test_files_of_samplers_that_have_none_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this model takes arrays .* of which no file is read; use metaopt\.load"):
        Preprocessing((2,)).read(tmp_path, labelled=True)
