"""What peers need in order to run beside torch 2.13, and how they draw tasks; `benchmarks/peers.sh` installs them."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metaopt.task import ClassPool

TURNS = (0.0, 90.0, 180.0, 270.0)
Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""support_x, support_y, query_x and query_y."""
Draw = Callable[[], Task]
Held = tuple[Tensor, list[int]]
"""Pictures in memory, (n, 1, size, size) from 0 to 1, and the class of each."""


def import_torchvision() -> None:
    """Import torchvision, which two peers need, where its compiled operators do not load: those of a CUDA wheel beside
    a CPU torch. No benchmark uses one, so they are declared and never defined.
    """
    while "torchvision" not in sys.modules:
        try:
            import torchvision  # noqa: F401 - what counts is that it loads
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if not missing:
                raise ImportError(str(error)) from error
            torch.library.define(missing[1], "(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]


def learn2learn() -> Any:
    """Import learn2learn, which says much on the way."""
    import_torchvision()
    with redirect_stderr(StringIO()):
        import learn2learn as module

    return module


def easyfsl_tasks(data: Path | Held, n_way: int, n_shot: int, n_query: int) -> Draw:
    """Return what draws a task through the data loader of easyfsl's README, in this process."""
    import_torchvision()
    from easyfsl.datasets import EasySet, FewShotDataset
    from easyfsl.samplers import TaskSampler as Sampler
    from torch.utils.data import DataLoader
    from torch.utils.data import Sampler as Base

    Base.__init__ = lambda self, data_source=None: None  # easyfsl 1.5 passes what torch no longer takes

    class InMemory(FewShotDataset):  # type: ignore[misc] # easyfsl has no types
        def __init__(self, pictures: Tensor, labels: list[int]) -> None:
            self.pictures, self.labels = pictures, labels

        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return self.pictures[item], self.labels[item]

        def __len__(self) -> int:
            return len(self.labels)

        def get_labels(self) -> list[int]:
            return self.labels

    if isinstance(data, Path):
        folders = sorted(data.iterdir())
        specs = data.with_suffix(".json")
        roots = {"class_names": [f.name for f in folders], "class_roots": [str(f) for f in folders]}
        specs.write_text(json.dumps(roots), encoding="utf-8")
        pictures = EasySet(specs, transform=_read())
    else:
        pictures = InMemory(*data)
    sampler = Sampler(pictures, n_way, n_shot, n_query, n_tasks=10**9)
    loader = iter(DataLoader(pictures, batch_sampler=sampler, num_workers=0, collate_fn=sampler.episodic_collate_fn))

    def draw() -> Task:
        support_x, support_y, query_x, query_y, _ = next(loader)
        return support_x, support_y, query_x, query_y

    return draw


def learn2learn_tasks(data: Path | Held, n_way: int, n_shot: int, n_query: int, *, turned: bool) -> Draw:
    """Return what draws a task from the task data set of learn2learn's examples, with its own transforms.

    Support and query are one tensor there, which its example of prototypical networks parts as here.
    """
    l2l = learn2learn()
    from torch.utils.data import TensorDataset
    from torchvision import datasets

    if isinstance(data, Path):
        pictures: Any = datasets.ImageFolder(str(data), transform=_read())
        labels: list[int] = pictures.targets
    else:
        pictures, labels = TensorDataset(data[0], torch.tensor(data[1])), data[1]
    rows: dict[int, list[int]] = {}  # else it finds them by reading every example
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    known = l2l.data.MetaDataset(pictures, rows)
    chain = [
        l2l.data.transforms.FusedNWaysKShots(known, n=n_way, k=n_shot + n_query),
        l2l.data.transforms.LoadData(known),
        l2l.data.transforms.RemapLabels(known),
        l2l.data.transforms.ConsecutiveLabels(known),
    ]
    if turned:
        chain.append(l2l.vision.transforms.RandomClassRotation(known, list(TURNS)))
    tasks = l2l.data.Taskset(known, chain, num_tasks=-1)

    def draw() -> Task:
        x, y = tasks.sample()
        y, order = torch.sort(y)
        x, y = x[order].unflatten(0, (n_way, -1)), y.unflatten(0, (n_way, -1))
        return (
            x[:, :n_shot].flatten(0, 1),
            y[:, :n_shot].flatten(),
            x[:, n_shot:].flatten(0, 1),
            y[:, n_shot:].flatten(),
        )

    return draw


def _read() -> Callable[[Any], Tensor]:
    from torchvision import transforms

    read: Callable[[Any], Tensor] = transforms.Compose(
        [transforms.Grayscale(), transforms.Resize((28, 28)), transforms.ToTensor()]
    )
    return read


def write_pictures(pool: ClassPool, root: Path) -> None:
    """Write pictures as PNG files, a folder a class."""
    for label, rows in enumerate(pool.table):
        (root / f"{label:04}").mkdir(parents=True)
        for row in rows.tolist():
            Image.fromarray(pool.sources[row, 0].numpy()).save(root / f"{label:04}" / f"{row:05}.png")
