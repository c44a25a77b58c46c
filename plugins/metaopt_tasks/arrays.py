"""Arrays in a user's file: pictures, embeddings or any numbers X, each with a class y, from NumPy or safetensors.

A large X in a .npy file, with y in another, is mapped and need not fit in memory.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from metaopt.errors import UserError, unknown
from metaopt.pools import ClassSampler, Labels, Split, apart, digest, divide
from metaopt.preprocessing import Given, Preprocessing
from metaopt_tasks.files import find

AT_ONCE = 2**24  # numbers looked at together
MAX_BYTES, MAX_RATIO = 2**30, 200  # an array larger than this and packed so tightly is a bomb
SMALLEST = 16  # pixels of a picture that conv4 takes
SUFFIXES = (".npz", ".npy", ".safetensors")


class ArrayFile(Preprocessing):
    """Takes arrays as the study did, and reads them from the same kinds of file; see `Arrays`."""

    def make(self, examples: Any) -> Tensor:
        """Return examples (n, *x_shape), of which bytes stay such where the study's were."""
        return self.shaped(examples)

    def read(self, path: Path, *, labelled: bool) -> Given:
        """Return X, and y where it is asked for, of a .npz or .safetensors file."""
        config = Arrays.Config(x=self.settings["x"], y=self.settings["y"])
        arrays = _read(path, config, labelled=labelled)
        x = _examples(f"{path}: {config.x}", arrays[config.x])
        labels = _texts(f"{path}: {config.y}", arrays[config.y], len(x)) if labelled else None
        return Given([f"row {row}" for row in range(len(x))], x.numpy(), labels)


