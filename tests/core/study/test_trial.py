"""A trial is one pipeline, meta-trained and scored; whatever its learner does, plain data come back."""

import copy
import math
import pickle
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metaopt import plugins, seeds
from metaopt.errors import UserError
from metaopt.study.file import resolve
from metaopt.study.space import Params
from metaopt.study.trial import Bench, Done, Job
from metaopt.train import Budget

CPU = torch.device("cpu")

# Points scattered about class means: a task sampler that notes what is drawn from it, and a learner of many moods.
LAB = """
import sys
from dataclasses import dataclass
import torch
from torch import nn
from metaopt import tune
from metaopt.errors import TrialError, UserError
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.task import TaskBatch, TaskSampler, TaskSpec

drawn = []

class Points(TaskSampler):
    name, kind, encoder = "points", "classification", "mlp"

    def spec(self, n_way, n_shot, n_query):
        return TaskSpec("classification", (2,), n_way, n_shot, n_query)

    def draw(self, pool, spec, n_tasks, generator):
        means = torch.randn(n_tasks, spec.n_way, 1, 2, generator=generator)
        n = spec.n_shot + spec.n_query
        x = means + 0.5 * torch.randn(n_tasks, spec.n_way, n, 2, generator=generator)
        y = torch.arange(spec.n_way)[:, None].expand(n_tasks, spec.n_way, n)
        drawn.append((pool, spec, generator.initial_seed(), x))
        k = spec.n_shot
        return TaskBatch(x[:, :, :k].flatten(1, 2), y[:, :, :k].flatten(1), x[:, :, k:].flatten(1, 2), y[:, :, k:].flatten(1))

class Mute(Exception):
    def __str__(self):
        return 1 / 0

class Moody(Learner):
    name = "moody"
    any_way = True

    @dataclass(frozen=True)
    class Config:
        mood: str = tune.choice("fair", "raises", "exits", "is_mute", "gives_up", "turns_nan", "is_nan", "cannot_be_built", "makes_noise")

    def __init__(self, spec, encoder, config):
        super().__init__(spec, encoder, config)
        if config.mood == "cannot_be_built":
            raise MemoryError("no room")
        self.twin = encoder  # the same weights under another name
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, support_x, support_y, query_x):
        match self.config.mood:
            case "raises":
                raise ValueError("no [such] luck\\nand more")
            case "exits":
                sys.exit(3)
            case "is_mute":
                raise Mute
            case "gives_up":
                raise TrialError("this leads nowhere")
        support, query = self.twin(support_x), self.twin(query_x)
        if self.config.mood == "makes_noise":
            query = query + torch.rand_like(query)
        member = (support_y[:, None] == torch.arange(self.spec.n_way)).float()
        scores = self.scale.exp() * query @ (member.T @ support).T
        if self.config.mood == "turns_nan" or (self.config.mood == "is_nan" and not self.training):
            return scores * float("nan")
        return scores

@hookimpl
def register_task_samplers():
    return [Points]

@hookimpl
def register_learners():
    return [Moody]
"""  # noqa: E501

