"""Pictures in a user's folder or zip file: a folder a class, or a CSV file that says each picture's class.

Decoded and resized once, into a cache that is mapped into memory: a folder of any size is sampled from without holding
it. Folders may stand in folders of superclasses, which are then groups, or in train, val and test. The CSV files of
mini-ImageNet (Vinyals et al., 2016, arXiv:1606.04080; Ravi & Larochelle, 2017) are read as published.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from metaopt import cache
from metaopt.errors import InputError, UserError, unknown
from metaopt.pools import GIVEN, ClassSampler, Labels, Split, apart, digest, divide, without
from metaopt.preprocessing import Given, Preprocessing
from metaopt_tasks.files import column, find, read_columns, texts

COLOURS = {"grey": 1, "rgb": 3}
GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"}
LOOKED_AT = 100  # pictures that say whether a folder is grey or coloured
NOT_DECODED = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # by other programs, of which EPS runs a script
MAX_BYTES = 2**28  # of one file, unpacked
LEAST_GROUPS = 10  # to keep whole ones apart: below that, a pool of two or three says little
AT_ONCE = 64  # pictures decoded side by side, few enough that they never fill memory
DIGEST = 16  # bytes
DECODER = 1  # another number wherever `_picture` gives other pixels, or old caches would be used

Reader = Callable[[str], bytes]


class Pictures(Preprocessing):
    """Decodes pictures and resizes them as the study did; see `Images`.

    Takes paths, files' bytes, Pillow's pictures and arrays of bytes (height, width[, channels]), of any size; and
    arrays of numbers from 0 to 1, (n, channels, size, size), as they are.
    """

    takes = "pictures"

    def make(self, examples: Any) -> Tensor:
        """Return pictures (n, channels, size, size) uint8, of which 255 becomes 1."""
        if isinstance(examples, np.ndarray) and examples.dtype.kind == "f":
            return self.shaped(examples)
        if isinstance(examples, str | bytes | Path | Image.Image) or not hasattr(examples, "__len__"):
            raise InputError("this is one picture, and the model takes many; put it into a list")
        if not len(examples):
            raise InputError("there are no pictures; give one or more")
        with ThreadPoolExecutor() as threads:
            return torch.from_numpy(np.stack(list(threads.map(self._pixels, range(len(examples)), examples))))

    def _pixels(self, number: int, given: Any) -> NDArray[np.uint8]:
        what = str(given)[:200] if isinstance(given, str | Path) else f"picture {number}"
        try:
            if isinstance(given, str | Path):
                if Path(given).stat().st_size > MAX_BYTES:
                    raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
                given = Path(given).read_bytes()
            if isinstance(given, bytes):
                return self.decoded(given)
            return self.resized(given if isinstance(given, Image.Image) else _as_picture(given))
        except Exception as error:  # Pillow raises a dozen kinds on a broken file
            reason = (isinstance(error, OSError) and error.strerror) or error or type(error).__name__
            raise InputError(
                f"{what} is no picture that can be read ({reason}); give paths, Pillow's pictures or arrays of bytes "
                "(height, width) or (height, width, 3)"
            ) from None

    def decoded(self, content: bytes) -> NDArray[np.uint8]:
        """Return the picture (channels, size, size) in a file's content."""
        return _picture(content, self.x_shape[0], self.x_shape[1], self.settings["fit"])

    def resized(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return a picture (channels, size, size)."""
        return _resized(picture, self.x_shape[0], self.x_shape[1], self.settings["fit"])

    def read(self, path: Path, *, labelled: bool) -> Given:
        """Return the pictures in a folder or zip file; labelled they stand in a folder for each class."""
        if path.is_file() and _is_picture(path.name) and not labelled:
            return Given([path.name], [path], None)
        files = list(_find_pictures(path, follow_links=False))
        bare = next((file for file in files if "/" not in file), None)
        if labelled and bare:
            raise UserError(f"{path}: {bare} stands in no folder of a class; move it to {path.name}/<class>/{bare}")
        with _reader(path) as read:
            examples = [path / file for file in files] if path.is_dir() else [read(file) for file in files]
        return Given(files, examples, [file.rpartition("/")[0] for file in files] if labelled else None)


def _as_picture(array: Any) -> Image.Image:
    """Return an array of bytes, (height, width) or with 1, 3 or 4 channels first or last, as a picture."""
    array = np.asarray(array)
    if array.dtype != np.uint8:
        raise ValueError(f"an array of {array.dtype}, and pictures are uint8")
    if array.ndim == 3 and array.shape[2] not in {1, 3, 4} and array.shape[0] in {1, 3, 4}:
        array = array.transpose(1, 2, 0)
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


class Images(ClassSampler):
    """Tell pictures apart: (1, size, size) in grey or (3, size, size) in colour, each number from 0 to 1."""

    name = "images"
    encoder = "conv4"
    made_by = Pictures

    @dataclass(frozen=True)
    class Config(Split):
        """Where the pictures are, how they are read, and how classes are divided into pools."""

        root: str = ""
        """A folder or a zip file: <class>/<picture>, with any superclasses or train, val and test above."""
        csv: str = ""
        """A file with the columns file, label and perhaps pool and group, or a folder of train.csv, val.csv and
        test.csv; absolute or relative to `root`, as the files are that it names."""
        size: int = 0
        """Height and width of a picture in pixels; 0: 84 in colour, as mini-ImageNet, and 28 in grey, as Omniglot."""
        colour: str = "auto"
        """`grey`, `rgb`, or `auto`: grey where 100 of the pictures, evenly spread, are stored so."""
        fit: str = "stretch"
        """What is done to a picture that is not square: `stretch`, or `crop` what reaches beyond its middle."""
        damaged: str = "refuse"
        """`refuse` pictures that cannot be read, or `skip` them."""
        follow_links: bool = False
        """Whether symbolic links in `root` are followed."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _check_settings(config)
        root = find("root", config.root, "a folder or zip file of pictures")
        files = _find_pictures(root, follow_links=config.follow_links)
        labels = _read_csv(root, config.csv, files) if config.csv else _by_folder(root, files)
        pools = divide(labels, config)
        pictures, digests = _pictures(root, labels.names, files, config)
        pools = without(pools, (digests == 0).all(1))  # the digest of what is damaged is zero
        self.fill(torch.from_numpy(pictures), apart(pools, digests, labels.names, config))

    def preprocessing(self, x_shape: tuple[int, ...]) -> Preprocessing:
        return Pictures(x_shape, {"fit": self.config.fit})

    @classmethod
    def recognise(cls, path: Path) -> Mapping[str, Any] | None:
        if not (path.is_dir() or path.suffix.lower() == ".zip"):
            return None
        try:
            files = _find_pictures(path, follow_links=False)
        except UserError:
            return None
        tasks: dict[str, Any] = {"root": str(path)}
        labels = _by_folder(path, files)
        if labels.groups and labels.pools is None and len(set(labels.groups)) >= LEAST_GROUPS:
            tasks["split_by"] = "group"
        return {"tasks": tasks, "encoder": {"conv4": {"width": 32, "pool": "stride"}}}


def _check_settings(config: Images.Config) -> None:
    for key, options in (("colour", ("auto", *COLOURS)), ("fit", ("stretch", "crop")), ("damaged", ("refuse", "skip"))):
        if (given := getattr(config, key)) not in options:
            raise UserError(f"tasks.{key}: {unknown('choice', given, options)}")
    if not 0 <= config.size <= 1024:
        raise UserError(
            f"tasks.size is {config.size} pixels; set it to 1 to 1024, or to 0 for 84 in colour, 28 in grey"
        )


# Which pictures there are


def _find_pictures(root: Path, *, follow_links: bool) -> dict[str, tuple[int, int]]:
    """Return the pictures in `root` by name, sorted, each with two numbers that change when its content does."""
    found = _in_folder(root, follow_links=follow_links) if root.is_dir() else _in_zip(root)
    if not found:
        raise UserError(f"{root} holds no pictures; give a folder or zip file with a folder a class, <class>/<picture>")
    return dict(sorted(found.items()))


def _in_folder(root: Path, *, follow_links: bool) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()  # folders by where they really are: followed links may lead in circles
    folders = [""]
    try:
        while folders:
            folder = folders.pop()
            if (real := os.path.realpath(root / folder)) in seen:
                continue
            seen.add(real)
            for entry in list(os.scandir(root / folder)):
                is_folder = entry.is_dir()
                if _is_litter(entry.name) or not (is_folder or _is_picture(entry.name)):
                    continue
                if entry.is_symlink() and not follow_links:
                    raise UserError(f"{entry.path} is a symbolic link; set tasks.follow_links to true, or remove it")
                if is_folder:
                    folders.append(f"{folder}{entry.name}/")
                elif entry.is_file() or not os.path.exists(entry.path):  # of a link that leads nowhere, stat complains
                    stat = entry.stat()
                    found[folder + entry.name] = (stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error}); give a folder that you may read") from None
    return found