class Arrays(ClassSampler):
    """Tell examples apart that stand in an array X, (n, features) or (n, [channels,] height, width).

    Numbers of 8 bits, such as pictures, become 0 to 1; all others float32 as they are. Pictures may have their channels
    last.
    """

    name = "arrays"
    made_by = ArrayFile

    @dataclass(frozen=True)
    class Config(Split):
        """Which file, what its arrays are called, and how classes are divided into pools."""

        file: str = ""
        """A .npz or .safetensors file with X, y and perhaps group and pool, or X as a .npy file."""
        labels: str = ""
        """Beside a .npy file: y, as another."""
        x: str = "X"
        y: str = "y"
        """Names in the file, as these: y (n,) holds whole numbers or texts."""
        group: str = "group"
        pool: str = "pool"
        """train, val or test, for each example."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        path = find("file", config.file, "a .npz, .npy or .safetensors file")
        arrays = _read(path, config)
        examples = _examples(f"{path}: {config.x}", arrays[config.x])
        n = len(examples)
        texts = {name: _texts(f"{path}: {name}", given, n) for name, given in arrays.items() if name != config.x}
        names = [f"{path.name} row {row}" for row in range(n)]
        labels = Labels(names, texts[config.y], texts.get(config.group), texts.get(config.pool))
        pools = divide(labels, config)
        digests = np.stack([digest(example.numpy().tobytes()) for example in examples])
        self.fill(examples, apart(pools, digests, names, config))

    def preprocessing(self, x_shape: tuple[int, ...]) -> Preprocessing:
        in_bytes = self.pools["train"].sources.dtype == torch.uint8
        return ArrayFile(x_shape, {"bytes": in_bytes, "x": self.config.x, "y": self.config.y})

    @classmethod
    def recognise(cls, path: Path) -> Mapping[str, Any] | None:
        if path.suffix.lower() not in {".npz", ".safetensors"}:
            return None
        x = _examples(f"{path}: X", _read(path, cls.Config())["X"])
        pictures = x.ndim == 4 and min(x.shape[2:]) >= SMALLEST
        encoder = {"conv4": {"width": 32, "pool": "stride"}} if pictures else {"mlp": {"width": [64, 256]}}
        return {"tasks": {"file": str(path)}, "encoder": encoder}


def _read(path: Path, config: Arrays.Config, *, labelled: bool = True) -> dict[str, Any]:
    """Return X, y and, where the file has them, group and pool by name. Nothing in it is run: pickles are refused.

    Where it is not `labelled`, y need not be there.
    """
    if config.labels and path.suffix != ".npy":
        raise UserError(
            f"tasks.labels is set and {path} holds its labels itself, as {config.y}; leave tasks.labels out"
        )
    labels = (
        find("labels", config.labels, "the labels of a .npy file, as another .npy file")
        if path.suffix == ".npy" and labelled
        else None
    )
    needed = [config.x, config.y] if labelled else [config.x]
    return read_arrays(path, needed, [config.y, config.group, config.pool], labels)


def read_arrays(
    path: Path, needed: Sequence[str], wanted: Sequence[str] = (), labels: Path | None = None
) -> dict[str, Any]:
    """Return arrays of a file by name, as NumPy's or torch's: those needed and, where it has them, those wanted.

    Beside a .npy file, which holds the first, `labels` is one that holds the second. Nothing in a file is run: pickles
    are refused. Raises UserError where the file is damaged or lacks what is needed.
    """

    def chosen(names: Collection[str], get: Callable[[str], Any]) -> dict[str, Any]:
        for name in needed:
            if name not in names:
                raise UserError(f"{path}: {unknown('array', name, names)}")
        return {name: get(name) for name in (*needed, *wanted) if name in names}

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:  # torch knows bfloat16, and numpy does not
                return chosen(file.keys(), file.get_tensor)
        if path.suffix == ".npz":
            with ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
                sizes = {
                    one.filename.removesuffix(".npy"): (one.file_size, one.compress_size) for one in archive.filelist
                }

                def unpacked(name: str) -> Any:
                    size, packed = sizes[name]
                    if size > MAX_BYTES and size > MAX_RATIO * packed:
                        raise ValueError(f"{name} would unpack from {packed:,} bytes to {size:,}")
                    if not isinstance(array := file[name], np.ndarray):  # bytes, of a member that is no .npy file
                        raise ValueError(f"{name} is no array")
                    return array

                return chosen(file.files, unpacked)
        if path.suffix == ".npy":
            files = dict(zip(needed, filter(None, (path, labels)), strict=True))
            return chosen(files, lambda name: np.lib.format.open_memmap(files[name], mode="c"))
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and safetensors raise a dozen kinds on a broken file
        raise UserError(
            f"{path} cannot be read ({error or type(error).__name__}); write plain arrays again, by numpy.savez or "
            "safetensors"
        ) from None
    raise UserError(f"{path} is no file of arrays that metaopt reads; give one that ends in {', '.join(SUFFIXES)}")


def _examples(what: str, given: Any) -> Tensor:
    """Return X as uint8 or float32, channels first: a view of it where it is so already."""
    x = given if isinstance(given, Tensor) else _tensor(what, given)
    if x.is_complex() or x.ndim not in {2, 3, 4} or not x.numel():
        raise UserError(
            f"{what} is {tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}; give numbers (n, features) or (n, "
            "channels, height, width)"
        )
    if x.ndim == 3:
        x = x[:, None]  # (n, 1, height, width)
    elif x.ndim == 4 and x.shape[3] in {1, 3} and x.shape[1] not in {1, 3}:
        x = x.permute(0, 3, 1, 2)
    if x.dtype == torch.uint8:
        return x
    x = x.float()
    for start, rows in _chunks(x):
        if len(odd := torch.nonzero(~rows.isfinite().flatten(1).all(1))):
            row = start + int(odd[0])
            raise UserError(f"row {row} of {what} holds NaN, infinity or a number too large; mend it or leave it out")
    return x


def _tensor(what: str, given: NDArray[Any]) -> Tensor:
    try:
        return torch.from_numpy(given if given.dtype.isnative else given.astype(given.dtype.newbyteorder("=")))
    except TypeError:
        raise UserError(f"{what} is {given.shape} of {given.dtype}; give numbers of 8 to 64 bits") from None


def _chunks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    size = max(1, AT_ONCE // x[0].numel())
    return ((start, x[start : start + size]) for start in range(0, len(x), size))


def _texts(what: str, given: Any, n: int) -> list[str]:
    """Return y, group or pool as texts, which whole numbers are too."""
    values = np.asarray(given.float() if isinstance(given, Tensor) and given.is_floating_point() else given)
    if values.shape == (n, 1):
        values = values[:, 0]
    if values.shape != (n,):
        raise UserError(f"{what} has the shape {values.shape} and X {n} rows; give one for each row, ({n},)")
    if values.dtype.kind == "f" and np.array_equal(values, np.trunc(values)) and np.isfinite(values).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "iuUb":
        raise UserError(f"{what} holds {values.dtype}; give whole numbers or texts")
    try:
        texts = [str(value) for value in values.tolist()]
    except SystemError:  # in which Python ends over numbers above its largest character
        raise UserError(f"{what} holds characters that are none; write its texts again") from None
    if "" in texts:
        raise UserError(f"row {texts.index('')} of {what} is empty; write a text, or leave the row out")
    return texts
