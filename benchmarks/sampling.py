"""How fast tasks are drawn, beside the samplers of easyfsl and learn2learn, from the same pictures in one run.

    make bench

Glyphs of 28 x 28 pixels, 1,000 classes of 20, on one thread. `memory`: all pictures are held as tensors, for the peers
as float32, so that indexing is all they do. `rotations`: with quarter turns as further classes; easyfsl has none.
`disk`: a folder of PNG files, which the peers decode again for each task, as their own folder data sets do, and metaopt
once, into its cache, before the clock starts. Numbers are tasks a second of CPU time, the best of five repetitions.
The last line is the share of a meta-training step that drawing its tasks takes, for a small network at that.

A peer that is not installed, or does not import, is left out and named: learn2learn 0.2.0 does not build from the index
on Python 3.11, but from its source, by `python setup.py build_ext --inplace` with `cython<3`.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaopt.executor import Loop
from metaopt.learner import Gradients
from metaopt.task import ClassPool, TaskSampler
from metaopt.train import Outer
from metaopt_encoders.conv4 import Conv4
from metaopt_metric.protonet import ProtoNet
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.images import Images
from peers import TURNS, Held, Task, easyfsl_tasks, import_torchvision, learn2learn_tasks, write_pictures

SIZES = ((5, 1, 15), (20, 5, 15))
SECONDS, REPEATS = 0.5, 5
TASKS_A_CALL = 16  # as meta-training draws them
N_CLASSES, N_EXAMPLES = 1000, 20

Draw = Callable[[], int]
"""Draws some tasks and returns how many."""


def main() -> None:
    torch.set_num_threads(1)
    pool = Glyphs(Glyphs.Config(train_classes=N_CLASSES, examples=N_EXAMPLES)).pools["train"]
    peers, absent = {}, {}
    for name, peer in (("easyfsl", easyfsl), ("learn2learn", learn2learn)):
        try:
            import_torchvision()
            peers[name] = peer(pool)
        except ImportError as error:
            absent[name] = str(error)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["METAOPT_CACHE"] = str(Path(scratch) / "cache")
        root = Path(scratch) / "pictures"
        write_pictures(pool, root)
        print(f"{'':<10} {'tasks':<14} {'metaopt':>9}" + "".join(f"{name:>12} {'ratio':>6}" for name in peers))
        for case in ("memory", "rotations", "disk"):
            mine = metaopt(pool, case, root)
            for size in SIZES:
                ours = rate(mine(*size))
                line = f"{case:<10} {'{}-way {}-shot'.format(*size):<14} {ours:>9,.0f}"
                for peer in peers.values():
                    theirs = rate(draw) if (draw := peer(case, root, *size)) else None
                    line += f"{theirs:>12,.0f} {ours / theirs:>6,.1f}" if theirs else f"{'–':>12} {'–':>6}"
                print(line)
    print(f"of a step of ProtoNet on Conv-4, width 32, 5-way 1-shot, drawing takes {share_of_a_step(pool):.1%}")
    for name, why in absent.items():
        print(f"{name} is left out: {why}")


def rate(draw: Draw) -> float:
    """Return tasks a second of CPU time, the best of a few repetitions."""
    draw()
    best = 0.0
    for _ in range(REPEATS):
        started, n_tasks = time.process_time(), 0
        while time.process_time() - started < SECONDS:
            n_tasks += draw()
        best = max(best, n_tasks / (time.process_time() - started))
    return best


def share_of_a_step(pool: ClassPool) -> float:
    spec = Glyphs(Glyphs.Config()).spec(5, 1, 15)
    learner = ProtoNet(spec, Conv4(spec.x_shape, Conv4.Config(width=32)), ProtoNet.Config())
    generator, executor, outer = torch.Generator().manual_seed(0), Loop(), Outer()
    optimizer = outer.build(list(learner.parameters()))

    def update(gradients: Gradients) -> None:
        for name, parameter in learner.named_parameters():
            parameter.grad = gradients[name]
        optimizer.step()

    drawing = stepping = 0.0
    for _ in range(50):
        started = time.process_time()
        batch = pool.draw(spec, outer.tasks_per_step, generator)
        drawn = time.process_time()
        learner.outer_step(batch, executor, update)
        drawing, stepping = drawing + drawn - started, stepping + time.process_time() - drawn
    return drawing / (drawing + stepping)


def metaopt(pool: ClassPool, case: str, root: Path) -> Callable[..., Draw]:
    generator = torch.Generator().manual_seed(0)
    source: ClassPool | TaskSampler = pool
    if case == "rotations":
        turned = torch.cat([pool.sources.rot90(turn, (2, 3)) for turn in range(len(TURNS))])
        source = ClassPool(turned, list(torch.arange(len(turned)).view(-1, N_EXAMPLES)))
    elif case == "disk":
        lists: dict[str, Any] = {"split": f"{N_CLASSES}/0/0", "duplicates": "keep", "size": 28}
        source = Images(Images.Config(root=str(root), **lists)).pools["train"]
    spec_of = Glyphs(Glyphs.Config()).spec

    def of_size(*size: int) -> Draw:
        spec = spec_of(*size)

        def draw() -> int:
            assert isinstance(source, ClassPool)
            return len(source.draw(spec, TASKS_A_CALL, generator))

        return draw

    return of_size


def easyfsl(pool: ClassPool) -> Callable[..., Draw | None]:
    held = _labelled(pool)

    def of_size(case: str, root: Path, *size: int) -> Draw | None:
        return None if case == "rotations" else _one_by_one(easyfsl_tasks(root if case == "disk" else held, *size))

    return of_size


def learn2learn(pool: ClassPool) -> Callable[..., Draw | None]:
    held = _labelled(pool)

    def of_size(case: str, root: Path, *size: int) -> Draw | None:
        data = root if case == "disk" else held
        return _one_by_one(learn2learn_tasks(data, *size, turned=case == "rotations"))

    return of_size


def _labelled(pool: ClassPool) -> Held:
    return pool.sources.float() / 255, [row // N_EXAMPLES for row in range(len(pool.sources))]


def _one_by_one(draw: Callable[[], Task]) -> Draw:
    def one() -> int:
        draw()
        return 1

    return one


if __name__ == "__main__":
    main()
