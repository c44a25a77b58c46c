"""A preview tells a study's pools in numbers, and its picture shows one of its tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from metaopt import plugins, preview
from metaopt.errors import UserError
from metaopt.study import file
from metaopt.task import TaskBatch, TaskSampler, TaskSpec

REGISTRY = plugins.load()


def study_of(**tasks: Any) -> tuple[file.Study, TaskSampler]:
    learners = "mann" if tasks.get("stream") else "maml" if tasks["sampler"] in {"sinusoid", "curves"} else "protonet"
    study = file.resolve({"name": "s", "tasks": tasks, "learners": learners}, "s.yaml", REGISTRY)
    return study, REGISTRY.task_sampler(study.tasks.sampler)(study.tasks.config)


def arrays(folder: Path, **tasks: Any) -> tuple[file.Study, TaskSampler]:
    """Twelve classes a to l in three groups, of five examples each and l of four."""
    y = np.array(list("abcdefghijkl") * 5)[:-1]
    x = np.random.default_rng(0).integers(0, 256, (len(y), 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "a.npz", X=x, y=y, group=[f"g{ord(c) % 3}" for c in y])
    lists = {"train": ["a", "b", "c", "l"], "validation": ["d", "e"], "test": ["f", "g"]}
    return study_of(**{"sampler": "arrays", "file": str(folder / "a.npz"), **lists, **tasks})


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_pools_are_told_in_numbers(tmp_path: Path) -> None:
    found, batch, spec = preview.preview(*arrays(tmp_path, n_way=2, n_shot=1, n_query=3, train_way=3))
    train = {"classes": 4, "examples": 19, "smallest": 4, "smallest_class": "l", "largest": 5, "groups": 3}
    assert found["pools"]["train"] == {**train, "refused": None}
    test = {"classes": 2, "examples": 10, "smallest": 5, "smallest_class": "f", "largest": 5, "groups": 2}
    assert found["pools"]["test"] == {**test, "refused": None}
    assert batch is not None
    assert (len(batch), spec.n_way) == (1, 3)
    assert found["task"]["shapes"] == {
        "support_x": [3, 3, 8, 8],
        "support_y": [3],
        "query_x": [9, 3, 8, 8],
        "query_y": [9],
    }
    assert 0 <= found["task"]["low"] < 0.1 < 0.9 < found["task"]["high"] <= 1


def test_a_task_within_a_group_is_drawn_within_one(tmp_path: Path) -> None:
    sizes = {"n_way": 2, "n_shot": 1, "n_query": 3, "train_within": 1}
    found, _, spec = preview.preview(*arrays(tmp_path, **sizes))
    assert (found["task"]["within"], spec.within) == (1.0, 1.0)
    found, batch, _ = preview.preview(*arrays(tmp_path, **sizes, train=["a", "b", "i"]))
    assert batch is None
    assert found["pools"]["train"]["refused"].endswith("has 1; set tasks.train_within to 0")


def test_a_stream_is_shown_as_one_sequence_and_unequal_shots_in_rows_of_their_own(tmp_path: Path) -> None:
    found, batch, spec = preview.preview(*arrays(tmp_path, n_way=2, n_shot=4, stream=True))
    assert batch is not None
    assert (found["task"]["stream"], found["task"]["shapes"]["support_x"]) == (True, [8, 3, 8, 8])
    preview.save_picture(batch, spec, tmp_path / "stream.png")
    _, batch, spec = preview.preview(*arrays(tmp_path, n_way=2, n_shot=[1, 3], unequal=True, n_query=1))
    assert batch is not None
    preview.save_picture(batch, spec, tmp_path / "unequal.png")
    shown = {name: (pixels(tmp_path / f"{name}.png") != 255).any(2) for name in ("stream", "unequal")}
    cell, step = preview.CELL, preview.CELL + preview.GAP
    shots = batch.support_y[0].bincount().tolist()
    for row, n in enumerate(shots):
        line = shown["unequal"][(row + 1) * step + cell // 2, preview.MARGIN :]
        assert line[: n * step - preview.GAP].mean() > 0.9
        assert not line[n * step : max(shots) * step].any()
    assert shown["stream"].shape[1] == preview.MARGIN + (4 + 1) * step


def test_a_pool_too_small_says_why_and_the_others_are_told_still(tmp_path: Path) -> None:
    found, batch, _ = preview.preview(*arrays(tmp_path, n_way=3, n_shot=1, n_query=3))
    assert batch is not None
    assert found["pools"]["train"]["refused"] is None
    assert "3-way tasks need 3 classes and the validation pool has 2" in found["pools"]["validation"]["refused"]
    found, batch, _ = preview.preview(*arrays(tmp_path, n_way=2, n_shot=2, n_query=3))
    assert (batch, found["task"]) == (None, None)
    assert "'l' of the train pool has 4" in found["pools"]["train"]["refused"]


def test_the_same_study_previews_the_same_task_and_another_seed_another(tmp_path: Path) -> None:
    study, sampler = study_of(sampler="gaussian", n_way=3, n_shot=1)
    first, again = (preview.preview(study, sampler)[1] for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first.support_x, again.support_x)
    other = file.resolve({**study.to_dict(), "seed": 1}, "s.yaml", REGISTRY)
    third = preview.preview(other, sampler)[1]
    assert third is not None
    assert not torch.equal(first.support_x, third.support_x)


def test_each_example_stands_in_its_class_row_support_left_of_query(tmp_path: Path) -> None:
    _, batch, spec = preview.preview(*arrays(tmp_path, n_way=2, n_shot=2, n_query=2, train=["a", "b", "c"]))
    assert batch is not None
    path = tmp_path / "task.png"
    preview.save_picture(batch, spec, path)
    page, times = pixels(path), preview.CELL // 8
    side = 8 * times
    for label in range(2):
        top = (label + 1) * (side + preview.GAP)
        for first, x, y in (
            (preview.MARGIN, batch.support_x[0], batch.support_y[0]),
            (preview.MARGIN + 3 * side + 2 * preview.GAP, batch.query_x[0], batch.query_y[0]),
        ):
            for column, example in enumerate(x[y == label]):
                left = first + column * (side + preview.GAP)
                shown = page[top : top + side : times, left : left + side : times]
                np.testing.assert_array_equal(shown, (example * 255).round().byte().permute(1, 2, 0).numpy())


def test_vectors_are_points_along_the_direction_in_which_they_differ_most(tmp_path: Path) -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 9.0]]])
    y = torch.tensor([[0, 1]])
    batch, spec = TaskBatch(x, y, x[:, :0], y[:, :0]), TaskSpec("classification", (3,), 2, 1, 1)
    preview.save_picture(batch, spec, tmp_path / "task.png")
    page, low, high = pixels(tmp_path / "task.png"), preview.MARGIN, 480 - preview.MARGIN
    ends = sorted(tuple(page[high, column].tolist()) for column in (low, high))
    assert ends == sorted([(204, 0, 0), (0, 204, 204)]), "a filled point of each class's colour at each end"


def test_support_points_of_a_curve_are_filled_and_query_points_open(tmp_path: Path) -> None:
    points = [torch.tensor([[[value]]]) for value in (0.0, 0.0, 1.0, 1.0)]
    spec = TaskSpec("regression", (1,), 1, 1, 1)
    preview.save_picture(TaskBatch(*points), spec, tmp_path / "task.png")
    page, low, high = pixels(tmp_path / "task.png")[:, :, 0], preview.MARGIN, 480 - preview.MARGIN
    assert page[high, low] == 0, "the support point at the lower left is filled"
    inner = page[low + 2, high - 2]
    assert inner == 255, "the query point at the upper right is a ring"
    assert page[low, high + preview.GAP] == 0


def test_many_examples_of_a_class_are_cut_to_what_fits(tmp_path: Path) -> None:
    x, y = torch.rand(1, 200, 1, 8, 8), torch.arange(2).repeat(100)[None]
    preview.save_picture(TaskBatch(x, y, x, y), TaskSpec("classification", (1, 8, 8), 2, 100, 100), tmp_path / "t.png")
    assert pixels(tmp_path / "t.png").shape[1] < 2000


def test_what_cannot_be_written_or_pictured_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    x = torch.zeros(1, 2, 3)
    batch = TaskBatch(x, x, x, x)
    vectors, curves = TaskSpec("classification", (3,), 1, 2, 2), TaskSpec("regression", (3,), 1, 2, 2, y_size=3)
    labelled = TaskBatch(x, torch.zeros(1, 2).long(), x, torch.zeros(1, 2).long())
    with pytest.raises(UserError, match=r"\.xyz names no picture format; end it in \.png"):
        preview.save_picture(labelled, vectors, tmp_path / "task.xyz")
    with pytest.raises(UserError, match="no suffix names no picture format"):
        preview.save_picture(labelled, vectors, tmp_path / "task")
    with pytest.raises(UserError, match=r"a regression from \(3,\) to 3 numbers has no picture"):
        preview.save_picture(batch, curves, tmp_path / "task.png")
    with pytest.raises(UserError, match="cannot be written"):
        preview.save_picture(labelled, vectors, tmp_path / "none" / "task.png")
    assert not list(tmp_path.iterdir())
