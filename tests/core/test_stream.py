"""A model of streams is told how accurate it is at each presentation of a class."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metaopt import cli, plugins, stream
from metaopt.study.file import resolve
from metaopt.study.trial import Bench

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "glyphs", "stream": True, "n_way": 3, "n_shot": 4, "size": 8, "train_classes": 12,
              "validation_classes": 6, "test_classes": 6, "examples": 5},
    "learners": {"mann": {"controller": 16, "slots": 8, "slot_size": 8, "heads": 1}, "snail": {"width": 8}},
    "encoder": "identity", "objective": "at_presentation", "trials": 2, "budget": {"tasks": 8},
    "evaluation": {"tasks": 6, "finalists": 1, "report_tasks": 8},
}  # fmt: skip


def test_a_study_of_streams_runs_and_its_winner_is_told_by_presentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.dump(TINY))
    assert cli.main(["study", "run", "tiny.yaml", "--quiet"]) == 0
    assert cli.main(["study", "audit", "runs/tiny"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "runs/tiny/best", "--tasks", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = {one["presentation"]: one["mean"] for one in found["presentations"]}
    assert list(told) == [1, 2, 3, 4]
    assert told[2] == pytest.approx(found["mean"]), "the study's objective is the accuracy at the second"
    assert cli.main(["evaluate", "runs/tiny/best", "--tasks", "20"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("accuracy by how often a class has been shown, 1: ")
    assert f", 2: {told[2]:.4f} ± " in line


def test_each_presentation_has_its_own_interval_and_their_mean_is_the_accuracy() -> None:
    registry = plugins.load()
    bench = Bench(resolve({**TINY, "objective": "accuracy"}, "a", registry), registry, torch.device("cpu"))
    learner = bench.build(bench.study.space.default("snail", "identity"), 0)
    scores = bench.score(learner, "test", "here", 40)
    told = stream.by_presentation(learner, bench, "test", "here", 40)
    assert sum(one["mean"] for one in told) / 4 == pytest.approx(scores.mean), "on the same tasks"
    assert all(0 < one["ci95"] < 1.96 * 0.5 / 40**0.5 * 1.1 for one in told)


def test_a_model_of_other_tasks_has_no_presentations() -> None:
    registry = plugins.load()
    tasks = {**TINY["tasks"], "stream": False, "n_shot": 1, "n_query": 2}
    raw = {**TINY, "tasks": tasks, "learners": "snail", "objective": "accuracy"}
    bench = Bench(resolve(raw, "a", registry), registry, torch.device("cpu"))
    learner = bench.build(bench.study.space.default("snail", "identity"), 0)
    assert stream.by_presentation(learner, bench, "test", "here", 4) == []