STUDY = {
    "name": "s",
    "tasks": {"sampler": "points", "n_way": 3, "n_shot": 2, "n_query": 4},
    "learners": ["moody", "protonet", "maml"],
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "budget": {"tasks": 40},
    "evaluation": {"tasks": 30},
}
GLYPHS = {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
          "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5}  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[plugins.Registry]:
    torch.set_num_threads(1)
    (tmp_path / "acme_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    lab = metadata.EntryPoint("lab", "acme_lab", "metaopt")
    yield plugins.load([*metadata.entry_points(group="metaopt"), lab])
    del sys.modules["acme_lab"]


def bench_of(registry: plugins.Registry, **changes: Any) -> Bench:
    return Bench(resolve(STUDY | changes, "a.yaml", registry), registry, CPU)


@pytest.fixture
def bench(registry: plugins.Registry) -> Bench:
    return bench_of(registry)


def drawn() -> list[tuple[Any, ...]]:
    """What was drawn from the sampler: pool, sizes, the generator's seed, examples."""
    return list(sys.modules["acme_lab"].drawn)


def job_of(bench: Bench, learner: str = "protonet", **changes: Any) -> Job:
    params = bench.study.space.default(learner) | changes.pop("params", {})
    return replace(Job(7, params, 11, Budget(tasks=40), "validation", "search", 30), **changes)


def timeless(done: Done) -> tuple[dict[str, Any], tuple[float, ...]]:
    result = asdict(done.result)
    return {name: value for name, value in result.items() if "seconds" not in name}, done.per_task


def test_the_same_job_gives_the_same_result_bit_for_bit_and_another_seed_another(bench: Bench) -> None:
    for learner in ("protonet", "maml", "moody"):
        first, second = bench.run(job_of(bench, learner)), bench.run(job_of(bench, learner))
        assert first.result.state == "complete"
        assert timeless(first) == timeless(second)
    other = bench.run(job_of(bench, "maml", seed=12))
    assert other.per_task != bench.run(job_of(bench, "maml")).per_task


def test_pictures_and_their_encoder_give_the_same_result_twice(registry: plugins.Registry) -> None:
    found = []
    for _ in range(2):
        bench = bench_of(registry, tasks=GLYPHS, encoder={"conv4": {"width": 8}})
        found.append(bench.run(job_of(bench, budget=Budget(tasks=8), n_tasks=10)))
    assert found[0].result.state == "complete"
    assert timeless(found[0]) == timeless(found[1])


def test_a_learner_that_draws_random_numbers_is_repeated_too(bench: Bench) -> None:
    def noisy() -> Done:
        return bench.run(job_of(bench, "moody", params={"moody.mood": "makes_noise"}))

    torch.manual_seed(1)
    first = noisy()
    torch.rand(5)
    assert timeless(noisy()) == timeless(first)


def test_a_trial_leaves_the_global_generator_as_it_was(bench: Bench) -> None:
    before = torch.get_rng_state()
    bench.run(job_of(bench, "moody", params={"moody.mood": "makes_noise"}))
    bench.build(bench.study.space.default("maml"), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_makes_the_weights(bench: Bench) -> None:
    params = bench.study.space.default("maml")
    one, same, other = (bench.build(params, seed) for seed in (3, 3, 4))
    weights = [torch.cat([p.detach().flatten() for p in learner.parameters()]) for learner in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_result_says_what_was_done(bench: Bench) -> None:
    done = bench.run(job_of(bench, budget=Budget(tasks=41)))
    result = done.result
    assert (result.number, result.seed, result.learner, result.reason) == (7, 11, "protonet", None)
    assert (result.trained_tasks, result.planned_tasks, result.tasks, result.not_finite) == (41, 41, 30, 0)
    assert result.parameters == 2 * 8 + 8
    assert 0 < result.evaluation_seconds < result.seconds
    assert result.cpu_seconds > 0


def test_the_mean_and_its_interval_are_those_of_the_scores_task_by_task(bench: Bench) -> None:
    done = bench.run(job_of(bench, "maml"))
    per_task = torch.tensor(done.per_task, dtype=torch.float64)
    assert len(per_task) == 30
    assert done.result.mean == per_task.mean()
    deviation = ((per_task - per_task.mean()).square().sum() / 29).sqrt()
    assert done.result.ci95 == pytest.approx(1.96 * deviation.item() / math.sqrt(30), rel=1e-12)
    assert done.result.median == pytest.approx(statistics.median(done.per_task))


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("raises", r"ValueError at acme_lab.py:\d+: no \[such\] luck"),
        ("exits", r"SystemExit at acme_lab.py:\d+: 3"),
        ("is_mute", r"Mute at acme_lab.py:\d+: \(an error that cannot say why\)"),
        ("gives_up", "this leads nowhere"),
        ("turns_nan", "the meta-training loss became nan after 4 tasks"),
        ("cannot_be_built", r"MemoryError at acme_lab.py:\d+: no room"),
    ],
)
def test_whatever_a_learner_raises_fails_its_trial_with_the_reason(bench: Bench, mood: str, reason: str) -> None:
    done = bench.run(job_of(bench, "moody", params={"moody.mood": mood}))
    assert (done.result.state, done.result.mean, done.per_task) == ("failed", None, ())
    assert done.result.reason
    assert pytest.raises(ValueError, match=f"^{reason}$").matches(ValueError(done.result.reason))


def test_predictions_that_are_not_finite_count_as_the_worst_score_and_are_counted(bench: Bench) -> None:
    done = bench.run(job_of(bench, "moody", params={"moody.mood": "is_nan"}))
    assert (done.result.state, done.result.mean, done.result.not_finite) == ("complete", 0.0, 30)


def test_a_regression_whose_predictions_are_not_finite_fails(registry: plugins.Registry) -> None:
    tasks = {"sampler": "sinusoid", "n_shot": 5, "n_query": 5}
    bench = bench_of(registry, tasks=tasks, learners=["maml"], executor="loop")
    wild = {"maml.inner_lr": 1.0, "maml.test_steps": 20, "mlp.width": 1024, "outer.lr": 0.1}
    done = bench.run(job_of(bench, "maml", params=wild))
    assert done.result.state == "failed"
    assert done.result.reason
    assert "not finite" in done.result.reason or "loss became" in done.result.reason


def test_a_learner_that_cannot_be_built_does_not_keep_a_study_from_beginning(registry: plugins.Registry) -> None:
    bench = bench_of(registry, learners={"moody": {"mood": "cannot_be_built"}, "protonet": None})
    bench.check()
    done = bench.run(job_of(bench, "moody"))
    assert (done.result.state, bench.run(job_of(bench)).result.state) == ("failed", "complete")
    assert done.result.reason
    assert done.result.reason.endswith("no room")


# Augmentation


def test_an_augmented_pipeline_learns_from_other_tasks_and_a_learner_knows_its_augmentation(bench: Bench) -> None:
    plain = bench.run(job_of(bench))
    noisy = bench.run(job_of(bench, params={"augment.noise": 1.0}))
    assert noisy.result.state == "complete"
    assert noisy.per_task != plain.per_task
    built = bench.build(bench.study.space.default("protonet") | {"augment.rotate": 20.0}, 0)
    assert (built.augment.rotate, built.augment.turn) == (20.0, "none")


def test_augmentation_of_pictures_is_refused_for_vectors_before_any_trial(registry: plugins.Registry) -> None:
    for augment, ends in (({"rotate": {"low": 0, "high": 5}}, "rotate"), ({"turn": None}, "turn")):
        bench = bench_of(registry, tasks={"sampler": "gaussian", "n_way": 3, "n_shot": 1}, augment=augment)
        with pytest.raises(UserError, match=rf"augment\.{ends} is for pictures and the examples have shape \(16,\)"):
            bench.check()
    bench_of(
        registry, tasks={"sampler": "gaussian", "n_way": 3, "n_shot": 1}, augment={"noise": None, "rotate": 0}
    ).check()


# Rungs, deadlines, interruptions


def test_a_trial_that_may_be_stopped_is_looked_at_after_a_quarter_and_a_half_of_its_budget(bench: Bench) -> None:
    seen = []

    def report(progress: float, scores: tuple[float, ...]) -> bool:
        seen.append((progress, scores))
        return False

    bench.run(job_of(bench, "maml"), report)
    assert seen == [], "only a trial that may be pruned"
    looked_at = bench.run(job_of(bench, "maml", reports=True), report)
    assert [progress for progress, _ in seen] == [0.25, 0.5]
    assert all(len(scores) == 30 and 0.0 <= min(scores) <= max(scores) <= 1.0 for _, scores in seen)
    assert timeless(looked_at) == timeless(bench.run(job_of(bench, "maml"))), "to look at it changes nothing"


def test_a_hopeless_trial_is_pruned_where_it_was_found_so(bench: Bench) -> None:
    done = bench.run(job_of(bench, "maml", reports=True), lambda progress, value: progress == 0.5)
    assert (done.result.state, done.result.reason) == ("pruned", "hopeless at 50% of its budget")
    assert (done.result.trained_tasks, done.result.planned_tasks, done.result.mean) == (20, 40, None)


def test_a_trained_trial_is_looked_at_after_20_40_80_160_and_320_tasks_or_soon_after(bench: Bench) -> None:
    seen: list[tuple[float, ...]] = []

    def report(progress: float, scores: tuple[float, ...]) -> bool:
        if progress == 1.0:
            seen.append(scores)
        return False

    job = job_of(bench, reports=True, n_tasks=600)
    done = bench.run(job, report)
    assert [len(scores) for scores in seen] == [32, 48, 80, 160, 320], "tasks are computed sixteen at once"
    assert all(scores == done.per_task[: len(scores)] for scores in seen)
    stopped = bench.run(job, lambda progress, scores: progress == 1.0 and len(scores) == 80)
    assert (stopped.result.state, stopped.result.reason) == ("pruned", "beaten by the best so far on 80 of 600 tasks")
    assert (stopped.result.tasks, stopped.result.mean, stopped.per_task) == (80, None, ())
    seen.clear()
    bench.run(job_of(bench, n_tasks=600), report)
    assert seen == [], "only a trial that may be pruned"


def test_a_trial_ends_at_its_deadline_and_where_the_study_is_interrupted(bench: Bench) -> None:
    late = bench.run(job_of(bench, deadline=time.monotonic() - 1))
    assert (late.result.state, late.result.reason) == ("pruned", "timeout")
    told = iter([False, False, True])
    interrupted = bench.run(job_of(bench), stopped=lambda: next(told))
    assert (interrupted.result.state, interrupted.result.reason) == ("pruned", "interrupted")
    assert interrupted.result.trained_tasks == 8
    told = iter([False] * 10 + [True])
    assert bench.run(job_of(bench), stopped=lambda: next(told)).result.reason == "interrupted", "while it is scored too"


def test_a_budget_in_seconds_is_repeated_exactly_by_the_tasks_that_it_came_to(bench: Bench) -> None:
    cosine: Params = {"outer.schedule": "cosine"}
    timed = bench.run(job_of(bench, params=cosine, budget=Budget(cpu_seconds=0.2)))
    result = timed.result
    assert 0 < result.trained_tasks <= result.planned_tasks
    budget = Budget(tasks=result.trained_tasks, planned=result.planned_tasks)
    assert timeless(bench.run(job_of(bench, params=cosine, budget=budget))) == timeless(timed)


# Evaluation tasks


def test_every_learner_is_scored_on_the_same_tasks(bench: Bench) -> None:
    examples = []
    for learner, seed in (("protonet", 1), ("maml", 2)):
        before = len(drawn())
        bench.run(job_of(bench, learner, seed=seed))
        examples.append(torch.cat([x for pool, _, _, x in drawn()[before:] if pool == "validation"]))
    assert len(examples[0]) == 30
    assert torch.equal(examples[0], examples[1])


def test_pool_purpose_and_the_studys_seed_name_the_evaluation_tasks(registry: plugins.Registry) -> None:
    found = []
    for seed in (0, 1):
        bench = bench_of(registry, seed=seed)
        learner = bench.build(bench.study.space.default("protonet"), 0)
        for pool, purpose in (("validation", "search"), ("validation", "finalists"), ("test", "search")):
            before = len(drawn())
            bench.score(learner, pool, purpose, 5)  # type: ignore[arg-type]
            [(used, _, generator_seed, _)] = drawn()[before:]
            assert (used, generator_seed) == (pool, seeds.derive(seed, "evaluate", pool, purpose))
            found.append(generator_seed)
    assert len(set(found)) == 6


def test_training_tasks_come_from_the_train_pool_with_the_trials_own_seed(bench: Bench) -> None:
    bench.run(job_of(bench, seed=5))
    assert {seed for pool, _, seed, _ in drawn() if pool == "train"} == {seeds.derive(5, "train")}
    assert {pool for pool, *_ in drawn()} == {"train", "validation"}


def test_train_tasks_may_have_other_sizes_than_those_that_score(registry: plugins.Registry) -> None:
    tasks = STUDY["tasks"] | {"train_way": 6, "train_shot": 3, "train_query": 2}  # type: ignore[operator]
    bench = bench_of(registry, tasks=tasks, learners=["protonet"])
    assert bench.run(job_of(bench)).result.state == "complete"
    sizes = {(pool, spec.n_way, spec.n_shot, spec.n_query) for pool, spec, *_ in drawn()}
    assert sizes == {("train", 6, 3, 2), ("validation", 3, 2, 4)}


def test_trials_run_with_a_range_of_shots(registry: plugins.Registry) -> None:
    tasks = STUDY["tasks"] | {"n_shot": [1, 4], "train_shot": [2, 3]}  # type: ignore[operator]
    bench = bench_of(registry, tasks=tasks)
    bench.check()
    for learner in ("moody", "protonet", "maml"):
        assert bench.run(job_of(bench, learner, n_tasks=200)).result.state == "complete"
    shots = {pool: {spec.n_shot for drawn_from, spec, *_ in drawn() if drawn_from == pool} for pool, *_ in drawn()}
    assert shots == {"train": {2, 3}, "validation": {1, 2, 3, 4}}


def test_tasks_keep_within_groups_as_the_study_says(registry: plugins.Registry, tmp_path: Path) -> None:
    y = np.arange(60) % 12
    x = np.random.default_rng(0).random((60, 3)) + y[:, None] // 4 * 10  # the group is in the numbers
    np.savez(tmp_path / "a.npz", X=x, y=y, group=[f"g{n}" for n in y // 4])
    pools = {"train": ["g0"], "validation": ["g1"], "test": ["g2"]}
    tasks = {"sampler": "arrays", "file": str(tmp_path / "a.npz"), "n_way": 2, "n_shot": 1, "n_query": 2}
    bench = bench_of(registry, tasks={**tasks, **pools, "within": 1}, learners=["pixels"])
    bench.check()
    assert (bench.spec.within, bench.train_spec.within) == (1.0, 1.0)
    mixed = {**tasks, "split": "12/0/0", "within": 1, "train_within": 0.5}
    bench = bench_of(registry, tasks=mixed, learners=["pixels"])
    for spec, share in ((bench.spec, 1.0), (bench.train_spec, 0.5 + 0.5 * 3 / 11)):
        groups = (bench.sampler.draw("train", spec, 400, seeds.generator(0)).support_x / 10).long()[:, :, 0]
        assert float((groups[:, 0] == groups[:, 1]).float().mean()) == pytest.approx(share, abs=0.08 * (share < 1))


# Weights


def test_saved_weights_are_the_learners_also_where_one_tensor_has_two_names(bench: Bench, tmp_path: Path) -> None:
    done = bench.run(job_of(bench, "moody", save_to=tmp_path / "w.safetensors"))
    assert done.result.state == "complete"
    tensors = load_file(tmp_path / "w.safetensors")
    assert torch.equal(tensors["encoder.layers.0.weight"], tensors["twin.layers.0.weight"])
    learner = bench.build(done.result.params, seed=999)
    learner.load_state_dict(tensors)
    assert tuple(bench.score(learner, "validation", "search", 30).per_task.tolist()) == done.per_task


def test_a_failed_trial_saves_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.run(job_of(bench, "moody", params={"moody.mood": "raises"}, save_to=tmp_path / "w.safetensors"))
    assert list(tmp_path.glob("*w.safetensors*")) == []


# What is checked before a study begins


def test_tasks_that_a_pool_cannot_give_are_refused_with_the_numbers_that_would_do(registry: plugins.Registry) -> None:
    small = {"name": "s", "learners": ["pixels"]}
    with pytest.raises(
        UserError, match=r"^7-way tasks need 7 classes and the validation pool has 6; set tasks.n_way to 6"
    ):
        bench_of(registry, **small, tasks=GLYPHS | {"n_way": 7}).check()
    with pytest.raises(
        UserError, match=r"^6-way tasks need 6 classes and the test pool has 5; set tasks.n_way to 5 or"
    ):
        bench_of(registry, **small, tasks=GLYPHS | {"n_way": 6}).check()
    with pytest.raises(UserError, match=r"of the train pool has 5; set tasks.n_query to 1 or less with 4 shots"):
        bench_of(registry, **small, tasks=GLYPHS | {"n_shot": 4, "n_query": 2}).check()
    bench_of(registry, **small, tasks=GLYPHS | {"n_way": 5, "n_shot": 4, "n_query": 1}).check()


@pytest.mark.parametrize("encoder", [["conv4"], ["mlp", "conv4"]])
def test_each_encoder_that_does_not_suit_the_examples_is_refused(
    registry: plugins.Registry, encoder: list[str]
) -> None:
    with pytest.raises(UserError, match=r"^the encoder conv4 needs pictures"):
        bench_of(registry, encoder=encoder).check()


def test_a_setting_that_the_sampler_refuses_is_refused(registry: plugins.Registry) -> None:
    with pytest.raises(UserError, match=r"^tasks.size is 3; glyphs need 8 at least"):
        bench_of(registry, tasks=GLYPHS | {"size": 3}, learners=["pixels"])


def test_a_bench_is_rebuilt_in_another_process_as_it_was(registry: plugins.Registry) -> None:
    bench = bench_of(registry, tasks=GLYPHS, learners=["pixels"], encoder=["conv4"], seed=4)
    again = pickle.loads(pickle.dumps(bench))
    assert again.study == copy.deepcopy(bench.study)
    job = Job(0, {"learner": "pixels"}, 0, Budget(tasks=1), "validation", "search", 10)
    assert timeless(again.run(job)) == timeless(bench.run(job))


# Resolution


def of_pictures(sampler: str, encoder: dict[str, Any], **tasks: Any) -> Bench:
    raw = {
        "name": "s",
        "tasks": {"sampler": sampler, "n_way": 3, "n_shot": 1, "n_query": 3, **tasks},
        "learners": {"protonet": {}, "frn": {}} if sampler == "glyphs" else {"protonet": {}},
        "encoder": encoder,
        "budget": {"tasks": 4},
    }
    registry = plugins.load()
    return Bench(resolve(raw, "s.yaml", registry), registry, CPU)


@pytest.mark.parametrize("learner", ["protonet", "frn"])
def test_a_trial_at_a_lower_resolution_is_one_on_pictures_made_smaller(learner: str) -> None:
    pools = {"train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 6}
    bench = of_pictures("glyphs", {"conv4": {"width": 8}}, resolution=[32, 16], size=32, **pools)
    bench.check()
    full = bench.study.space.default(learner)
    assert full["tasks.resolution"] == 32
    for resolution, grid in ((16, (8, 1, 1)), (32, (8, 2, 2))):
        params = full | {"tasks.resolution": resolution}
        assert bench.build(params, seed=0).encoder.map_shape == grid
        done = bench.run(Job(0, params, 1, Budget(tasks=4), "validation", "search", 20))
        assert done.result.state == "complete", done.result.reason


def test_a_resolution_that_no_encoder_can_halve_or_of_no_pictures_is_refused_before_any_trial() -> None:
    with pytest.raises(UserError, match=r"halves a picture 4 times: .8, 8. pixels are too few"):
        of_pictures("glyphs", {"conv4": {"width": 8}}, resolution=[8, 28]).check()
    with pytest.raises(UserError, match=r"tasks\.resolution is for pictures and the examples have shape \(4,\)"):
        of_pictures("gaussian", {"mlp": {}}, features=4, resolution=16).check()


# Precision


def in_bfloat16(**learners: Any) -> Bench:
    raw = {
        "name": "s",
        "tasks": {"sampler": "gaussian", "features": 40, "n_way": 3, "n_shot": 1, "n_query": 3},
        "learners": learners,
        "encoder": {"mlp": {"width": 64, "depth": 3}},
        "precision": "bfloat16",
        "budget": {"tasks": 8},
    }
    registry = plugins.load()
    return Bench(resolve(raw, "s.yaml", registry), registry, CPU)


def test_a_trial_in_bfloat16_comes_close_to_one_in_float32() -> None:
    bench = in_bfloat16(protonet={})
    bench.check()
    rough = bench.run(Job(0, bench.study.space.default("protonet"), 1, Budget(tasks=8), "validation", "search", 20))
    exactly = replace(bench.study, space=replace(bench.study.space, precision="float32"))
    exact = Bench(exactly, bench.registry, CPU).run(
        Job(0, bench.study.space.default("protonet"), 1, Budget(tasks=8), "validation", "search", 20)
    )
    assert rough.result.mean == pytest.approx(exact.result.mean, abs=0.05)


def test_bfloat16_is_refused_where_it_leads_the_first_gradient_elsewhere() -> None:
    bench = in_bfloat16(protonet={}, maml={"inner_lr": 1.0, "inner_steps": 10})
    with pytest.raises(UserError, match="the first gradient of maml agrees too little with that in float32"):
        bench.check()