def _in_zip(root: Path) -> dict[str, tuple[int, int]]:
    """Return the pictures in a zip file. Names are only read by; none becomes a path to write."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with ZipFile(root) as archive:
            for member in archive.infolist():
                name = member.filename
                if _leads_out(name):
                    raise UserError(f"{root} holds a file named {name!r}, which leads out of it; pack it anew")
                if not any(map(_is_litter, name.split("/"))) and not member.is_dir() and _is_picture(name):
                    found[name] = (member.file_size, member.CRC)
    except (OSError, BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{root} cannot be read as a folder or zip file ({error}); pack it anew") from None
    return found


def _leads_out(name: str) -> bool:
    return name.startswith("/") or "\\" in name or ":" in name.partition("/")[0] or ".." in name.split("/")


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_picture(name: str) -> bool:
    format = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return format in Image.OPEN and format not in NOT_DECODED


# What they show


def _by_folder(root: Path, files: Mapping[str, object]) -> Labels:
    """Take the folder of each picture for its class, the one above for its group, the first for its pool."""
    folders = {file: PurePosixPath(file).parts[:-1] for file in files}
    if bare := next((file for file, parts in folders.items() if not parts), None):
        raise UserError(f"{root}: {bare} stands in no folder of a class; move it to <class>/{bare}, or give tasks.csv")
    first = next(iter(folders.values()))
    while len(first) > 1 and all(len(parts) > 1 and parts[0] == first[0] for parts in folders.values()):
        folders = {file: parts[1:] for file, parts in folders.items()}  # one folder around all says nothing
        first = first[1:]
    holding = set(folders.values())
    for parts in sorted(holding):
        if above := next((parts[:depth] for depth in range(1, len(parts)) if parts[:depth] in holding), None):
            raise UserError(
                f"{root}: the folder {'/'.join(above)} holds pictures beside the folder {'/'.join(parts)}; a class is "
                "a folder of pictures alone, so move its pictures into a folder of their own"
            )
    named = {parts[0] for parts in holding if len(parts) > 1} & GIVEN.keys()
    others = sorted(parts for parts in holding if len(parts) == 1 or parts[0] not in named)
    if len(named) > 1 and others:
        raise UserError(
            f"{root} holds the folders {' and '.join(sorted(named))} beside {'/'.join(others[0])}; give every class a "
            "place in train, val or test, or none"
        )
    split = bool(named) and not others
    pools = [parts[0] for parts in folders.values()] if split else None
    classes = [parts[1:] if split else parts for parts in folders.values()]
    groups = ["/".join(parts[:-1]) for parts in classes] if any(len(parts) > 1 for parts in classes) else None
    return Labels(list(files), ["/".join(parts) for parts in classes], groups, pools)


def _read_csv(root: Path, csv: str, files: Mapping[str, object]) -> Labels:
    path = find("csv", str(root / Path(csv).expanduser()) if root.is_dir() else csv, "the table of labels")
    tables = {pool: path / f"{pool}.csv" for pool in ("train", "val", "test")} if path.is_dir() else {"": path}
    read: dict[str, list[str]] = {"file": [], "label": [], "pool": [], "group": []}
    for pool, table in tables.items():
        columns = read_columns(table)
        columns["file"] = column(columns, "filename" if "filename" in columns else "file", table, "csv")
        if pool:
            columns["pool"] = [pool] * len(columns["file"])
        for key in read:
            if key in columns or key == "label":
                read[key] += texts(column(columns, key, table, "csv"), key, table)
    if any(0 < len(values) < len(read["file"]) for values in read.values()):
        raise UserError(f"{path}: not all of its tables have the columns pool and group; give them to all or to none")
    alone: dict[str, list[str]] = {}  # mini-ImageNet's tables leave out the folder
    for file in files:
        alone.setdefault(file.rpartition("/")[2], []).append(file)
    names: dict[str, None] = {}
    for name in read["file"]:
        found = [name] if name in files else alone.get(name, [])
        if len(found) != 1:
            why = f"there are {len(found)} pictures named" if found else "there is no picture"
            raise UserError(f"{path}: {why} {name!r} in {root}; write its path from there, or remove the row")
        if found[0] in names:
            raise UserError(f"{path}: {name} stands in two rows; remove one of them")
        names[found[0]] = None
    return Labels(list(names), read["label"], read["group"] or None, read["pool"] or None)


# How they are decoded


def _pictures(
    root: Path, names: Sequence[str], files: Mapping[str, tuple[int, int]], config: Images.Config
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pictures, (n, channels, size, size), and their digests, (n, 16), in which a damaged one's is zero."""
    with _reader(root) as read:
        channels = COLOURS.get(config.colour) or _channels(names, read)
        size = config.size or (84 if channels == 3 else 28)
        numbers = channels * size * size

        def decoded(name: str) -> bytes | UserError:
            try:
                if files[name][0] > MAX_BYTES:
                    raise ValueError(f"it has {files[name][0]:,} bytes, more than {MAX_BYTES:,}")
                return _picture(read(name), channels, size, config.fit).tobytes()
            except Exception as error:  # zipfile, zlib and Pillow raise a dozen kinds on a broken file
                return UserError(
                    f"{root}: {name} is damaged ({error or type(error).__name__}); replace it, or set tasks.damaged to "
                    "skip"
                )

        def parts() -> Iterator[NDArray[np.uint8]]:
            digests = np.zeros((len(names), DIGEST), np.uint8)
            with ThreadPoolExecutor() as threads:  # decoding and resizing leave Python to other threads
                for start in range(0, len(names), AT_ONCE):
                    for row, picture in enumerate(threads.map(decoded, names[start : start + AT_ONCE]), start):
                        if isinstance(picture, bytes):
                            digests[row] = digest(picture)
                        elif config.damaged == "refuse":
                            raise picture
                        yield np.frombuffer(picture if isinstance(picture, bytes) else bytes(numbers), np.uint8)
            yield digests

        identity = (
            DECODER,
            str(root.resolve()),
            channels,
            size,
            config.fit,
            config.damaged,
            [(n, files[n]) for n in names],
        )
        shape = (len(names) * (numbers + DIGEST),)  # in one file, so that pictures and digests are there or not
        stored: NDArray[np.uint8] = cache.array(f"images-{root.stem[:40]}-{size}", identity, shape, np.uint8, parts)
    pictures = stored[: len(names) * numbers].reshape(len(names), channels, size, size)
    return pictures, stored[pictures.size :].reshape(len(names), DIGEST)


