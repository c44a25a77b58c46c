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

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peers import import_torchvision
from PIL import Image

from metaopt.executor import Loop
from metaopt.learner import Gradients
from metaopt.task import ClassPool, TaskSampler
from metaopt.train import Outer
from metaopt_encoders.conv4 import Conv4
from metaopt_metric.protonet import ProtoNet
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.images import Images

SIZES = ((5, 1, 15), (20, 5, 15))
TURNS = (0.0, 90.0, 180.0, 270.0)
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
        root = _write(pool, Path(scratch) / "pictures")
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
    """The data loader of easyfsl's README, in this process."""
    from easyfsl.datasets import EasySet, FewShotDataset
    from easyfsl.samplers import TaskSampler as Sampler
    from torch.utils.data import DataLoader
    from torch.utils.data import Sampler as Base
    from torchvision import transforms

    pictures, labels = _labelled(pool)
    Base.__init__ = lambda self, data_source=None: None  # easyfsl 1.5 passes what torch no longer takes

    class Held(FewShotDataset):
        def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
            return pictures[item], labels[item]

        def __len__(self) -> int:
            return len(pictures)

        def get_labels(self) -> list[int]:
            return labels

    def of_size(case: str, root: Path, n_way: int, n_shot: int, n_query: int) -> Draw | None:
        if case == "rotations":
            return None
        data = Held()
        if case == "disk":
            folders = sorted(root.iterdir())
            specs = root.with_suffix(".json")
            roots = {"class_names": [f.name for f in folders], "class_roots": [str(f) for f in folders]}
            specs.write_text(json.dumps(roots), encoding="utf-8")
            read = transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28)), transforms.ToTensor()])
            data = EasySet(specs, transform=read)
        sampler = Sampler(data, n_way, n_shot, n_query, n_tasks=10**9)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=0, collate_fn=sampler.episodic_collate_fn)
        return _one_by_one(iter(loader))

    return of_size


def learn2learn(pool: ClassPool) -> Callable[..., Draw | None]:
    """The task data set of learn2learn's examples, with its own transforms; support and query are one tensor there."""
    import learn2learn as l2l
    from torch.utils.data import TensorDataset
    from torchvision import datasets, transforms

    pictures, labels = _labelled(pool)

    def of_size(case: str, root: Path, n_way: int, n_shot: int, n_query: int) -> Draw | None:
        data: Any = TensorDataset(pictures, torch.tensor(labels))
        if case == "disk":
            read = transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28)), transforms.ToTensor()])
            data = datasets.ImageFolder(str(root), transform=read)
        data = l2l.data.MetaDataset(data, _bookkeeping(labels) if case != "disk" else None)
        chain = [
            l2l.data.transforms.NWays(data, n_way),
            l2l.data.transforms.KShots(data, n_shot + n_query),
            l2l.data.transforms.LoadData(data),
            l2l.data.transforms.RemapLabels(data),
            l2l.data.transforms.ConsecutiveLabels(data),
        ]
        if case == "rotations":
            chain.append(l2l.vision.transforms.RandomClassRotation(data, list(TURNS)))
        tasks = l2l.data.TaskDataset(data, chain, num_tasks=-1)

        def draw() -> int:
            tasks.sample()
            return 1

        return draw

    return of_size


def _bookkeeping(labels: list[int]) -> Any:
    """Return what learn2learn otherwise finds by reading every example."""
    of_label: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        of_label.setdefault(label, []).append(row)
    return of_label


def _labelled(pool: ClassPool) -> tuple[torch.Tensor, list[int]]:
    """Return pictures (n, 1, 28, 28) from 0 to 1, and the class of each."""
    return pool.sources.float() / 255, [row // N_EXAMPLES for row in range(len(pool.sources))]


def _one_by_one(tasks: Iterator[Any]) -> Draw:
    def draw() -> int:
        next(tasks)
        return 1

    return draw


def _write(pool: ClassPool, root: Path) -> Path:
    for row, picture in enumerate(pool.sources):
        path = root / f"{row // N_EXAMPLES:04}" / f"{row:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(path)
    return root


if __name__ == "__main__":
    main()
