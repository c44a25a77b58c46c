"""Navigation in the plane: what an episode earns after 0, 1, 2 and 3 policy gradient steps: `make navigation`.

The setting is that of MAML's paper (Finn et al., 2017, section 5.3, figure 4): a point goes to a goal that only its
rewards tell, in 100 steps; each gradient step is on twenty fresh episodes. All learners see as many tasks. The rate of
the steps at meta-test is, for each learner, the best of three on validation tasks, the mean over steps. Writes
docs/results/navigation.json, from which the README's table is made, and .svg, with paths.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt import seeds
from metaopt.executor import Loop
from metaopt.files import write_json, write_text
from metaopt.task import Pool
from metaopt.train import Budget, Outer, acted, meta_train
from metaopt_control.actor import Actor
from metaopt_control.maml_rl import MAMLPolicy
from metaopt_control.navigation import Navigation
from metaopt_control.oracle import Oracle
from metaopt_control.policy import adapted, collect, of_each, worth
from metaopt_control.randomised import Randomised
from metaopt_control.reptile_rl import ReptilePolicy

STEPS, EACH, TASKS, TEST_TASKS = 3, 20, 6000, 200
RATES = 0.1, 0.3, 1.0
CPU = torch.device("cpu")
FOLDER = Path(__file__).parent / "results"
OUTER = Outer(lr=3e-3, schedule="linear", tasks_per_step=20)
SAMPLER = Navigation(Navigation.Config())
SPEC = SAMPLER.spec(1, EACH, EACH)


@dataclass(frozen=True)
class Contestant:
    """A learner, what it is trained with, and whether it adapts."""

    cls: type[Actor]
    config: Mapping[str, Any] = field(default_factory=dict)
    adapts: bool = True


CONTESTANTS = {
    "maml_rl": Contestant(MAMLPolicy),
    "reptile_rl": Contestant(ReptilePolicy),
    "randomised, fine-tuned": Contestant(Randomised),
    "oracle": Contestant(Oracle, adapts=False),
}


def trained(contestant: Contestant, n_tasks: int, seed: int = 0) -> Actor:
    """Return a learner that was meta-trained on so many tasks."""
    torch.manual_seed(seeds.derive(seed, "weights"))
    learner = contestant.cls(SPEC, nn.Identity(), contestant.cls.Config(**contestant.config))
    meta_train(learner, SAMPLER, OUTER, Budget(tasks=n_tasks), Loop(), seed=seed, device=CPU)
    return learner


def at_rate(learner: Actor, rate: float) -> Actor:
    """Return the learner, its parameters shared, that takes `STEPS` steps at this rate, each on as many episodes."""
    other = learner.with_spec(replace(SPEC, n_shot=STEPS * EACH))
    other.config = replace(learner.config, inner_lr=rate, test_steps=STEPS)
    assert isinstance(other, Actor)
    return other


def returns(learner: Actor, pool: Pool, n_tasks: int, seed: int = 0) -> Tensor:
    """Return what an episode earns in each task, on average, by the number of steps before it, (n_tasks, STEPS + 1)."""
    outcomes = acted(learner, SAMPLER, pool, n_tasks, draw=seeds.generator(seed, "evaluate", pool), device=CPU)
    return torch.cat([outcome.predictions for outcome in outcomes]).unflatten(1, (-1, EACH)).mean(2)


def run(contestant: Contestant, n_tasks: int, n_test: int, seed: int = 0) -> tuple[Actor, dict[str, Any]]:
    """Meta-train a contestant; return it at its best rate, and its row of the table."""
    started = time.process_time()
    learner = trained(contestant, n_tasks, seed)
    seconds, rate = time.process_time() - started, None
    if contestant.adapts:
        rate = max(RATES, key=lambda rate: float(returns(at_rate(learner, rate), "validation", 64, seed)[:, 1:].mean()))
        learner = at_rate(learner, rate)
    found = returns(learner, "test", n_test, seed)[:, : STEPS + 1 if contestant.adapts else 1]
    told = {
        str(steps): {"mean": float(one.mean()), "ci95": 1.96 * float(one.std()) / math.sqrt(len(one))}
        for steps, one in enumerate(found.T)
    }
    return learner, {"tasks": n_tasks, "cpu_seconds": round(seconds), "rate": rate, "returns": told}


def paths(learner: Actor, seed: int = 0) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield the goal of each of a few test tasks, and three paths before the steps and after each of them."""
    tasks = SAMPLER.environments("test", SPEC, 4, seeds.generator(seed, "paths"))
    weights, draw = of_each(learner.policy.weights(), len(tasks)), seeds.generator(seed, "chance")
    seen = []
    for _ in range(STEPS + 1):
        episodes = collect(learner.policy, weights, tasks, EACH, draw)
        seen.append(episodes.seen[:, :3].masked_fill(~episodes.counts[:, :3, :, None], math.nan))
        gain = worth(episodes, learner.config.discount)
        weights = adapted(learner.policy, weights, episodes, gain, learner.config.inner_lr)
    for task, goal in enumerate(tasks.told):
        yield goal, [of_step[task] for of_step in seen]


def picture(learners: Mapping[str, Actor]) -> str:
    """Return paths as an SVG picture: a row for each learner, a column for each task, a colour for each step."""
    side, left, top = 150, 150, 30
    colours = ["#bbbbbb", "#9ecae1", "#4292c6", "#08519c"]
    parts = []
    for number, colour in enumerate(colours):
        x = left + 150 * number
        parts.append(f'<path d="M{x} 14h24" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 30}" y="18">{number} step{"" if number == 1 else "s"}</text>')
    for row, (name, learner) in enumerate(learners.items()):
        parts.append(f'<text x="8" y="{top + row * (side + 10) + side / 2}" font-size="11">{name}</text>')
        for column, (goal, by_step) in enumerate(paths(learner)):
            x0, y0 = left + column * (side + 10), top + row * (side + 10)
            middle = torch.tensor([x0 + side / 2, y0 + side / 2])
            scale = torch.tensor([1.0, -1.0]) * side / 1.6
            parts.append(f'<rect x="{x0}" y="{y0}" width="{side}" height="{side}" fill="none" stroke="#ddd"/>')
            parts.append(f'<clipPath id="c{row}{column}"><rect x="{x0}" y="{y0}" width="{side}" height="{side}"/>'
                         "</clipPath>")  # fmt: skip
            for colour, of_step in zip(colours, by_step, strict=True):
                for path in of_step:
                    places = (middle + scale * path[~path.isnan().any(1)]).tolist()
                    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                    parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-opacity="0.8" '
                                 f'clip-path="url(#c{row}{column})"/>')  # fmt: skip
            x, y = (middle + scale * goal).tolist()
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#d62728"/>')
    height = top + len(learners) * (side + 10)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 4 * (side + 10)} {height}" '
        f'font-family="sans-serif" font-size="13" fill="#444">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def main() -> None:
    """Measure all, and write what came of it."""
    torch.set_num_threads(1)
    learners, rows = {}, {}
    for name, contestant in CONTESTANTS.items():
        learners[name], rows[name] = run(contestant, TASKS, TEST_TASKS)
        print(f"{name:<24} {rows[name]}", flush=True)  # noqa: T201
    write_json(FOLDER / "navigation.json", rows)
    write_text(
        FOLDER / "navigation.svg", picture({name: learners[name] for name in ("maml_rl", "randomised, fine-tuned")})
    )


if __name__ == "__main__":
    main()
