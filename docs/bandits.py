"""RL² beside the rules that are made for bandits, on the same test tasks: `make bandits`.

The setting is that of RL²'s paper (Duan et al., 2016, table 1): arms that pay 1 or 0, by chances uniform in [0, 1];
all that is earned counts. Thompson sampling, UCB1 and greedy play each at the setting that is best on train tasks: the
first guess of how often an arm has paid and has not, or the weight of the bonus. Writes docs/results/bandits.json,
from which the README's table is made: what a pull earns, and by how much more or less that is than the best rule's.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from metaopt import seeds
from metaopt.executor import Loop
from metaopt.files import write_json
from metaopt.process import on_one_core
from metaopt.task import Pool
from metaopt.train import Budget, Outer, acted, meta_train
from metaopt_control.bandits import Bandits
from metaopt_control.rl2 import RL2

FILE = Path(__file__).parent / "results" / "bandits.json"
CPU = torch.device("cpu")
SIZES = {"5x10": (5, 10), "10x10": (10, 10), "5x100": (5, 100), "10x100": (10, 100)}  # arms, pulls
TUNING_TASKS, TEST_TASKS = 10_000, 2_000
CONFIG: dict[str, Any] = {"hidden": 48, "discount": 0.95, "epochs": 4}
OUTER = Outer(lr=5e-3, schedule="linear", tasks_per_step=128, clip=1.0)

Rule = Callable[[Tensor, Tensor, int, Generator], Tensor]
"""What an arm is worth (n_tasks, n_arms), by how often each has paid and has not, and the number of the pull."""


def thompson(paid: float, failed: float) -> Rule:
    """Draw a chance for each arm from what is believed of it (Thompson, 1933), which is a beta distribution."""

    def worth(successes: Tensor, failures: Tensor, pull: int, draw: Generator) -> Tensor:
        one = torch._standard_gamma(successes + paid, generator=draw)
        other = torch._standard_gamma(failures + failed, generator=draw)
        return one / (one + other)

    return worth


def ucb1(weight: float) -> Rule:
    """Take the mean and a bonus for what has been pulled little (Auer, Cesa-Bianchi & Fischer, 2002)."""

    def worth(successes: Tensor, failures: Tensor, pull: int, draw: Generator) -> Tensor:
        pulls = successes + failures
        bonus = weight * (math.log(max(pull, 1)) / pulls.clamp(min=1)).sqrt()
        return (successes / pulls.clamp(min=1) + bonus).masked_fill(pulls == 0, math.inf)

    return worth


def greedy(paid: float, failed: float) -> Rule:
    """Take what is expected of each arm, after a first guess."""
    return lambda successes, failures, pull, draw: (successes + paid) / (successes + failures + paid + failed)


RULES: dict[str, list[tuple[str, Rule]]] = {
    "Thompson sampling": [(f"{a:g}, {b:g}", thompson(a, b)) for a, b in product((0.5, 1, 2, 4), (0.5, 1, 2, 4, 8))],
    "UCB1": [(f"{weight:g}", ucb1(weight)) for weight in (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2**0.5)],
    "greedy": [(f"{a:g}, {b:g}", greedy(a, b)) for a, b in product((0.1, 0.5, 1, 2, 4, 8), (0.1, 0.5, 1, 2, 4))],
}


def played(rule: Rule, chances: Tensor, pulls: int) -> Tensor:
    """Return what a pull earns in each task, (n_tasks,). Which of equals is pulled is drawn."""
    draw = seeds.generator(0, "chance")
    successes, failures = torch.zeros_like(chances), torch.zeros_like(chances)
    for pull in range(pulls):
        worth = rule(successes, failures, pull, draw)
        best = worth >= worth.amax(1, keepdim=True)
        arm = torch.rand(chances.shape, generator=draw).masked_fill(~best, -1).argmax(1, keepdim=True)  # (n_tasks, 1)
        paid = (torch.rand(len(chances), 1, generator=draw) < chances.gather(1, arm)).float()
        successes.scatter_add_(1, arm, paid)
        failures.scatter_add_(1, arm, 1 - paid)
    return successes.sum(1) / pulls


def rl2(sampler: Bandits, pulls: int, cpu_seconds: float, seed: int) -> Tensor:
    """Return what a pull earns in each test task, (n_tasks,), after so long a meta-training."""
    torch.manual_seed(seeds.derive(seed, "weights"))
    learner = RL2(sampler.spec(1, pulls - 1, 1), nn.Identity(), RL2.Config(**CONFIG))
    meta_train(learner, sampler, OUTER, Budget(cpu_seconds=cpu_seconds), Loop(), seed=seed, device=CPU)
    outcomes = acted(learner, sampler, "test", TEST_TASKS, draw=seeds.generator(0, "evaluate", "test"), device=CPU)
    return torch.cat([outcome.predictions.mean(1) for outcome in outcomes])


def chances(sampler: Bandits, pool: Pool, n_tasks: int) -> Tensor:
    """Return the tasks that `rl2` is scored on, or others to choose settings by, (n_tasks, n_arms)."""
    return sampler.environments(pool, sampler.spec(1, 1, 1), n_tasks, seeds.generator(0, "evaluate", pool)).told


def main() -> None:
    """Measure all sizes, or those asked for, and write what came of it; the others' rows are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=900, help="of CPU time, for a hundred pulls; a quarter for ten"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="ARMSxPULLS")
    options = parser.parse_args()
    on_one_core()
    found: dict[tuple[int, int], dict[str, Any]] = {}
    if options.sizes != list(SIZES):
        before = json.loads(FILE.read_text(encoding="utf-8"))
        if before["seeds"] != options.seeds:
            parser.error(f"{FILE} is of {before['seeds']} seeds; give as many, or measure all sizes")
        found = {(row["arms"], row["pulls"]): row for row in before["rows"]}
    for arms, pulls in (SIZES[size] for size in options.sizes):
        sampler = Bandits(Bandits.Config(arms=arms))
        tuning, test = chances(sampler, "train", TUNING_TASKS), chances(sampler, "test", TEST_TASKS)
        earned, settings = dict[str, Tensor](), dict[str, str]()
        for name, rules in RULES.items():
            settings[name], rule = max(rules, key=lambda one: float(played(one[1], tuning, pulls).mean()))
            earned[name] = played(rule, test, pulls)
        best = max(earned, key=lambda name: float(earned[name].mean()))
        started, seconds = time.process_time(), options.seconds / (1 if pulls > 10 else 4)
        runs = [rl2(sampler, pulls, seconds, seed) for seed in range(options.seeds)]
        spent = (time.process_time() - started) / options.seeds
        earned["rl2"] = torch.stack(runs).mean(0)
        apart = earned["rl2"] - earned[best]
        found[arms, pulls] = row = {
            "arms": arms,
            "pulls": pulls,
            "earned": {name: {"mean": float(one.mean()), "ci95": _ci(one)} for name, one in earned.items()},
            "settings": settings,
            "best": best,
            "difference": {"mean": float(apart.mean()), "ci95": _ci(apart)},
            "cpu_seconds": round(spent),
        }
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
        write_json(FILE, {"test_tasks": TEST_TASKS, "seeds": options.seeds, "rows": list(found.values())})


def _ci(one: Tensor) -> float:
    return 1.96 * float(one.std()) / math.sqrt(len(one))


if __name__ == "__main__":
    main()
