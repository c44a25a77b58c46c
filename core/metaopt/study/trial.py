"""One trial: build a pipeline, meta-train it, score it. Everything that comes back is plain data."""

import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from metaopt import seeds, tune
from metaopt.augment import Augment
from metaopt.checkpoint import Checkpoint, Place
from metaopt.ensemble import Ensemble, mean
from metaopt.ensemble import choose as choose_members
from metaopt.errors import TrialError, UserError, of_disk
from metaopt.executor import Executor, Loop, choose, trainable
from metaopt.files import whole
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, reduced
from metaopt.objective import MetaObjective, Outcome
from metaopt.plugins import Registry
from metaopt.study.file import Study, resolve
from metaopt.study.space import RESOLUTION, TURNS, Drawing, Params, Space, section
from metaopt.study.statistics import looks_at
from metaopt.task import Pool, TaskSampler, TaskSpec
from metaopt.train import (
    Budget,
    Outer,
    Played,
    Scores,
    Training,
    draw_batch,
    meta_test,
    meta_train,
    play,
    temperature_of,
)

RUNGS = (0.25, 0.5)
"""Shares of a trial's budget at which it is scored on a few tasks: its learning curve, by which it may be stopped."""
RUNG_TASKS = 50
LEAST_AGREEMENT = 0.95
"""Cosine between a gradient in less precise arithmetic and the one in float32 below which the former is refused."""
Report = Callable[[float, tuple[float, ...]], bool]
"""Hears the share of meta-training done and the scores, task by task, so far; answers whether to prune."""
TIMEOUT = "timeout"
"""The reason of a trial for which the study's time was too short."""
INTERRUPTED = "interrupted"
"""The reason of a trial that the user interrupted: it will be run again."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to; `trial_finished` hooks are given it."""

    number: int
    state: Literal["complete", "pruned", "failed"]
    learner: str
    params: Params
    seed: int
    reason: str | None = None
    """Why it failed or was stopped, in one line."""
    mean: float | None = None
    ci95: float | None = None
    median: float | None = None
    estimate: float | None = None
    """Where it was stopped: what it would have come to, which is what the sampler is told."""
    tasks: int = 0
    """Tasks it was scored on."""
    not_finite: int = 0
    """Of those, tasks whose predictions were not finite."""
    trained_tasks: int = 0
    planned_tasks: int = 0
    cpu_seconds: float = 0.0
    """Of meta-training."""
    seconds: float = 0.0
    """Of everything, by the wall clock."""
    evaluation_seconds: float = 0.0
    """Of the final evaluation, by the wall clock."""
    objective: str = ""
    """By which the figures above are: the study's first."""
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Mean and ci95 by the other objectives of a study that has several, by name."""
    parameters: int = 0
    """Numbers that meta-training moves."""


@dataclass(frozen=True)
class Member:
    """A finalist in an ensemble, or one that may become a part of it."""

    number: int
    """Of its trial."""
    params: Params
    seed: int
    weights: Path
    count: int = 1
    """How often it was chosen: its share in the mean, before that is divided by all of them."""
    temperature: float = 1.0
    """What divides its class scores for its probabilities, fitted on the tasks by which members are chosen."""


@dataclass(frozen=True)
class Job:
    """An order: train this pipeline with this seed and score it on these tasks."""

    number: int
    params: Params
    seed: int
    budget: Budget
    pool: Pool
    purpose: str
    """Names the evaluation tasks: the same pool, purpose and study seed give the same tasks."""
    n_tasks: int
    reports: bool = False
    """Whether it reports its scores on the way, and may be told to stop."""
    deadline: float = math.inf
    """On the monotonic clock."""
    save_to: Path | None = None
    """A file for the weights."""
    weights: Path | None = None
    """A file of weights to score as they are, without training."""
    members: tuple[Member, ...] = ()
    """Score an ensemble of these, as they are."""
    choose: int = 0
    """Of these so many at most are chosen first, by other tasks than those that are scored; 0: all as they are."""
    final: bool = False
    """Whether this trains the winner: not in folds, but on all the classes that it may be trained on."""
    checkpoint: Place | None = None
    """For its state on the way through a long meta-training, from which it goes on."""
    scoring_seconds: float = math.inf
    """CPU seconds after which it has been scored on enough of its tasks."""

    def seconds_for(self, n_tasks: int) -> float:
        """Return the share of these seconds that so many of its tasks have."""
        return self.scoring_seconds * n_tasks / self.n_tasks


@dataclass(frozen=True)
class Done:
    """A job's result, with its scores task by task."""

    result: TrialResult
    per_task: tuple[float, ...] = ()
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Scores task by task by the other objectives of a study that has several."""
    members: tuple[Member, ...] = ()
    """Of an ensemble, as they were chosen."""


@dataclass
class _Course:
    """How a job goes, whatever ends it."""

    training: Training = field(default_factory=Training)
    """Over all folds so far."""
    parameters: int = 0
    raced: int = 0
    """Tasks after which it was stopped in its evaluation."""
    evaluation_seconds: float = 0.0
    earlier: float = 0.0
    """Seconds that it took before it was taken up from a checkpoint."""
    members: tuple[Member, ...] = ()
    """Of an ensemble, as they were chosen."""


class Stop(Exception):  # noqa: N818 - not an error
    """Ends a job before its time, as pruned ("hopeless", "timeout") or as interrupted."""


class Bench:
    """A study made ready to run: its data read, its sizes checked. Picklable, to be rebuilt by worker processes."""

    def __init__(self, study: Study, registry: Registry, device: torch.device) -> None:
        self.study, self.registry, self.device = study, registry, device
        self.sampler: TaskSampler = registry.task_sampler(study.tasks.sampler)(study.tasks.config)
        self.objective, *self.others = (
            registry.meta_objective(name)(config) for name, config in study.objectives.items()
        )
        self.decisive = next(one for one in (self.objective, *self.others) if one.name == study.objective)
        """The objective by which finalists are ranked."""
        self.spec, self.train_spec = study.tasks.specs(self.sampler)
        folds = self.sampler.folds(study.evaluation.folds) if study.evaluation.folds else ()
        self.folds: list[Bench] = [self._on(sampler) for sampler in folds] or [self]
        """On each of which a trial is meta-trained, and scored on the classes that this one keeps for that."""
        self.last: Bench = self._on(self.sampler.whole()) if study.final else self
        """On which the winner is meta-trained."""

    def _on(self, sampler: TaskSampler) -> "Bench":
        """Return a bench of the same study on other pools; its folds are those of the study, if these are known."""
        other = object.__new__(Bench)  # a copy would be made of the study, as for another process
        vars(other).update({"folds": [other]} | vars(self), sampler=sampler, last=other)
        other.spec, other.train_spec = self.study.tasks.specs(sampler)
        return other

    def __reduce__(self) -> tuple[Callable[..., "Bench"], tuple[dict[str, Any], str]]:
        return _reopen, (self.study.to_dict(), str(self.device))

    def executor(self, learner: Learner) -> Executor:
        """Return the executor that runs this learner's tasks."""
        asked = self.study.executor
        name = asked if isinstance(asked, str) else asked.get(learner.name, "auto")
        return choose(name, self.spec, self.device.type) if learner.batchable else Loop()

    def decided(self, scores: Scores) -> Scores:
        """Return scores as they are by the decisive objective, those by the others beside them."""
        if self.decisive is self.objective:
            return scores
        by = {self.objective.name: replace(scores, others={}), **scores.others}
        decisive = by.pop(self.decisive.name)
        return replace(decisive, others=by)

    def check(self) -> None:
        """Raise UserError where the pools cannot give the study's tasks, or an encoder does not suit the examples."""
        searched = self.study.space.tasks
        largest = {name: max(one[name] for one in tune.extremes({name: searched[name]})) for name in searched}
        for bench in dict.fromkeys((*self.folds, self.last)):
            for drawing in (dict[str, Any](), largest, *tune.extremes(searched)):
                chosen = {f"tasks.{name}": value for name, value in drawing.items()}
                bench.sampler.check("train", bench.drawn(chosen))
        for fold in self.folds:
            fold.sampler.check("validation", fold.spec)
        self.sampler.check("test", self.spec)
        for objective in (self.objective, *self.others):
            objective.check(self.spec)
        if any(objective.fits_temperature for objective in (self.objective, *self.others)):
            self.sampler.check("train", self.spec)
        self._check_pipelines()

    def _check_pipelines(self) -> None:
        """Raise UserError where augmentation, resolution, encoder or precision do not suit the examples."""
        space = self.study.space
        for strengths in tune.extremes(space.augment):
            Augment(**strengths).check(self.spec.x_shape)
        sizes = [{RESOLUTION: size["resolution"]} for size in tune.extremes(space.tasks) if "resolution" in size]
        if (sizes or space.drawing.resolution < Drawing().resolution) and len(self.spec.x_shape) != 3:
            raise UserError(
                f"tasks.resolution is for pictures and the examples have shape {self.spec.x_shape}; leave it out"
            )
        for learner in space.learners:
            for encoder in space.encoders:
                try:
                    for size in sizes or [{}]:
                        self.build(space.default(learner, encoder) | size, seed=0)
                except UserError:
                    raise
                except Exception:  # its trials will fail and say why
                    continue
            if space.precision != "float32":
                self._check_precision(learner)

    def _check_precision(self, learner: str) -> None:
        """Raise UserError where less precise features lead a learner's meta-training elsewhere."""
        if not (cosine := self._agreement(learner)) >= LEAST_AGREEMENT:
            raise UserError(
                f"precision: in {self.study.space.precision} the first gradient of {learner} agrees too little with "
                f"that in float32 (a cosine of {cosine:.2f}, and {LEAST_AGREEMENT} is the least); set precision to "
                f"float32, or leave {learner} out"
            )

    def _agreement(self, learner: str) -> float:
        """Return the cosine between the first gradients of a learner's default pipeline in the study's precision and
        in float32; 1 where nothing is trained.
        """
        params = self.study.space.default(learner)
        found = []
        for precision in ("float32", self.study.space.precision):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                built = self.build(params, seed=0).train()
                if built.trains_on == "nothing" or not built.uses_encoder or not trainable(built):
                    return 1.0
                for encoder in (module for module in built.modules() if isinstance(module, Encoder)):
                    encoder.precision = precision
                steps: list[Tensor] = []

                def note(gradients: Gradients, steps: list[Tensor] = steps) -> None:
                    steps.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))

                batch = draw_batch(built, built.spec, self.sampler, 4, seeds.generator(0, "precision"))
                built.outer_step(batch.to(self.device), Loop(), note)
                found.append(steps[0])
        exact, rough = (gradient / gradient.norm() for gradient in found)
        return float(exact @ rough)

    def build(self, params: Params, seed: int) -> Learner:
        """Return a fresh learner of that pipeline, sized for the train tasks. The global generator is left alone."""
        return assembled(self.study.space, self.drawn(params), params, seed).to(self.device)

    def drawn(self, params: Params) -> TaskSpec:
        """Return the sizes of the train tasks of a pipeline, which may choose them."""
        chosen, spec = section(params, "tasks"), self.train_spec
        if "train_shot" in chosen:
            spec = replace(spec, n_shot=chosen["train_shot"], least_shot=0, unequal=False)
        return replace(
            spec,
            n_way=chosen.get("train_way", spec.n_way),
            n_query=chosen.get("train_query", spec.n_query),
            within=chosen.get("train_within", spec.within),
            same_source=chosen.get("train_same_source", spec.same_source),
        )

    def resize(self, learner: Learner, n_way: int | None, n_shot: int | None) -> None:
        """Give the tasks that a learner is scored on other sizes. Raises UserError where learner or pool forbid it."""
        spec = self.spec
        if n_way is not None and n_way != spec.n_way:
            if spec.kind != "classification":
                raise UserError(f"--way: {spec.kind} tasks have no classes; leave it out")
            if not learner.any_way:
                raise UserError(
                    f"--way: {learner.name} learns a fixed number of ways, here {spec.n_way}; leave it out, or train "
                    f"it with tasks.n_way {n_way}"
                )
            spec = replace(spec, n_way=n_way)
        if n_shot is not None and spec.description_shape:
            raise UserError("--shot: a support set holds one description of each class; leave it out")
        if n_shot is not None:
            spec = replace(spec, n_shot=n_shot, least_shot=0, unequal=False)
        if spec.n_way < 2 and spec.kind == "classification":
            raise UserError("--way: 1 class leaves nothing to tell apart; give 2 or more")
        self.sampler.check("test", spec)
        self.spec = spec

    def score(
        self,
        learner: Learner,
        pool: Pool,
        purpose: str,
        n_tasks: int,
        at: Callable[[Tensor], None] = lambda scores: None,
        cpu_seconds: float = math.inf,
    ) -> Scores:
        """Score a learner on the tasks that pool and purpose name, or the first of them in about that time.

        Every learner gets the same ones.
        """
        return meta_test(
            learner.with_spec(self.spec),
            self.sampler,
            pool,
            self.objective,
            n_tasks,
            self.executor(learner),
            draw=seeds.generator(self.study.seed, "evaluate", pool, purpose),
            device=self.device,
            at=at,
            others=self.others,
            cpu_seconds=cpu_seconds,
        )

    def run(
        self,
        job: Job,
        report: Report = lambda progress, scores: False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Done:
        """Carry out a job. `report` hears of rungs and looks and answers whether to prune.

        Whatever a learner raises, or a score that is not finite, fails the trial and is its reason.
        """
        started, course = time.monotonic(), _Course()
        result = TrialResult(job.number, "failed", job.params["learner"], job.params, job.seed)
        scores: Scores | None = None
        try:
            scores = self._carry_out(job, course, report, stopped)
        except Stop as stop:
            result = replace(result, state="pruned", reason=str(stop))
        except TrialError as error:
            result = replace(result, reason=str(error))
        except (Exception, SystemExit) as error:  # a learner may raise anything; it costs its trial only
            if of_disk(error):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            result = replace(result, reason=f"{type(error).__name__} at {where}: {_first_line(error)}")
        result = replace(
            result,
            parameters=course.parameters,
            trained_tasks=course.training.tasks,
            planned_tasks=course.training.planned,
            cpu_seconds=course.training.cpu_seconds,
            evaluation_seconds=course.evaluation_seconds,
            tasks=course.raced,
            seconds=time.monotonic() - started + course.earlier,
        )
        if scores is None:
            return Done(result)
        result = replace(
            result,
            state="complete",
            objective=self.objective.name,
            mean=scores.mean,
            ci95=scores.ci95,
            median=scores.median,
            tasks=len(scores.per_task),
            not_finite=scores.not_finite,
            others={name: {"mean": other.mean, "ci95": other.ci95} for name, other in scores.others.items()},
        )
        per_task = {name: tuple(other.per_task.tolist()) for name, other in scores.others.items()}
        return Done(result, tuple(scores.per_task.tolist()), per_task, course.members)

    def _carry_out(self, job: Job, course: "_Course", report: Report, stopped: Callable[[], bool]) -> Scores:
        """Meta-train and score a job's pipeline, fold by fold, and note in `course` how it goes."""
        if job.members:
            return self._ensemble(job, course, until(job.deadline, stopped))
        benches = [self.last] if job.final else self.folds
        sizes = [job.n_tasks // len(benches) + (at < job.n_tasks % len(benches)) for at in range(len(benches))]
        kept = _checkpoint(job) if len(benches) == 1 else None
        check, looks = until(job.deadline, stopped), looks_at(job.n_tasks) if job.reports else []
        budget, parts = _shared(job.budget, len(benches)), list[Scores]()

        def race(so_far: Tensor) -> None:
            check()
            per_task = torch.cat([*(part.per_task for part in parts), so_far])
            if looks and len(per_task) >= looks[0]:
                while looks and len(per_task) >= looks[0]:
                    looks.pop(0)
                if report(1.0, tuple(per_task.tolist())):
                    course.raced = len(per_task)
                    raise Stop(f"beaten by the best so far on {course.raced} of {job.n_tasks} tasks")

        for bench, n_tasks in zip(benches, sizes, strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.derive(job.seed, "train"))
                learner = bench.build(job.params, job.seed)
                course.parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
                if job.weights:
                    learner.load_state_dict(load_file(job.weights))
                else:
                    before = course.training

                    def note(training: Training, before: Training = before) -> None:
                        course.training = before + training
                        course.earlier = kept.earlier if kept else 0.0

                    part = replace(job, budget=budget, reports=job.reports and len(benches) == 1)
                    trained = bench._train(learner, part, kept, report, stopped, note)
                    note(trained)
                    budget = Budget(tasks=trained.tasks, planned=trained.planned)  # for the other folds, alike
                started = time.monotonic()
                seconds = job.seconds_for(n_tasks)
                parts.append(bench.score(learner, job.pool, job.purpose, n_tasks, race, seconds))
                course.evaluation_seconds += time.monotonic() - started
        if job.save_to and len(benches) == 1:
            _save(job.save_to, learner)
        return self._together(parts)

    def _ensemble(self, job: Job, course: "_Course", check: Callable[[], None]) -> Scores:
        """Choose an ensemble's members, where that is asked for, and score it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(job.seed, "train"))
            course.members = self._chosen(job, check) if job.choose else job.members
            learner = self.ensemble(course.members)
            course.parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
            started = time.monotonic()
            scores = self.score(learner, job.pool, job.purpose, job.n_tasks, lambda scores: check())
            course.evaluation_seconds = time.monotonic() - started
        if job.save_to:
            _save(job.save_to, learner)
        return scores

    def ensemble(self, members: Sequence[Member]) -> Ensemble:
        """Return an ensemble of finalists as they were kept."""
        total = sum(member.count for member in members)
        shares = [member.count / total for member in members]
        return Ensemble(
            [self._kept(member) for member in members], shares, [member.temperature for member in members]
        ).to(self.device)

    def _kept(self, member: Member) -> Learner:
        learner = self.build(member.params, member.seed)
        learner.load_state_dict(load_file(member.weights))
        return learner

    def _chosen(self, job: Job, check: Callable[[], None]) -> tuple[Member, ...]:
        """Return the members that do best together, on as many tasks as trials are scored on, and each one's count."""
        played = []
        for member in job.members:
            learner = self._kept(member)
            draw = seeds.generator(self.study.seed, "evaluate", job.pool, "ensemble")
            tasks = play(
                learner.with_spec(self.spec), self.sampler, job.pool, self.study.evaluation.tasks,
                self.executor(learner), draw=draw, device=self.device, before=check,
            )  # fmt: skip
            played.append(list(tasks))
        classes = self.spec.kind == "classification"
        temperatures = [_temperature(parts) if classes else 1.0 for parts in played]

        def worth(chosen: Sequence[int]) -> float:
            share, scores = [1 / len(chosen)] * len(chosen), list[Tensor]()
            for parts in zip(*played, strict=True):
                predictions = [parts[at].predictions for at in chosen]
                together = mean(predictions, share, [temperatures[at] for at in chosen], classes=classes)
                scores.append(self.objective.score(Outcome(parts[0].spec, together, parts[0].batch.query_y)).double())
            value = float(self.objective.contributions(torch.cat(scores)).mean())
            sign = 1 if self.objective.direction == "maximize" else -1
            return sign * value if math.isfinite(value) else -math.inf

        counts = Counter(choose_members(len(played), worth, job.choose))
        return tuple(
            replace(job.members[at], count=count, temperature=temperatures[at]) for at, count in counts.items()
        )

    def _together(self, parts: Sequence[Scores]) -> Scores:
        """Return the scores on all the tasks that folds were scored on."""
        if len(parts) == 1:
            return parts[0]

        def joined(objective: MetaObjective, parts: Sequence[Scores]) -> Scores:
            per_task = torch.cat([part.per_task for part in parts])
            return Scores(per_task, sum(part.not_finite for part in parts), objective.contributions(per_task))

        others = {other.name: joined(other, [part.others[other.name] for part in parts]) for other in self.others}
        return replace(joined(self.objective, parts), others=others)

    def _train(
        self,
        learner: Learner,
        job: Job,
        kept: Checkpoint | None,
        report: Report,
        stopped: Callable[[], bool],
        note: Callable[[Training], None],
    ) -> Training:
        notes = kept.notes if kept else {}
        check = until(job.deadline, stopped)

        def at(training: Training) -> None:
            note(training)
            check()
            passed = notes.get("rungs", 0)
            if job.reports and passed < len(RUNGS) and training.progress >= RUNGS[passed]:
                rung, notes["rungs"] = RUNGS[passed], passed + 1
                n_tasks = min(RUNG_TASKS, job.n_tasks)
                seconds = job.seconds_for(n_tasks)
                scores = self.score(learner, job.pool, job.purpose, n_tasks, lambda scores: check(), seconds)
                learner.train()
                if report(rung, tuple(scores.per_task.tolist())):
                    raise Stop(f"hopeless at {rung:.0%} of its budget")

        outer = Outer(**section(job.params, "outer"))
        return meta_train(
            learner,
            self.sampler,
            outer,
            job.budget,
            self.executor(learner),
            seed=job.seed,
            device=self.device,
            at=at,
            checkpoint=kept,
        )


def _save(path: Path, learner: Learner) -> None:
    tensors = {  # copies, as one tensor under two names cannot be saved
        name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in learner.state_dict().items()
    }
    with whole(path) as temporary:
        temporary.write_bytes(as_bytes(tensors))  # whose errors are those of the disk


def _temperature(played: Sequence[Played]) -> float:
    scores = torch.cat([part.predictions.flatten(0, 1) for part in played]).double()  # (n_tasks * n_queries, n_way)
    return temperature_of(scores, torch.cat([part.batch.query_y.flatten() for part in played]))


def _shared(budget: Budget, n: int) -> Budget:
    """Return one of `n` equal shares of a budget."""
    if n == 1:
        return budget
    tasks, planned = (number and max(1, number // n) for number in (budget.tasks, budget.planned))
    return Budget(tasks, budget.cpu_seconds and budget.cpu_seconds / n, planned)


def _checkpoint(job: Job) -> Checkpoint | None:
    """Return where a job's meta-training is kept on its way, if it is."""
    if job.checkpoint is None:
        return None
    return Checkpoint(job.checkpoint, {"params": job.params, "seed": job.seed, "budget": asdict(job.budget)})


def assembled(space: Space, spec: TaskSpec, params: Params, seed: int) -> Learner:
    """Return a fresh learner of that pipeline, sized for tasks of that spec. The global generator is left alone."""
    cls = space.learner_classes[params["learner"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "weights"))
        encoder: torch.nn.Module = torch.nn.Identity()
        if cls.uses_encoder:
            encoder_class = space.encoder_classes[params["encoder"]]
            config = encoder_class.Config(**section(params, params["encoder"]))
            resolution = params.get(RESOLUTION, space.drawing.resolution)
            encoder = encoder_class(reduced(spec.x_shape, resolution), config)
            encoder.precision, encoder.resolution = space.precision, resolution
        learner = cls(spec, encoder, cls.Config(**section(params, params["learner"])))
    learner.augment = Augment(**section(params, "augment"))
    learner.turns = cls.takes_turns() and params.get(TURNS, space.drawing.train_turns)
    return learner


def until(deadline: float, stopped: Callable[[], bool]) -> Callable[[], None]:
    """Return a check that raises Stop when the study is interrupted or its time is up."""

    def check() -> None:
        if stopped():
            raise Stop(INTERRUPTED)
        if time.monotonic() > deadline:
            raise Stop(TIMEOUT)

    return check


def _reopen(study: dict[str, Any], device: str) -> Bench:
    from metaopt import plugins

    registry = plugins.load()
    return Bench(resolve(study, "the study", registry), registry, torch.device(device))


def _first_line(error: BaseException) -> str:
    try:
        return next(iter(str(error).splitlines()), "")
    except Exception:  # a learner's own error class may fail to print
        return "(an error that cannot say why)"
