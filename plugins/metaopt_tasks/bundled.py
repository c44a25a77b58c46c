"""The small data sets that come with scikit-learn (Pedregosa et al., 2011, arXiv:1201.0490): nothing to download."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.errors import InputError, UserError, unknown
from metaopt.pools import ClassSampler, Labels, Split, apart, digest, divide, rows_of
from metaopt.preprocessing import Preprocessing

DATA = ("digits", "iris", "wine", "breast_cancer")
DEFAULT_SPLIT = "40/30/30"  # of ten digits four, three and three, where 60/20/20 would leave two


class Scaled(Preprocessing):
    """Scales the numbers of such data as the study did."""

    def make(self, examples: Any) -> Tensor:
        """Return examples (n, features)."""
        raw = np.asarray(examples, np.float64)
        if raw.ndim != 2 or raw.shape[1:] != self.x_shape:
            raise InputError(f"the examples are {raw.shape} and the model takes (n, {self.x_shape[0]})")
        return torch.from_numpy((raw - self.arrays["shift"]) / self.arrays["scale"]).float()


class Bundled(ClassSampler):
    """Tell handwritten digits apart, or flowers, wines or tumours: vectors, (features,).

    Classes are few: only the ten digits make three pools of two or more.
    """

    name = "sklearn_data"
    made_by = Scaled

    @dataclass(frozen=True)
    class Config(Split):
        """Which data set, and how its classes are divided into pools; where nothing says how, 40/30/30."""

        data: str = "digits"
        """digits (8 by 8 pixels from 0 to 1), or iris, wine or breast_cancer (standardised by the train classes)."""

    config: Config

    def __init__(self, config: Config) -> None:
        if not (config.split or config.train or config.validation or config.test):
            config = replace(config, split=DEFAULT_SPLIT)
        super().__init__(config)
        if config.data not in DATA:
            raise UserError(f"tasks.data: {unknown('data set', config.data, DATA)}")
        loaded = load(config.data)
        x = loaded.data  # (n, features)
        names = [f"{config.data} row {row}" for row in range(len(x))]
        pools = divide(Labels(names, [str(loaded.target_names[label]) for label in loaded.target]), config)
        pools = apart(pools, np.stack([digest(row.tobytes()) for row in x]), names, config)
        if not len(train := rows_of(pools["train"])):
            raise UserError(f"the train pool has no classes of {config.data}; name some in tasks.train or tasks.split")
        digits = config.data == "digits"
        shift = np.zeros(x.shape[1]) if digits else x[train].mean(0)
        self.scaled = Scaled(x.shape[1:], arrays={"shift": shift, "scale": shift + 16 if digits else x[train].std(0)})
        self.fill(self.scaled(x), pools)

    def preprocessing(self, x_shape: tuple[int, ...]) -> Preprocessing:
        return self.scaled


def load(data: str) -> Any:
    """Return one of the data sets as scikit-learn gives it."""
    from sklearn import datasets  # type: ignore[import-untyped] # here, as a second is long for `metaopt plugin list`

    return getattr(datasets, f"load_{data}")()
