"""Navigation in the plane: what an episode earns after 0, 1, 2 and 3 policy gradient steps: `make navigation`.

The setting is that of MAML's paper (Finn et al., 2017, section 5.3, figure 4): a point goes to a goal that only its
rewards tell, in 100 steps; each gradient step is on twenty fresh episodes. All learners see as many tasks. The rate of
the steps at meta-test is, for each learner, the best of three on validation tasks, the mean over steps. Writes
docs/results/navigation.json, from which the README's table is made, and .svg, with paths.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from acting import FOLDER, Contestant, Setting, measured
from drawing import svg
from metaopt import seeds
from metaopt.files import write_text
from metaopt_control.actor import Actor
from metaopt_control.maml_rl import MAMLPolicy
from metaopt_control.navigation import Navigation
from metaopt_control.oracle import Oracle
from metaopt_control.policy import Mind, adapted, collect
from metaopt_control.randomised import Randomised
from metaopt_control.reptile_rl import ReptilePolicy

SETTING = Setting(Navigation(Navigation.Config()), each=20, steps=3, rates=(0.1, 0.3, 1.0), n_tasks=6000)
CONTESTANTS = {
    "maml_rl": Contestant(MAMLPolicy),
    "reptile_rl": Contestant(ReptilePolicy),
    "randomised, fine-tuned": Contestant(Randomised),
    "oracle": Contestant(Oracle, adapts=False),
}


def paths(learner: Actor, seed: int = 0) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield the goal of each of a few test tasks, and three paths before the steps and after each of them."""
    spec = SETTING.sampler.spec(1, SETTING.each, SETTING.each)
    tasks = SETTING.sampler.environments("test", spec, 4, seeds.generator(seed, "paths"))
    mind, draw = learner.mind(tasks), seeds.generator(seed, "chance")
    seen = []
    for _ in range(SETTING.steps + 1):
        lessons = collect(learner.policy, mind, tasks, SETTING.each, draw, learner.config.discount)
        path = lessons.seen.masked_fill(~lessons.counts[..., None], math.nan)  # (n_tasks, each * horizon, 2)
        seen.append(path.unflatten(1, (SETTING.each, -1))[:, :3])
        mind = Mind(adapted(learner.policy, mind.weights, lessons, learner.config.inner_lr))
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
    return svg(left + 4 * (side + 10), top + len(learners) * (side + 10), parts)


def main() -> None:
    """Measure all, and write what came of it."""
    learners = measured("navigation", SETTING, CONTESTANTS)
    write_text(
        FOLDER / "navigation.svg", picture({name: learners[name] for name in ("maml_rl", "randomised, fine-tuned")})
    )


if __name__ == "__main__":
    main()
