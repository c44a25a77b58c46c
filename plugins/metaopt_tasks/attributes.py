"""Zero-shot tasks from a user's file: classes that are described by numbers, and examples only of others.

The setting of Lampert, Nickisch & Harmeling (2009, "Learning to detect unseen object classes by between-class attribute
transfer"), in tasks: the support set holds a row of attributes for each class, and the queries are its examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.pools import Class, ClassSampler, Pools, Split
from metaopt.task import POOLS, ClassPool, TaskSpec
from metaopt_tasks.arrays import Arrays, read_arrays
from metaopt_tasks.files import find


class Attributes(ClassSampler):
    """Tell classes apart by their descriptions alone, rows of an array of attributes, or of features of a text.

    X and y are those of the sampler `arrays`. Row i of the attributes describes the class that y calls i, or else the
    one that the array of class names calls so in its row i.
    """

    name = "attributes"
    supports = "descriptions"

    @dataclass(frozen=True)
    class Config(Split):
        """Which file, what its arrays are called, and how classes are divided into pools."""

        file: str = ""
        """A .npz or .safetensors file with X, y and attributes, and perhaps classes, group and pool."""
        x: str = "X"
        y: str = "y"
        attributes: str = "attributes"
        """(n_classes, n_attributes)"""
        classes: str = "classes"
        """(n_classes,) names, where y holds such."""
        group: str = "group"
        pool: str = "pool"

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        path = find("file", config.file, "a .npz or .safetensors file")
        if path.suffix not in {".npz", ".safetensors"}:
            raise UserError(f"{path} is no file of several arrays; give one that ends in .npz or .safetensors")
        shared = {key: value for key, value in asdict(config).items() if key not in {"attributes", "classes"}}
        labelled = Arrays(Arrays.Config(**shared))
        self._rows = _rows(path, config)
        self.n_attributes = len(next(iter(self._rows.values())))
        self.fill(labelled.pools["train"].sources, labelled.classes)

    def fill(self, examples: Tensor, pools: Pools) -> None:
        super().fill(examples, pools)
        for pool in POOLS:
            for c in self.classes[pool]:
                if c.name not in self._rows:
                    what = f"{self.config.file}: no row of {self.config.attributes}"
                    raise UserError(f"{what} describes the class {c.name!r}; add one")
        self.pools = {pool: _described(self.pools[pool], self.classes[pool], self._rows) for pool in POOLS}

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        if n_shot != 1:
            raise UserError(f"a class has one description, and n_shot is {n_shot}; set tasks.n_shot to 1")
        x_shape, n_train = tuple(self.pools["train"].sources.shape[1:]), len(self.classes["train"])
        return TaskSpec(self.kind, x_shape, n_way, n_shot, n_query, 1, n_train, (self.n_attributes,))


def _rows(path: Path, config: Attributes.Config) -> dict[str, Tensor]:
    """Return the description of each class by its name, (n_attributes,) each."""
    arrays = {
        name: np.asarray(given.float() if isinstance(given, Tensor) and given.is_floating_point() else given)
        for name, given in read_arrays(path, [config.attributes], [config.classes]).items()
    }
    given = arrays[config.attributes]
    if given.ndim != 2 or not given.size or given.dtype.kind not in "iufb" or not np.isfinite(given).all():
        raise UserError(
            f"{path}: {config.attributes} is {given.shape} of {given.dtype}; give finite numbers, (classes, attributes)"
        )
    names_of_rows = [str(name) for name in arrays.get(config.classes, range(len(given)))]
    if len(set(names_of_rows)) != len(given):
        raise UserError(
            f"{path}: {config.classes} has {len(set(names_of_rows))} different names and {config.attributes} "
            f"{len(given)} rows; give a name for each row"
        )
    return dict(zip(names_of_rows, torch.from_numpy(given.astype(np.float32)), strict=True))


def _described(pool: ClassPool, classes: Sequence[Class], rows: Mapping[str, Tensor]) -> ClassPool:
    """Return a pool whose support sets hold the rows that describe its classes."""
    descriptions = torch.stack([rows[c.name] for c in classes]) if classes else None
    members = [torch.from_numpy(c.rows) for c in classes]
    groups = None if pool.groups is None else pool.groups.tolist()
    return ClassPool(pool.sources, members, groups, descriptions)
