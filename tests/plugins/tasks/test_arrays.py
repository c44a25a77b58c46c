"""Arrays become pools as they stand in their file, and what cannot be learned from is refused by its place."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import POOLS
from metaopt_tasks import arrays
from metaopt_tasks.arrays import Arrays

N_CLASSES, N_EXAMPLES = 9, 5
X = np.random.default_rng(0).normal(size=(N_CLASSES * N_EXAMPLES, 3)).astype(np.float32)
Y = np.arange(len(X)) % N_CLASSES
PICTURES = np.random.default_rng(1).integers(0, 256, (len(X), 3, 6, 8), dtype=np.uint8)


def save(folder: Path, suffix: str = ".npz", **given: Any) -> dict[str, str]:
    """Write arrays and return the settings that name them."""
    folder.mkdir(exist_ok=True)
    held: dict[str, Any] = {"X": X, "y": Y, **given}
    path = folder / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **held)
    elif suffix == ".safetensors":
        save_file({name: torch.as_tensor(values).contiguous() for name, values in held.items()}, path)
    else:
        np.save(path, held["X"])
        np.save(folder / "labels.npy", held["y"])
        return {"file": str(path), "labels": str(folder / "labels.npy")}
    return {"file": str(path)}


def load(**config: Any) -> Arrays:
    return Arrays(Arrays.Config(**{"split": "3/3/3", **config}))


def by_class(sampler: Arrays) -> dict[str, Tensor]:
    """The examples of each class, as they are drawn."""
    return {
        c.name: sampler.pools[pool]._read(torch.from_numpy(c.rows)) for pool in POOLS for c in sampler.classes[pool]
    }


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_every_example_keeps_its_numbers_and_its_class(tmp_path: Path, suffix: str) -> None:
    found = by_class(load(**save(tmp_path, suffix)))
    assert found.keys() == {str(label) for label in range(N_CLASSES)}
    for label, examples in found.items():
        np.testing.assert_array_equal(examples.numpy(), X[int(label) == Y])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_a_npy_file_is_mapped_and_not_written_to(tmp_path: Path) -> None:
    given = save(tmp_path, ".npy")
    sampler = load(**given)
    assert given["file"] in Path("/proc/self/maps").read_text(encoding="utf-8")
    sampler.pools["train"].sources.zero_()
    np.testing.assert_array_equal(np.load(given["file"], allow_pickle=False), X)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int8, np.uint16, np.bool_, ">f8", ">i4"])
def test_numbers_of_any_kind_become_float32_as_they_are(tmp_path: Path, dtype: Any) -> None:
    x = (X * 20).astype(np.int8).astype(dtype) if dtype is not np.uint16 else np.arange(X.size).reshape(X.shape)
    x = x.astype(dtype)
    found = by_class(load(**save(tmp_path, X=x), duplicates="skip"))
    for label, examples in found.items():
        assert examples.dtype == torch.float32
        if dtype is not np.bool_:  # rows of three bits are soon the same
            np.testing.assert_array_equal(examples.numpy(), x[int(label) == Y].astype(np.float32))


def test_bfloat16_of_safetensors_becomes_float32(tmp_path: Path) -> None:
    x = torch.from_numpy(X).bfloat16()
    found = by_class(load(**save(tmp_path, ".safetensors", X=x, y=torch.from_numpy(Y).float())))
    assert torch.equal(found["3"], x[Y == 3].float())


@pytest.mark.parametrize(
    "arrange",
    [lambda x: x, lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1))],
    ids=["channels first", "channels last"],
)
def test_pictures_of_8_bits_become_zero_to_one_channels_first(
    tmp_path: Path, arrange: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    sampler = load(**save(tmp_path, X=arrange(PICTURES)))
    assert sampler.spec(2, 1, 1).x_shape == (3, 6, 8)
    np.testing.assert_allclose(by_class(sampler)["4"].numpy(), PICTURES[Y == 4] / 255, rtol=1e-6)


def test_pictures_without_channels_are_grey(tmp_path: Path) -> None:
    assert load(**save(tmp_path, X=PICTURES[:, 0])).spec(2, 1, 1).x_shape == (1, 6, 8)


def test_arrays_may_have_other_names_and_give_groups_and_pools(tmp_path: Path) -> None:
    names = np.array([f"c{label} é" for label in Y])
    np.savez(
        tmp_path / "b.npz", features=X, classes=names, alphabet=Y // 3, where=np.array(["train", "val", "test"])[Y // 3]
    )
    given: dict[str, Any] = {"file": str(tmp_path / "b.npz"), "x": "features", "y": "classes"}
    sampler = load(**given, group="alphabet", pool="where", split="")
    assert [[c.name for c in sampler.classes[pool]] for pool in POOLS] == [
        ["c0 é", "c1 é", "c2 é"],
        ["c3 é", "c4 é", "c5 é"],
        ["c6 é", "c7 é", "c8 é"],
    ]
    by_group = load(**given, group="alphabet", split="1/1/1", split_by="group")
    assert sorted({c.group for pool in POOLS for c in by_group.classes[pool]}, key=str) == ["0", "1", "2"]
    with pytest.raises(UserError, match="belong to no groups"):
        load(**given, split_by="group")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"X": np.where(np.arange(X.size).reshape(X.shape) == 22, np.nan, X)}, r"row 7 of .*X holds NaN, infinity"),
        ({"X": np.where(np.arange(X.size).reshape(X.shape) == 22, -np.inf, X)}, r"row 7 of .*X holds NaN, infinity"),
        ({"X": np.where(np.arange(X.size).reshape(X.shape) == 22, 1e300, X.astype(float))}, r"or a number too large"),
        ({"X": X.astype(np.complex64)}, r"X is \(45, 3\) of complex64; give numbers \(n, features\) or"),
        ({"X": X.astype("U5")}, r"X is \(45, 3\) of <U5; give numbers"),
        ({"X": X.astype("M8[s]")}, r"X is \(45, 3\) of datetime64"),
        ({"X": X[:, 0]}, r"X is \(45,\) of float32; give numbers \(n, features\)"),
        ({"X": X[:, :, None, None, None]}, r"X is \(45, 3, 1, 1, 1\)"),
        ({"X": X[:0], "y": Y[:0]}, r"X is \(0, 3\) of float32"),
        ({"X": X[:, :0]}, r"X is \(45, 0\) of float32"),
        ({"y": Y[1:]}, r"y has the shape \(44,\) and X 45 rows; give one for each row, \(45,\)"),
        ({"y": np.eye(N_CLASSES)[Y]}, r"y has the shape \(45, 9\) and X 45 rows"),
        ({"y": Y + 0.5}, r"y holds float64; give whole numbers or texts"),
        ({"y": np.where(Y == 1, np.nan, Y)}, r"y holds float64; give whole numbers or texts"),
        ({"y": np.where(Y == 1, "", "a")}, r"row 1 of .*y is empty"),
        ({"pool": np.array(["train"] * 44 + ["tset"])}, r"'8' stands in the pools 'train' and 'tset'"),
        ({"pool": np.array(["tset"] * 45)}, r"no pool named 'tset'; did you mean 'test'"),
        ({"group": np.arange(45)}, r"the class '0' stands in the groups '0' and '18'"),
    ],
)
def test_arrays_that_cannot_be_are_refused_with_what_can(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(**save(tmp_path, **changes), split="")


def test_labels_in_a_column_are_labels(tmp_path: Path) -> None:
    assert by_class(load(**save(tmp_path, y=Y[:, None].astype(float)))).keys() == {str(n) for n in range(9)}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, r"tasks\.file is empty; name a \.npz, \.npy or \.safetensors file with --set tasks\.file=PATH"),
        ({"file": "nowhere.npz"}, r"there is no nowhere\.npz"),
        ({"file": "a.npz", "x": "Z"}, r"no array named 'Z'; choose one of: X, y"),
        ({"file": "a.npz", "y": "yy"}, r"no array named 'yy'; did you mean 'y'"),
        ({"file": "a.npz", "labels": "labels.npy"}, r"holds its labels itself, as y; leave tasks\.labels out"),
        ({"file": "a.npy"}, r"tasks\.labels is empty; name the labels of a \.npy file"),
        ({"file": "a.txt"}, r"a\.txt is no file of arrays that metaopt reads; give one that ends in \.npz, \.npy"),
        ({"file": "a.npz", "split": "8/8/8"}, r"24 classes, and there are 9"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], says: str
) -> None:
    save(tmp_path)
    save(tmp_path, ".npy")
    (tmp_path / "a.txt").write_text("1 2 3")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        load(**config)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_pickles_are_refused_and_never_run(tmp_path: Path, suffix: str) -> None:
    bombs = np.array([Bomb()] * len(X), dtype=object)
    for changes in ({"X": bombs}, {"y": bombs}):
        with pytest.raises(UserError, match=r"a\.np[yz] cannot be read \(.*(allow_pickle|Python objects)"):
            load(**save(tmp_path, suffix, **changes))


def test_a_member_of_an_archive_that_is_no_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=np.arange(18) % 9)
    with ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("X", b"\x93NUMP")  # NumPy returns its bytes as they are
    with pytest.raises(UserError, match=r"a\.npz cannot be read \(X is no array\)"):
        load(file=str(tmp_path / "a.npz"))


def test_numbers_that_stand_for_no_characters_are_refused(tmp_path: Path) -> None:
    no_character = np.frombuffer(np.full(len(X), 0x110000, np.uint32).tobytes(), "<U1")
    with pytest.raises(UserError, match=r"a\.npz: y holds characters that are none"):
        load(**save(tmp_path, ".npz", y=no_character))


def test_an_array_packed_to_burst_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, X=np.zeros((2000, 100)), y=np.arange(2000) % 9)
    by_class(load(file=str(path), duplicates="keep"))
    monkeypatch.setattr(arrays, "MAX_BYTES", 10**6)  # so that the test needs no gigabyte
    with pytest.raises(UserError, match=r"bomb\.npz cannot be read \(X would unpack from [\d,]+ bytes to 1,600,128\)"):
        load(file=str(path))
    np.savez(path, X=np.zeros((2000, 100)), y=np.arange(2000) % 9)  # as large, and not packed
    by_class(load(file=str(path), duplicates="keep"))


def test_an_array_whose_header_says_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz"):
        given_settings = save(tmp_path, suffix)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 3)})
        if suffix == ".npy":
            (tmp_path / "a.npy").write_bytes(header.getvalue() + X.tobytes())
        else:
            with ZipFile(tmp_path / "a.npz", "w") as archive:
                archive.writestr("X.npy", header.getvalue() + X.tobytes())
                archive.writestr("y.npy", header.getvalue())
        with pytest.raises(UserError, match=r"cannot be read"):
            load(**given_settings)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".npz", ".npy", ".safetensors"]))
def test_a_file_damaged_anywhere_gives_finite_examples_or_a_refusal(
    tmp_path: Path, data: st.DataObject, suffix: str
) -> None:
    given_settings = save(tmp_path, suffix)
    path = Path(given_settings["file"])
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, min(400, len(whole) - 1)))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    before = set(tmp_path.rglob("*"))
    try:
        sampler = load(**given_settings)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(examples.isfinite().all() for examples in by_class(sampler).values())
    assert "\n" not in refusal
    assert set(tmp_path.rglob("*")) == before


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=hnp.arrays(
        st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes()),
        hnp.array_shapes(min_dims=1, max_dims=5, max_side=6),
    )
)
def test_any_array_gives_finite_examples_or_a_refusal(tmp_path: Path, x: NDArray[Any]) -> None:
    try:
        sampler = load(**save(tmp_path, X=x, y=np.arange(len(x)) % 3), split="1/1/1", duplicates="skip")
    except UserError:
        return
    assert sampler.spec(2, 1, 1).x_shape
    for examples in by_class(sampler).values():
        assert examples.dtype == torch.float32
        assert examples.isfinite().all()


def test_the_same_example_in_two_pools_is_refused_by_rows(tmp_path: Path) -> None:
    x = X.copy()
    x[10] = x[3]
    lists: dict[str, Any] = {"split": "", "train": ("3",), "validation": ("2",), "test": ("1",)}
    with pytest.raises(UserError, match=r"row 3 of the train pool and a\.npz row 10 of the test pool are identical"):
        load(**save(tmp_path, X=x), **lists)
    kept = by_class(load(**save(tmp_path, X=x), **lists, duplicates="skip"))
    assert {name: len(examples) for name, examples in kept.items()} == {"3": 4, "2": 5, "1": 4}


def test_tasks_hold_the_examples_of_their_labels(tmp_path: Path) -> None:
    sampler = load(**save(tmp_path))
    owner = {x.tobytes(): label for x, label in zip(X, Y.tolist(), strict=True)}
    batch = sampler.draw("test", sampler.spec(3, 2, 2), 20, Generator().manual_seed(0))
    every_x, every_y = (
        torch.cat([batch.support_x, batch.query_x], 1),
        torch.cat([batch.support_y, batch.query_y], 1),
    )
    for x, y in zip(every_x, every_y, strict=True):
        pairs = {(owner[e.numpy().tobytes()], label) for e, label in zip(x, y.tolist(), strict=True)}
        assert len(pairs) == 3
        assert {str(label) for label, _ in pairs} == {c.name for c in sampler.classes["test"]}