@contextmanager
def _reader(root: Path) -> Iterator[Reader]:
    if root.is_dir():
        yield lambda name: (root / name).read_bytes()
    else:
        with ZipFile(root) as archive:
            yield archive.read


def _channels(names: Sequence[str], read: Reader) -> int:
    """Return 1 where the pictures looked at are stored in grey, and else 3."""
    for name in names[:: -(-len(names) // LOOKED_AT)]:
        try:
            with Image.open(BytesIO(read(name)), formats=_formats()) as picture:
                if picture.mode not in GREY_MODES:
                    return 3
        except Exception:  # what is damaged is named when it is decoded
            continue
    return 1


def _picture(content: bytes, channels: int, size: int, fit: str) -> NDArray[np.uint8]:
    """Return a picture (channels, size, size), upright as its camera noted, on white where it is transparent.

    BILINEAR, a triangle as wide as the reduction, because it served Omniglot's pixels best of Pillow's filters.
    """
    with Image.open(BytesIO(content), formats=_formats()) as checked:
        checked.verify()  # the checksums, which decoding skips
    with Image.open(BytesIO(content), formats=_formats()) as opened:
        mode = "L" if channels == 1 else "RGB"
        opened.draft(mode, (2 * size, 2 * size))  # JPEG decodes to this size or more in a fraction of the time
        picture: Image.Image = ImageOps.exif_transpose(opened)
        return _resized(picture, channels, size, fit)


def _resized(picture: Image.Image, channels: int, size: int, fit: str) -> NDArray[np.uint8]:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # convert would clip to white
    elif picture.mode in {"I", "F"}:
        raise ValueError("its pixels are numbers of 32 bits without a range; save it with 8 or 16")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    picture = picture.convert("L" if channels == 1 else "RGB")
    square: Any = (size, size)
    if fit == "crop":
        picture = ImageOps.fit(picture, square, Image.Resampling.BILINEAR)
    else:
        picture = picture.resize(square, Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels: NDArray[np.uint8] = np.asarray(picture).reshape(size, size, channels)
    return pixels.transpose(2, 0, 1)


def _formats() -> list[str]:
    Image.init()
    return [format for format in Image.OPEN if format not in NOT_DECODED]
