"""Which executor is the fastest, learner by learner, and whether `executor: auto` takes it.

    make bench-executors                                   # of every learner: ten minutes of an idle machine
    python benchmarks/executors.py pictures protonet maml  # of some, on pictures, on vectors or on curves
    python benchmarks/executors.py pictures --width 64 --pool max

A step of meta-training on 4 tasks with a learner's defaults, recorded beforehand where the executor records. They take
turns; numbers are milliseconds of CPU time a task, the least of all turns. `lost` is how many times as long as the
fastest what `auto` takes needs.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn import Module

from metaopt import executor, plugins
from metaopt.errors import UserError
from metaopt.executor import EXECUTORS, choose
from metaopt.learner import Learner
from metaopt.process import on_one_core
from metaopt.task import TaskSampler
from metaopt.train import draw_batch
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_tasks.gaussian import Gaussian
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.sinusoid import Sinusoid

N_TASKS, TURNS = 4, 5
EXAMPLES: dict[str, tuple[TaskSampler, tuple[int, int, int], type[Module], Any]] = {
    "pictures": (Glyphs(Glyphs.Config(train_classes=50)), (5, 1, 15), Conv4, Conv4.Config(width=32, pool="stride")),
    "vectors": (Gaussian(Gaussian.Config()), (5, 1, 15), MLP, MLP.Config()),
    "curves": (Sinusoid(Sinusoid.Config()), (1, 10, 10), MLP, MLP.Config()),
}


def step_of(cls: type[Learner], examples: str, name: str) -> Callable[[], object]:
    """Return a step of meta-training under the executor of that name."""
    sampler, size, encoder, config = EXAMPLES[examples]
    spec = sampler.spec(*size)
    torch.manual_seed(0)
    learner = cls(spec, encoder(spec.x_shape, config), cls.Config()).train()
    batch = draw_batch(learner, spec, sampler, N_TASKS, torch.Generator().manual_seed(0))
    way = choose(name, spec)
    return lambda: learner.outer_step(batch, way, lambda gradients: None)


def milliseconds(cls: type[Learner], examples: str) -> dict[str, float]:
    """Return the CPU time of a task by executor, of those that can run the learner."""
    steps = {}
    for name in EXECUTORS:
        step = step_of(cls, examples, name)
        try:
            for _ in range(3):
                step()
        except RuntimeError:  # vmap cannot run everything
            continue
        steps[name] = step
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(TURNS):
        for name, step in steps.items():
            started = time.process_time()
            step()
            best[name] = min(best[name], 1000 * (time.process_time() - started) / N_TASKS)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXAMPLES)}, and of learners; all where there are none")
    parser.add_argument("--width", type=int, default=32, help="of the convolutions")
    parser.add_argument("--pool", default="stride", choices=["stride", "max"], help="how they halve a picture")
    options = parser.parse_args()
    sampler, size, encoder, config = EXAMPLES["pictures"]
    EXAMPLES["pictures"] = sampler, size, encoder, replace(config, width=options.width, pool=options.pool)
    on_one_core()
    executor.RECORD_AFTER = executor.RECORD_LOOP_AFTER = 2
    asked = set(options.names)
    print(f"{'ms a task':<28}" + "".join(f"{name:>13}" for name in EXECUTORS) + f"{'auto':>13} {'lost':>6}")
    for examples in [one for one in EXAMPLES if one in asked] or EXAMPLES:
        spec = EXAMPLES[examples][0].spec(*EXAMPLES[examples][1])
        for name, cls in sorted(plugins.load().learners.items()):
            learns = spec.kind in cls.kinds and cls.trains_on == "tasks" and cls.supports == "examples"
            if not learns or (asked - EXAMPLES.keys() and name not in asked):
                continue
            try:
                found, auto = milliseconds(cls, examples), choose("auto", spec).name
            except UserError:  # an encoder does not suit every learner
                continue
            cells = "".join(f"{found[one]:>13.2f}" if one in found else f"{'–':>13}" for one in EXECUTORS)
            print(
                f"{examples + ', ' + name:<28}{cells}{auto:>13} {found[auto] / min(found.values()):>6.2f}", flush=True
            )


if __name__ == "__main__":
    main()
