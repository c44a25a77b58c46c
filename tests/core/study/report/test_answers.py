"""The finalists' answers in a report are those of the study's own evaluation, task by task."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaopt import plugins
from metaopt.study import leaderboard
from metaopt.study.file import load, resolve
from metaopt.study.ledger import read_scores
from metaopt.study.report import answers
from metaopt.study.search import FINALISTS
from metaopt.study.trial import Bench
from metaopt.task import ClassPool

REGISTRY = plugins.load()


@pytest.fixture(scope="module")
def bench(finished: Path) -> Bench:
    return Bench(load(finished / "study.yaml", REGISTRY), REGISTRY, torch.device("cpu"))


def entries(folder: Path) -> list[dict[str, Any]]:
    board = leaderboard.read(folder)
    assert board is not None
    return list(board["finalists"])


def stored(folder: Path, trial: int) -> np.ndarray[Any, Any]:
    scores = read_scores(folder / FINALISTS / f"{trial:05d}-0.npy")
    assert scores is not None
    return scores


def test_the_winners_answers_are_those_it_was_ranked_by(bench: Bench, finished: Path) -> None:
    winner = entries(finished)[0]
    found = answers.answers(bench, answers.load(bench, finished, winner))
    scores = stored(finished, winner["trial"])
    assert (found.tasks, found.pool) == (len(scores), "validation")
    assert found.accuracy == pytest.approx(scores.mean())
    hardest = sorted(scores)[: len(found.hardest)]
    assert [task.right / task.asked for task in found.hardest] == pytest.approx(hardest)


def test_confusions_count_each_query_once_for_each_class_it_met(bench: Bench, finished: Path) -> None:
    found = answers.answers(bench, answers.load(bench, finished, entries(finished)[0]))
    assert found.confusion is not None
    [matrix] = found.confusion.data
    counts = [[re.fullmatch(r"(\d+) of (\d+)", cell) for cell in row] for row in matrix["text"]]
    assert len(counts) == 6, "of the validation pool"
    own = [row[at] for at, row in enumerate(counts)]
    asked = sum(int(cell[2]) for cell in own if cell)
    right = sum(int(cell[1]) for cell in own if cell)
    assert asked == found.tasks * bench.spec.n_way * bench.spec.n_query
    assert right / asked == pytest.approx(found.accuracy)
    wrong = sum(int(cell[1]) for at, row in enumerate(counts) for b, cell in enumerate(row) if cell and b != at)
    assert right + wrong == asked
    assert found.pairs[0].times == max(
        int(cell[1]) for at, row in enumerate(counts) for b, cell in enumerate(row) if cell and b != at
    )


def test_in_a_hard_task_wrong_answers_come_first_and_name_the_class_answered(bench: Bench, finished: Path) -> None:
    found = answers.answers(bench, answers.load(bench, finished, entries(finished)[-1]))
    for task in found.hardest:
        names = {row.name for row in task.rows}
        assert sum(row.asked - row.wrong for row in task.rows) == task.right
        for row in task.rows:
            assert len(row.support) == bench.spec.n_shot
            assert [cell.right for cell in row.queries] == sorted(cell.right for cell in row.queries)
            assert all((cell.answer == row.name) == cell.right and cell.answer in names for cell in row.queries)


def test_the_curve_of_adaptation_ends_at_the_score_that_a_finalist_was_ranked_by(
    bench: Bench, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = leaderboard.read(finished)
    assert board is not None
    monkeypatch.setattr(answers, "CURVE_TASKS", bench.study.evaluation.report_tasks)
    figure, skipped = answers.adaptation(bench, finished, board)
    adapting = [entry for entry in board["finalists"] if entry["learner"] == "maml"]
    assert figure is not None
    assert not skipped
    assert len(figure.data) == len(adapting) >= 2, "pixels has no inner steps"
    for line, entry in zip(figure.data, adapting, strict=True):
        assert [round(x) for x in line["x"]] == [0, 1, 2]
        assert line["y"][-1] == pytest.approx(stored(finished, entry["trial"]).mean())


def test_what_takes_too_long_is_left_out_with_a_sentence(bench: Bench, finished: Path) -> None:
    board = leaderboard.read(finished)
    assert board is not None
    found = answers.answers(bench, answers.load(bench, finished, entries(finished)[0]), seconds=-1)
    assert found.tasks == 0
    assert "longer than" in found.skipped[0]
    figure, skipped = answers.adaptation(bench, finished, board, seconds=-1)
    assert figure is None
    assert all("is cut short" in sentence for sentence in skipped)


@pytest.mark.parametrize(("last", "first_few"), [(0, [0]), (3, [0, 1, 2, 3]), (500, [0, 1, 2])])
def test_points_of_a_curve_are_few_and_reach_the_last_step(last: int, first_few: list[int]) -> None:
    points = answers._points(last)
    assert points[: len(first_few)] == first_few
    assert points[-1] == last
    assert len(points) <= answers.CURVE_POINTS + 1
    assert points == sorted(set(points))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_class_is_told_from_an_example_as_a_task_holds_it(dtype: torch.dtype) -> None:
    examples = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    held = ClassPool(examples.to(dtype), list(torch.arange(12).split(3)))

    classes = answers.Classes(SimpleNamespace(pools={"validation": held}), "validation")
    for row in range(12):
        assert classes.number(held._read(torch.tensor([row]))[0]) == row // 3
    assert classes.number(torch.full((1, 4, 4), 0.123)) is None
    assert classes.name(2) == "class 2"
    assert classes.name(None, 2) == "class 3"


def test_a_picture_keeps_its_levels_and_a_large_one_is_made_smaller() -> None:
    def opened(example: torch.Tensor) -> Image.Image:
        kind, _, content = answers.picture(example).partition(",")
        assert kind == "data:image/png;base64"
        return Image.open(io.BytesIO(base64.b64decode(content)))

    grey = torch.tensor([[0.0, 0.5], [1.0, 0.25]])[None]
    np.testing.assert_array_equal(np.asarray(opened(grey)), [[0, 128], [255, 64]])
    assert opened(torch.rand(3, 200, 100)).size == (32, 64)
    assert opened(torch.randn(1, 5, 5)).getextrema() == (0, 255)


def test_a_regression_says_that_it_has_no_confusions(bench: Bench) -> None:
    study = {"name": "s", "tasks": {"sampler": "sinusoid", "n_shot": 5}, "learners": ["maml"]}
    waves = Bench(resolve(study, "s.yaml", REGISTRY), REGISTRY, torch.device("cpu"))
    learner = waves.build(waves.study.space.default("maml"), 0)
    found = answers.answers(waves, learner)
    assert found == replace(answers.Answers(), skipped=found.skipped)
    assert "regression" in found.skipped[0]
