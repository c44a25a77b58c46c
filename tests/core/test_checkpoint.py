"""A meta-training that is killed goes on from its checkpoint to the very end it would have come to."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from metaopt import checkpoint, plugins
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, Done, Job
from metaopt.train import Budget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a copy of this process is killed")

STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": {"maml": {"inner_steps": 2}, "maml_pp": {"inner_steps": 2}, "reptile": {"test_steps": 5},
                 "protonet": {}, "lstm_meta": {"steps": 2}, "leo": {"steps": 1, "weight_steps": 1},
                 "learned_optimizer": {"unroll": 2}},
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"averaging": 0.9, "schedule": "cosine", "warmup": 0.1, "tasks_per_step": 2},
    "augment": {"noise": 0.1},
    "budget": {"tasks": 60},
    "evaluation": {"tasks": 20},
}  # fmt: skip
PICTURES: dict[str, Any] = {
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 2, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": {"pretrain": {}, "simpleshot": {}, "cnaps": {}},
    "encoder": {"conv4": {"width": 8}},
}  # fmt: skip


@pytest.fixture(scope="module")
def benches() -> Callable[..., Bench]:
    registry, made = plugins.load(), dict[str, Bench]()

    def bench(**changes: Any) -> Bench:
        key = json.dumps(changes)
        made.setdefault(key, Bench(resolve(STUDY | changes, "a.yaml", registry), registry, torch.device("cpu")))
        return made[key]

    return bench


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", -1.0)
    monkeypatch.setattr(checkpoint, "COST", float("inf"))


def job_of(bench: Bench, learner: str, folder: Path, **changes: Any) -> Job:
    folder.mkdir(exist_ok=True)
    params = bench.study.space.default(learner)
    kept = {"save_to": folder / "w.safetensors", "checkpoint": checkpoint.File(folder / "c" / "7.safetensors")}
    job = Job(7, params, 11, bench.study.budget, "validation", "search", 20, reports=True)
    return replace(job, **kept | changes)


def watched(bench: Bench, at: Callable[[int], None]) -> Bench:
    """Return the bench with a sampler that tells how many outer steps were begun."""
    other, steps = Bench(bench.study, bench.registry, bench.device), 0
    draw, examples = other.sampler.draw, other.sampler.examples

    def step() -> None:
        nonlocal steps
        steps += 1
        at(steps)

    def drawing(pool: Any, *rest: Any) -> Any:
        if pool == "train":
            step()
        return draw(pool, *rest)

    def listing(*rest: Any) -> Any:
        step()
        return examples(*rest)

    other.sampler.draw, other.sampler.examples = drawing, listing  # type: ignore[method-assign]
    return other


def killed(bench: Bench, job: Job, step: int, report: Any = lambda progress, scores: False) -> None:
    """Run a job in a copy of this process, which is killed in the middle of a step."""
    child = os.fork()
    if not child:
        watched(bench, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == step else None).run(job, report)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def gone_on(bench: Bench, job: Job, report: Any = lambda progress, scores: False) -> tuple[Done, int]:
    """Run a job; return what it came to, and in how many outer steps of this process."""
    begun: list[int] = []
    return watched(bench, begun.append).run(job, report), len(begun)


def outcome(done: Done, job: Job) -> Any:
    assert done.result.state == "complete", done.result.reason
    assert job.save_to
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(job.save_to).items()}
    return {k: v for k, v in asdict(done.result).items() if "seconds" not in k}, done.per_task, weights


@pytest.mark.parametrize("learner", [*STUDY["learners"], *PICTURES["learners"]])
def test_a_trial_killed_in_meta_training_goes_on_to_the_same_end_bit_for_bit(
    benches: Callable[..., Bench], tmp_path: Path, learner: str
) -> None:
    bench = benches(executor="loop", **(PICTURES if learner in PICTURES["learners"] else {}))
    undisturbed = job_of(bench, learner, tmp_path / "whole", checkpoint=None)
    whole = outcome(bench.run(undisturbed), undisturbed)
    job = job_of(bench, learner, tmp_path / "killed")
    killed(bench, job, 9)
    killed(bench, job, 12)  # that is the 20th: 8 are done
    done, steps = gone_on(bench, job)
    assert outcome(done, job) == whole
    assert steps == 30 - 19


@pytest.mark.parametrize("learner", ["protonet", "learned_optimizer", "leo"])
def test_replayed_operators_are_replayed_again_from_the_step_on_that_it_goes_on_with(
    benches: Callable[..., Bench], tmp_path: Path, learner: str
) -> None:
    bench = benches(executor="traced", budget={"tasks": 260}, augment={})
    undisturbed = job_of(bench, learner, tmp_path / "whole", checkpoint=None)
    whole = outcome(bench.run(undisturbed), undisturbed)
    job = job_of(bench, learner, tmp_path / "killed")
    killed(bench, job, 121)  # from the 100th on they are replayed
    done, steps = gone_on(bench, job)
    assert outcome(done, job) == whole
    assert steps == 10


def test_a_rung_is_reported_once_wherever_its_trial_was_killed(benches: Callable[..., Bench], tmp_path: Path) -> None:
    bench, heard = benches(executor="loop"), tmp_path / "heard"

    def report(progress: float, scores: Any) -> bool:
        with heard.open("a") as file:
            file.write(f"{progress} {scores}\n")
        return False

    job = job_of(bench, "protonet", tmp_path / "whole", checkpoint=None)
    bench.run(job, report)
    whole = heard.read_text()
    heard.unlink()
    job = job_of(bench, "protonet", tmp_path / "killed")
    for step in (10, 10):
        killed(bench, job, step, report)
    gone_on(bench, job, report)
    assert heard.read_text() == whole
    assert [line.split()[0] for line in whole.splitlines()] == ["0.25", "0.5"] + ["1.0"] * (whole.count("\n") - 2)


def test_a_budget_of_seconds_goes_on_as_it_was_planned(benches: Callable[..., Bench], tmp_path: Path) -> None:
    bench = benches(executor="loop")
    job = job_of(bench, "protonet", tmp_path, budget=Budget(cpu_seconds=0.5))
    killed(bench, job, 70)  # 50 of them at most were timed
    state = json.loads(metadata(job)["state"])
    done, _ = gone_on(bench, job)
    assert done.result.planned_tasks == state["progress"]["planned"]
    assert done.result.cpu_seconds > state["progress"]["cpu_seconds"] > 0
    assert done.result.seconds > state["seconds"] > 0


def metadata(job: Job) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file_of(job), "pt") as file:
        return dict(file.metadata())


def file_of(job: Job) -> Path:
    assert isinstance(job.checkpoint, checkpoint.File)
    return job.checkpoint.path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def say_it_is_farther(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'\\"tasks\\": 1', b'\\"tasks\\": 3', 1))


def strip(path: Path) -> None:
    save_file(load_file(path), path)


def announce_much(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swell(path: Path) -> None:
    os.truncate(path, 2**33)


@pytest.mark.parametrize("damage", [cut, flip, say_it_is_farther, strip, announce_much, empty, swell])
def test_a_damaged_checkpoint_is_put_aside_and_its_trial_begins_anew(
    benches: Callable[..., Bench], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    bench = benches(executor="loop")
    undisturbed = job_of(bench, "protonet", tmp_path / "whole", checkpoint=None)
    whole = outcome(bench.run(undisturbed), undisturbed)
    job = job_of(bench, "protonet", tmp_path / "killed")
    killed(bench, job, 9)
    before = file_of(job).read_bytes()
    damage(file_of(job))
    assert before != (b"" if damage is swell else file_of(job).read_bytes())
    done, steps = gone_on(bench, job)
    assert outcome(done, job) == whole
    assert steps == 30
    assert file_of(job).with_suffix(".unusable").exists()
    [line] = [record.getMessage() for record in caplog.records if record.name == "metaopt.checkpoint"]
    assert line.startswith(f"{file_of(job)} cannot be gone on from (")
    assert line.endswith("): its trial begins anew; it is kept as 7.unusable")


def test_a_checkpoint_of_other_settings_or_another_learner_is_put_aside(
    benches: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = benches(executor="loop")
    job = job_of(bench, "protonet", tmp_path)
    for changes in ({"seed": 12}, {"budget": Budget(tasks=58)}, {"params": bench.study.space.default("maml")}):
        killed(bench, job, 9)
        done, _ = gone_on(bench, replace(job, **changes))
        assert done.result.state == "complete"
        assert file_of(job).with_suffix(".unusable").exists()
        file_of(job).with_suffix(".unusable").unlink()
        file_of(job).unlink()


def test_what_does_not_fit_changes_nothing(benches: Callable[..., Bench], tmp_path: Path) -> None:
    bench = benches(executor="loop")
    job = job_of(bench, "maml", tmp_path)
    killed(bench, job, 9)
    content, others = load_file(file_of(job)), ("learner.net.1.weight", "optimizer.0.exp_avg", "random.draw")
    assert set(others) < content.keys()
    for name in others:
        learner = bench.build(job.params, 3)
        optimizer, draw = torch.optim.Adam(learner.parameters()), torch.Generator().manual_seed(5)
        average = {name: p.detach().clone() for name, p in learner.named_parameters()}
        moving = checkpoint.Moving(learner, optimizer, average, draw, bench.executor(learner))
        before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
        path = tmp_path / "mine.safetensors"
        mine = checkpoint.Checkpoint(checkpoint.File(path), {})
        state = json.dumps({**json.loads(metadata(job)["state"]), "job": {}})
        spoilt = content | {name: content[name][:-1].clone()}
        save_file(spoilt, path, {"state": state, "crc": checkpoint._crc(state, spoilt)})
        assert mine.resume(moving) is None
        assert all(torch.equal(tensor, before[key]) for key, tensor in learner.state_dict().items())
        assert draw.initial_seed() == 5
        assert not optimizer.state_dict()["state"]
        save_file(content, path, {"state": state, "crc": checkpoint._crc(state, content)})
        assert mine.resume(moving), "and where it fits it is taken up"


def test_nothing_is_written_in_a_short_meta_training(
    benches: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    bench = benches(executor="loop")
    job = job_of(bench, "protonet", tmp_path)
    bench.run(job)
    assert not file_of(job).parent.exists()


def test_where_writing_is_slow_checkpoints_are_few(
    benches: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benches(executor="loop")
    learner = bench.build(bench.study.space.default("protonet"), 3)
    optimizer = torch.optim.Adam(learner.parameters())
    moving = checkpoint.Moving(learner, optimizer, {}, torch.Generator(), bench.executor(learner))
    monkeypatch.setattr(checkpoint, "COST", 0.01)
    path = tmp_path / "c" / "1.safetensors"
    one = checkpoint.Checkpoint(checkpoint.File(path), {})
    one.keep(moving, {})
    assert not path.exists(), "how long it takes is guessed by its size"
    one.due = 0.0
    one.keep(moving, {})
    first = path.stat().st_mtime_ns
    one.keep(moving, {})
    assert path.stat().st_mtime_ns == first, "a hundred times as long must pass as writing took"
