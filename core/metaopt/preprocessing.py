"""From examples as users have them to what learners take: fitted in a study, kept with its winner, the same in both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.errors import InputError, UserError

Takes = Literal["arrays", "pictures", "rows", "texts"]


@dataclass(frozen=True, eq=False)
class Given:
    """Examples as a user's files hold them."""

    names: Sequence[str]
    """What each is called: a file, a row."""
    examples: Sequence[Any] | NDArray[Any]
    labels: Sequence[str] | None
    """The class of each; None where it was not asked for."""


class Preprocessing:
    """What a task sampler does to a user's examples before a learner sees them; here: arrays, taken as they are.

    All it knows is the shape of what it makes, `settings`, which are plain JSON, and `arrays`: so it is saved without a
    pickle. A sampler of other data names a class of its own, which gives `make` and `read`, and uses it itself.
    """

    takes: Takes = "arrays"
    """What `make` is given."""

    def __init__(
        self,
        x_shape: tuple[int, ...],
        settings: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Take what was saved. Raises KeyError, TypeError or ValueError where that is not of this class."""
        self.x_shape, self.settings, self.arrays = x_shape, dict(settings or {}), dict(arrays or {})

    def __call__(self, examples: Any) -> Tensor:
        """Return examples (n, *x_shape) as learners take them, float32. A tensor is that already.

        Raises InputError where they are not what the model takes.
        """
        if isinstance(examples, Tensor):
            if examples.shape[1:] != self.x_shape:
                raise InputError(f"the tensor is {tuple(examples.shape)} and the model takes (n, {self._numbers}); "
                                 "give examples as the study's task sampler does")  # fmt: skip
            return examples.float()
        made = self.make(examples)
        if not made.isfinite().all():
            row = int(torch.nonzero(~made.flatten(1).isfinite().all(1))[0])
            raise InputError(f"example {row} holds NaN, infinity or a number too large; mend it or leave it out")
        return made.float().div_(255) if made.dtype == torch.uint8 else made

    def make(self, examples: Any) -> Tensor:
        """Return examples that are no tensor as one: (n, *x_shape) float32, or uint8 of which 255 becomes 1."""
        return self.shaped(examples)

    def shaped(self, examples: Any) -> Tensor:
        """Return an array, or rows of numbers, as (n, *x_shape) float32; bytes stay such where the study's were."""
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(examples)
                if not (array.dtype == np.uint8 and self.settings.get("bytes")):
                    array = array.astype(np.float32)
        except (ValueError, TypeError) as error:
            raise InputError(f"the examples are no array of numbers ({error}); give (n, {self._numbers})") from None
        shape = array.shape[1:]
        if len(self.x_shape) == 3:
            channels, height, width = self.x_shape
            if shape == (height, width, channels) and shape != self.x_shape:
                array = array.transpose(0, 3, 1, 2)
            elif shape == (height, width) and channels == 1:
                array = array[:, None]
        if array.shape[1:] != self.x_shape or not len(array):
            raise InputError(f"the examples are {array.shape} and the model takes (n, {self._numbers}), one or more")
        return torch.from_numpy(np.ascontiguousarray(array))

    def read(self, path: Path, *, labelled: bool) -> Given:
        """Return the examples in a folder or file. Raises UserError where it holds none, or lacks labels asked for."""
        raise UserError(
            f"{path}: this model takes arrays {self.x_shape}, of which no file is read; use metaopt.load in Python"
        )

    @property
    def _numbers(self) -> str:
        return ", ".join(map(str, self.x_shape))
