"""An exported program answers queries as the learner does, for any number of them, without metaopt."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaopt import plugins, seeds
from metaopt.errors import InputError
from metaopt.executor import Loop
from metaopt.export import CLASSES, export
from metaopt.learner import Learner
from metaopt.study.file import resolve
from metaopt.study.trial import Bench
from metaopt.task import TaskBatch
from metaopt.train import predict

REGISTRY = plugins.load()
NAMES = np.array(["a", "b", "c"])


def untrained(name: str, **keys: Any) -> tuple[Learner, TaskBatch]:
    """Return a learner as it is built, and a task of 3 ways and 2 shots."""
    raw = {"name": "s", "learners": [name], "encoder": {"conv4": {"width": 8}}, **keys,
           "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 2, "n_query": 3, "size": 16,
                     "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 6}}  # fmt: skip
    bench = Bench(resolve(raw, "s.yaml", REGISTRY), REGISTRY, torch.device("cpu"))
    learner = bench.build(bench.study.space.default(name), 0).eval()
    return learner, bench.sampler.draw("test", bench.spec, 1, seeds.generator(0, "task"))


@pytest.mark.parametrize("name", ["protonet", "matching", "r2d2", "relation", "simpleshot", "pixels"])
def test_a_program_predicts_as_the_learner_for_any_number_of_queries(name: str, tmp_path: Path) -> None:
    learner, task = untrained(name)
    support_x, support_y = task.support_x[0], task.support_y[0]
    export(learner, support_x, support_y, NAMES, tmp_path / "m.pt2", temperature=2.0)
    extra = {CLASSES: ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    assert json.loads(extra[CLASSES]) == ["a", "b", "c"]
    run = program.module()
    for n in (1, 2, 9):
        queries = torch.rand(n, *learner.spec.x_shape, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            expected = (learner(support_x, support_y, queries) / 2).softmax(1)
            torch.testing.assert_close(run(queries), expected, rtol=0, atol=1e-5)


def test_what_the_support_set_alone_decides_is_computed_once(tmp_path: Path) -> None:
    learner, task = untrained("protonet")
    export(learner, task.support_x[0], task.support_y[0], NAMES, tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2")
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == 4  # of the queries' encoder, and none of the support's


def test_a_program_runs_without_metaopt(tmp_path: Path) -> None:
    learner, task = untrained("protonet")
    export(learner, task.support_x[0], task.support_y[0], NAMES, tmp_path / "m.pt2")
    code = (
        "import sys, torch; answer = torch.export.load(sys.argv[1]).module()(torch.zeros(4, 1, 16, 16));"
        "assert answer.shape == (4, 3); assert 'metaopt' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "m.pt2")], check=True)


def test_the_program_of_a_model_that_looks_at_turns_averages_over_them(tmp_path: Path) -> None:
    learner, task = untrained("protonet", augment={"test_turns": 8})
    export(learner, task.support_x[0], task.support_y[0], NAMES, tmp_path / "m.pt2", temperature=2.0)
    program = torch.export.load(tmp_path / "m.pt2").module()
    with torch.no_grad():
        expected = (predict(learner, Loop(), task, torch.Generator()) / 2.0).softmax(-1)[0]
        turned = task.query_x[0].rot90(1, (-2, -1))
        torch.testing.assert_close(program(task.query_x[0]), expected, rtol=0, atol=1e-5)
        assert not torch.allclose(program(turned), expected)


def test_what_cannot_be_recorded_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    learner, task = untrained("sklearn")
    given = task.support_x[0], task.support_y[0], NAMES
    with pytest.raises(InputError, match="sklearn cannot be exported as one program of torch") as refused:
        export(learner, *given, tmp_path / "m.pt2")
    assert len(str(refused.value).splitlines()) == 1
    learner, _ = untrained("protonet", augment={"rotate": 10, "test_copies": 4})
    with pytest.raises(InputError, match="averages over 4 jittered views"):
        export(learner, *given, tmp_path / "m.pt2")
    learner, _ = untrained("protonet")
    with pytest.raises(InputError, match=r"nowhere/m\.pt2 cannot be written \(No such file or directory\)"):
        export(learner, *given, tmp_path / "nowhere" / "m.pt2")
    assert not list(tmp_path.iterdir())
