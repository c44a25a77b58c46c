"""Expected calibration error (Naeini, Cooper & Hauskrecht, AAAI 2015; Guo et al., 2017, arXiv:1706.04599)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt import tune
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import Kind


class Calibration(MetaObjective):
    """How far confidence is from accuracy: |accuracy − mean confidence| in bins of confidence, weighted by their size.

    Taken task by task, as every objective is. With few queries a bin holds few, so that even perfect probabilities
    score above 0: compare learners by it, on the same tasks. With `temperature: fitted` scores are first divided by one
    number, which is fitted on train tasks, as Guo et al. do on held-out examples.
    """

    name = "calibration"
    direction = "minimize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 1.0
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        bins: int = tune.integer(2, 50, default=15)
        temperature: str = tune.choice("none", "fitted")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.fits_temperature = config.temperature == "fitted"

    def score(self, outcome: Outcome) -> Tensor:
        """Return the expected calibration error of each task, (n_tasks,)."""
        scores = outcome.predictions.double() / outcome.temperature
        confidence, answer = scores.softmax(-1).max(-1)  # (n_tasks, n_queries)
        gap = (answer == outcome.query_y).double() - confidence
        bins = self.config.bins
        filled = confidence.nan_to_num()  # a task that has no confidence has no score, and counts as the worst
        bin_of = (filled * bins).ceil().clamp(1, bins).long() - 1  # (0, 1/bins], (1/bins, 2/bins], …
        sums = torch.zeros(len(gap), bins, dtype=gap.dtype, device=gap.device).scatter_add(1, bin_of, gap)
        return sums.abs().sum(1) / gap.shape[1]
