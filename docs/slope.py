"""Trained on gentle ground, tested uphill: what an episode earns before and after policy gradient steps: `make slope`.

A cart that balances a pole learns on slopes of up to 5 degrees and is tested on 22.5 to 30, heavier and with more
friction (`metaopt_control.slope`). All learners see as many tasks. Each gradient step at meta-test is on twenty fresh
episodes, at the best of three rates on validation tasks, which lie between. The ceiling is an oracle that was trained
on the test's range; beside it stands the oracle that was trained as the others were. Writes docs/results/slope.json,
from which the README's table is made: of the gap between the policy that does not adapt and the ceiling, the share that
is closed on the same tasks, with a bootstrap interval over tasks of the mean over seeds, and for each seed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from acting import Contestant, Setting, measured
from metaopt.task import Pool, TaskSpec
from metaopt_control.maml_rl import MAMLPolicy
from metaopt_control.oracle import Oracle
from metaopt_control.randomised import Randomised
from metaopt_control.reptile_rl import ReptilePolicy
from metaopt_control.slope import Carts, Slope

RESAMPLES = 5000


class Steep(Slope):
    """The same, trained on what the others are tested on."""

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Carts:
        return super().environments("test" if pool == "train" else pool, spec, n_tasks, generator)


SETTING = Setting(Slope(Slope.Config()), each=20, steps=5, rates=(0.2, 0.5, 1.0), n_tasks=3000)
BASE, CEILING = "randomised", "oracle, trained on the test's range"
CONTESTANTS = {
    "maml_rl": Contestant(MAMLPolicy, {"inner_steps": 3, "inner_lr": 0.5}, n_shot=30),
    "reptile_rl": Contestant(ReptilePolicy, {"inner_steps": 3, "inner_lr": 0.5}, n_shot=30),
    "randomised, fine-tuned": Contestant(Randomised),
    BASE: Contestant(Randomised, adapts=False),
    "oracle": Contestant(Oracle, adapts=False),
    CEILING: Contestant(Oracle, adapts=False, sampler=Steep(Slope.Config())),
}


def closed(found: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Any]]:
    """Return of each that adapts the share of the gap that its last step has closed."""
    base, ceiling = found[BASE][..., 0], found[CEILING][..., 0]  # (n_seeds, n_tasks)
    n_seeds, n_tasks = base.shape
    draws = torch.randint(n_tasks, (RESAMPLES, n_tasks), generator=Generator().manual_seed(0))
    rows = {}
    for name, contestant in CONTESTANTS.items():
        if contestant.adapts:
            gained, gap = found[name][..., -1] - base, ceiling - base
            shares = [gained[seed].mean() / gap[seed].mean() for seed in range(n_seeds)]
            resampled = gained.mean(0)[draws].mean(1) / gap.mean(0)[draws].mean(1)
            low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
            share = float(gained.mean() / gap.mean())
            rows[name] = {
                "closed": {"mean": share, "low": low, "high": high, "by_seed": [float(one) for one in shares]}
            }
    return rows


def main() -> None:
    """Measure all, and write what came of it."""
    measured("slope", SETTING, CONTESTANTS, closed)


if __name__ == "__main__":
    main()
