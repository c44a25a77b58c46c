"""What a study's tasks look like: its pools in numbers, and one task drawn, as shapes and as a picture."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.files import whole
from metaopt.pools import Class
from metaopt.study.file import Study
from metaopt.task import POOLS, ClassPool, Pool, TaskBatch, TaskSampler, TaskSpec, draw_tasks

CELL = 64  # pixels: small pictures are enlarged to about this
GAP = 4
MARGIN = 64  # left of a row, for its class
SHOWN = 12  # examples of a class, support and query each
PAPER, INK = (255, 255, 255), (0, 0, 0)

Pixels = NDArray[np.uint8]


def preview(study: Study, sampler: TaskSampler) -> tuple[dict[str, Any], TaskBatch | None, TaskSpec]:
    """Return a description of a study's pools and of one train task, that task, and its sizes.

    There is no task where the train pool cannot give one; the description then says why.
    """
    tasks = study.tasks
    spec, train_spec = tasks.specs(sampler)
    pools = {pool: describe_pool(sampler, pool, train_spec if pool == "train" else spec) for pool in POOLS}
    if study.evaluation.folds:  # of which each keeps classes of its own for that
        folds = [describe_pool(fold, "validation", spec) for fold in sampler.folds(study.evaluation.folds)]
        pools["validation"]["refused"] = next((fold["refused"] for fold in folds if fold["refused"]), None)
    found: dict[str, Any] = {
        "study": study.name,
        "sampler": tasks.sampler,
        "kind": train_spec.kind,
        "pools": pools,
        "pools_are": None if pools["train"]["classes"] is not None else sampler.pools_are,
        "task": None,
        "picture": None,
    }
    if pools["train"]["refused"]:
        return found, None, train_spec
    if train_spec.kind == "control":
        environments = sampler.environments("train", train_spec, 1, seeds.generator(study.seed, "preview"))
        found["task"] = {
            "n_shot": train_spec.n_shot,
            "n_query": train_spec.n_query,
            "horizon": environments.horizon,
            "observation": list(train_spec.x_shape),
            "n_actions": train_spec.n_actions or None,
            "action": None if train_spec.n_actions else [train_spec.y_size],
            "told": environments.told[0].tolist(),
        }
        return found, None, train_spec
    shown = train_spec if train_spec.unequal else replace(train_spec, least_shot=0)
    batch = draw_tasks(sampler, "train", shown, 1, seeds.generator(study.seed, "preview"))
    names = ("support_x", "support_y", "query_x", "query_y")
    shapes = {name: list(tensor.shape[1:]) for name, tensor in zip(names, batch.tensors(), strict=True)}
    found["task"] = {
        "n_way": train_spec.n_way,
        "n_shot": train_spec.n_shot,
        "least_shot": train_spec.least_shot or train_spec.n_shot,
        "n_query": train_spec.n_query,
        "within": train_spec.within,
        "same_source": train_spec.same_source,
        "unequal": train_spec.unequal,
        "stream": train_spec.stream,
        "shapes": shapes,
        "low": float(min(batch.support_x.min(), batch.query_x.min())),
        "high": float(max(batch.support_x.max(), batch.query_x.max())),
    }
    return found, batch, train_spec


def describe_pool(sampler: TaskSampler, pool: Pool, spec: TaskSpec) -> dict[str, Any]:
    """Return the numbers of a pool, as far as its sampler holds classes, and why it cannot give tasks of this size."""
    found: dict[str, Any] = dict.fromkeys(("classes", "examples", "smallest", "smallest_class", "largest", "groups"))
    held = getattr(sampler, "pools", {}).get(pool)
    if isinstance(held, ClassPool):
        found |= {"classes": len(held), "examples": int(held.sizes.sum())}
        if len(held):
            found |= {"smallest": int(held.sizes.min()), "largest": int(held.sizes.max())}
        if held.groups is not None:
            found["groups"] = len(held.groups.unique())  # type: ignore[no-untyped-call]  # torch leaves it so
        named: Sequence[Class] = getattr(sampler, "classes", {}).get(pool, ())
        if named:
            found["smallest_class"] = min(named, key=lambda c: len(c.rows)).name
    try:
        sampler.check(pool, spec)
        found["refused"] = None
    except UserError as error:
        found["refused"] = str(error)
    return found


def save_picture(batch: TaskBatch, spec: TaskSpec, path: Path) -> None:
    """Write a picture of the first task of a batch, in the format that the path's suffix names.

    Pictures stand in a row for each class, support left of query. Points, which are examples that are no pictures, or
    of a curve, are filled where they are support and open where they are query, with a colour for each class.
    """
    format = Image.registered_extensions().get(path.suffix.lower())
    if format not in Image.SAVE:
        raise UserError(f"--output {path}: {path.suffix or 'no suffix'} names no picture format; end it in .png")
    if spec.kind == "classification" and len(spec.x_shape) == 3 and spec.x_shape[0] in {1, 3}:
        picture = _sheet(batch, spec)
    elif spec.kind == "classification":
        picture = _projection(batch, spec)
    elif spec.x_shape == (1,) and spec.y_size == 1:
        picture = _curve(batch)
    else:
        raise UserError(f"--output {path}: a regression from {spec.x_shape} to {spec.y_size} numbers has no picture")
    try:
        with whole(path) as temporary:
            picture.save(temporary, format)
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror}); give a path that you may write"
        ) from None


def _sheet(batch: TaskBatch, spec: TaskSpec) -> Image.Image:
    support_x, support_y, query_x, query_y = (tensor[0] for tensor in batch.tensors())
    low, high = float(min(support_x.min(), query_x.min())), float(max(support_x.max(), query_x.max()))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0  # pictures keep their brightness; other numbers are stretched over all grey levels
    sides = []
    titles = ("stream",) if spec.stream else ("support", "query")
    for _, x, y in zip(titles, (support_x, query_x), (support_y, query_y), strict=False):
        of_classes = [x[y == label][:SHOWN] for label in range(spec.n_way)]
        sides.append([[_cell(example, low, high) for example in examples] for examples in of_classes])
    height, width = sides[0][0][0].shape[:2]
    columns = [max(map(len, side)) for side in sides]
    page = Image.new("RGB", (MARGIN + (sum(columns) + 1) * (width + GAP), (spec.n_way + 1) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    lefts = [MARGIN, MARGIN + columns[0] * (width + GAP) + width]
    for left, title, side in zip(lefts, titles, sides, strict=False):
        draw.text((left, height // 2), title, INK)
        for row, cells in enumerate(side, start=1):
            draw.text((GAP, row * (height + GAP) + height // 2), f"class {row - 1}", INK)
            for column, cell in enumerate(cells):
                page.paste(Image.fromarray(cell), (left + column * (width + GAP), row * (height + GAP)))
    return page


def _cell(example: Tensor, low: float, high: float) -> Pixels:
    """Return an example as pixels (height, width, 3), enlarged without smoothing."""
    levels = ((example - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
    pixels: Pixels = levels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    times = max(1, CELL // max(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)


def _projection(batch: TaskBatch, spec: TaskSpec) -> Image.Image:
    """Plot examples along the two directions in which those of the task differ most."""
    x = torch.cat([batch.support_x[0], batch.query_x[0]]).flatten(1).double()  # (n, n_numbers)
    left, length, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    places = torch.nn.functional.pad(left * length, (0, 1))[:, :2]  # (n, 2)
    hues = [f"hsv({360 * label // spec.n_way}, 100%, 80%)" for label in range(spec.n_way)]
    colours = [hues[label] for label in torch.cat([batch.support_y[0], batch.query_y[0]]).tolist()]
    return _plot(places, colours, len(batch.support_x[0]), "two principal components; support filled, query open")


def _curve(batch: TaskBatch) -> Image.Image:
    sides = [(batch.support_x, batch.support_y), (batch.query_x, batch.query_y)]
    places = torch.cat([torch.cat([x[0], y[0]], 1) for x, y in sides])  # (n, 2)
    return _plot(places, ["black"] * len(places), len(batch.support_x[0]), "support filled, query open")


def _plot(places: Tensor, colours: Sequence[str], n_support: int, title: str, size: int = 480) -> Image.Image:
    """Draw points at `places` (n, 2), the first `n_support` filled and above the others."""
    page = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(page)
    low, high = places.amin(0), places.amax(0)
    shares = (places - low) / (high - low).clamp(min=1e-12)  # (n, 2) from 0 to 1
    shares[:, 1] = 1 - shares[:, 1]  # a picture's rows count downwards
    draw.text((MARGIN, MARGIN // 2), title, INK)
    draw.rectangle((MARGIN, MARGIN, size - MARGIN, size - MARGIN), outline=INK)
    for end, at in ((low, MARGIN), (high, size - MARGIN)):
        draw.text((at, size - MARGIN + GAP), f"{end[0]:.3g}", INK)
        draw.text((GAP, size - at), f"{end[1]:.3g}", INK)
    for row in reversed(range(len(places))):
        across, down = (MARGIN + (size - 2 * MARGIN) * shares[row]).tolist()
        draw.circle((across, down), GAP, colours[row] if row < n_support else None, colours[row])
    return page
