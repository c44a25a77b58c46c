"""The only two loops: meta-training over train tasks, and meta-testing on tasks of classes never trained on."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt import seeds, tune
from metaopt.checkpoint import Checkpoint, Moving
from metaopt.ensemble import Ensemble
from metaopt.environment import Environments, lived
from metaopt.errors import TrialError
from metaopt.executor import Executor, trainable
from metaopt.learner import Gradients, Learner
from metaopt.objective import MetaObjective, Outcome
from metaopt.pace import measured
from metaopt.task import Examples, Pool, TaskBatch, TaskSampler, TaskSpec, draw_tasks, sized

TASKS_A_CALL = 16
"""Tasks drawn and evaluated together: enough to spread the cost of a call, few enough to stay in cache."""
LEAST_SCORED = 20
"""Tasks that score a learner, however long they take: of fewer a mean says little."""
ENVIRONMENTS_A_CALL = 32
"""Environments acted in together: a step costs about as much for these as for one."""
TEMPERATURE_TASKS = 64
"""Train tasks that a temperature is fitted on."""


@dataclass(frozen=True)
class Outer:
    """The outer loop: how gradients of tasks move the parameters. Learners share these under `outer.`."""

    optimizer: str = tune.choice("adam", "sgd")
    lr: float = tune.real(1e-4, 0.1, log=True, default=1e-3, when={"optimizer": "adam"})
    sgd_lr: float = tune.real(0.01, 1.0, log=True, default=0.1, when={"optimizer": "sgd"})
    schedule: str = tune.choice("constant", "linear", "cosine")
    tasks_per_step: int = tune.integer(1, 1024, log=True, default=4)
    warmup: float = tune.real(0.0, 0.5, default=0.0)
    """The share of the budget in which the rate rises from 0 to the schedule's."""
    weight_decay: float = tune.real(0.0, 0.1, default=0.0)
    """Of the weights' own size, a step at full rate; apart from the gradients, as in AdamW (arXiv:1711.05101)."""
    clip: float | None = tune.choice(None, 0.1, 1.0, 10.0)
    """The largest norm of all gradients together."""
    averaging: float = tune.real(0.0, 0.9999, default=0.0)
    """The weights at the end are an exponential average of those of all steps with this decay; 0: the last ones."""

    def build(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser at its full rate."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.sgd_lr, weight_decay=self.weight_decay)
        if self.weight_decay:
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.Adam(parameters, lr=self.lr)

    def factor(self, progress: float) -> float:
        """Return the share of the full rate at `progress`, from 0 at the start to 1 at the end of the budget."""
        if progress < self.warmup:
            return self._scheduled(self.warmup) * progress / self.warmup
        return self._scheduled(progress)

    def _scheduled(self, progress: float) -> float:
        match self.schedule:
            case "linear":
                return 1.0 - progress
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))
            case _:
                return 1.0


@dataclass(frozen=True)
class Budget:
    """Meta-training of a trial: so many train tasks, or so many seconds of CPU time. One of the two is set.

    Seconds are turned into tasks by timing the first steps on a copy; `planned` tasks set the schedule. A trial is
    repeated exactly by the `tasks` and the `planned` that its result records.
    """

    tasks: int | None = None
    cpu_seconds: float | None = None
    planned: int | None = None


@dataclass(frozen=True)
class Training:
    """What meta-training has taken so far."""

    tasks: int = 0
    planned: int = 0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Training") -> "Training":
        """Return what both took."""
        return Training(self.tasks + other.tasks, self.planned + other.planned, self.cpu_seconds + other.cpu_seconds)

    @property
    def progress(self) -> float:
        """The share of the planned tasks that is done."""
        return self.tasks / self.planned if self.planned else 1.0


@dataclass(frozen=True)
class Scores:
    """A learner's scores, task by task."""

    per_task: Tensor  # (n_tasks,) float64
    not_finite: int = 0
    """Tasks whose predictions were not finite, which count as the objective's worst score."""
    contributions: Tensor | None = None
    """Values (n_tasks,) float64 whose mean is the score, where that is not the mean over tasks."""
    others: "Mapping[str, Scores]" = field(default_factory=dict)
    """By the other objectives of a study that has several, by name, on the same tasks."""

    @property
    def mean(self) -> float:
        """The objective's score over all tasks."""
        return float(self._values.mean())

    @property
    def ci95(self) -> float:
        """Half the width of its 95 % interval."""
        n = len(self.per_task)
        return float(1.96 * self._values.std() / math.sqrt(n)) if n > 1 else math.inf

    @property
    def _values(self) -> Tensor:
        return self.per_task if self.contributions is None else self.contributions

    @property
    def median(self) -> float:
        return float(self.per_task.quantile(0.5))  # torch's own median is the lower of the middle two


def meta_train(
    learner: Learner,
    sampler: TaskSampler,
    outer: Outer,
    budget: Budget,
    executor: Executor,
    *,
    seed: int,
    device: torch.device,
    at: Callable[[Training], None] = lambda training: None,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """Meta-train the learner in place on tasks of its own `spec` from the train pool.

    `at` hears before every step how far it is, and whatever it raises ends the training. Where a checkpoint was kept
    of the same job, goes on from it. Raises TrialError where the loss is no longer finite.
    """
    if learner.trains_on == "nothing" or not trainable(learner):
        return Training()
    optimizer, draw = outer.build(list(trainable(learner).values())), seeds.generator(seed, "train")
    started = time.process_time()  # after a process's first optimiser has imported a second's worth of torch
    full_rates = [group["lr"] for group in optimizer.param_groups]
    average = Average(learner, outer.averaging)
    update = _updater(learner, optimizer, outer, average)
    spec = learner.spec
    moving = Moving(learner, optimizer, average.mean, draw, executor)
    kept = checkpoint.resume(moving) if checkpoint else None
    if kept:
        average.steps = kept.pop("average_steps")
        training = Training(**kept)
        planned, started = training.planned, started - training.cpu_seconds
    else:
        planned = _planned(learner, sampler, outer, budget, executor, seed, device)
        training = Training(0, planned, time.process_time() - started)
    limit = min(planned, budget.tasks or planned)
    while training.tasks < limit:
        if checkpoint:
            checkpoint.keep(moving, asdict(training) | {"average_steps": average.steps})
        paused = time.process_time()
        at(training)
        started += time.process_time() - paused  # scoring is no training, and takes some learners longer
        learner.train()  # each time, for `at` may have scored the learner
        learner.progress = training.progress
        for group, full_rate in zip(optimizer.param_groups, full_rates, strict=True):
            group["lr"] = full_rate * outer.factor(training.progress)
        n_tasks = min(outer.tasks_per_step, limit - training.tasks)
        loss = outer_step(learner, spec, sampler, n_tasks, draw, device, executor, update)
        training = Training(training.tasks + n_tasks, planned, time.process_time() - started)
        if not torch.isfinite(loss):
            raise TrialError(f"the meta-training loss became {loss.item()} after {training.tasks} tasks")
        if budget.cpu_seconds and not budget.tasks and training.cpu_seconds > 1.25 * budget.cpu_seconds:
            break  # the estimate was too good; what was done is recorded
    average.take()
    learner.spec = spec
    return training


def meta_test(
    learner: Learner,
    sampler: TaskSampler,
    pool: Pool,
    objective: MetaObjective,
    n_tasks: int,
    executor: Executor,
    *,
    draw: Generator,
    device: torch.device,
    at: Callable[[Tensor], None] = lambda scores: None,
    others: Sequence[MetaObjective] = (),
    cpu_seconds: float = math.inf,
) -> Scores:
    """Score the learner on tasks of its own `spec` from `pool`, each adapted to by itself.

    The same generator state gives the same tasks to any learner. Every few tasks `at` hears the scores so far, and
    whatever it raises ends the evaluation. After so many CPU seconds the tasks so far are all, but LEAST_SCORED at
    least. Raises TrialError where a task's predictions are not finite and an objective has no worst score to count for
    it.
    """
    started = time.process_time()
    objectives = (objective, *others)
    parameters = sum(parameter.numel() for parameter in trainable(learner).values())
    tables = [torch.empty(0, dtype=torch.float64) for _ in objectives]
    not_finite = [0] * len(objectives)
    steps = max((one.steps for one in objectives if one.steps is not None), default=None)
    temperature = 1.0
    if any(one.fits_temperature for one in objectives):
        temperature = fit_temperature(learner, sampler, executor, draw.initial_seed(), device)
    how: dict[str, Any] = {"draw": draw, "device": device, "before": lambda: at(tables[0])}
    outcomes = (
        acted(learner, sampler, pool, n_tasks, **how)
        if learner.spec.kind == "control"
        else (
            Outcome(
                played.spec, played.predictions, played.batch.query_y, played.seconds,
                curve=() if steps is None else _curve(played, executor, steps), temperature=temperature,
            )
            for played in play(learner, sampler, pool, n_tasks, executor, **how)
        )
    )  # fmt: skip
    for outcome in (replace(one, parameters=parameters) for one in outcomes):
        finite = outcome.predictions.flatten(1).isfinite().all(1).cpu()
        for index, by in enumerate(objectives):
            new = by.score(outcome).double().cpu()
            bad = ~(finite & new.isfinite())
            not_finite[index] += int(bad.sum())
            tables[index] = torch.cat([tables[index], new if by.worst is None else new.masked_fill(bad, by.worst)])
        if len(tables[0]) >= LEAST_SCORED and time.process_time() - started >= cpu_seconds:
            break
    for by, n_bad in zip(objectives, not_finite, strict=True):
        if n_bad and by.worst is None:
            raise TrialError(f"{n_bad} of {len(tables[0])} {pool} tasks have predictions that are not finite")
    first, *rest = (
        Scores(table, n_bad, by.contributions(table))
        for by, table, n_bad in zip(objectives, tables, not_finite, strict=True)
    )
    return replace(first, others={by.name: scores for by, scores in zip(others, rest, strict=True)})


@dataclass(frozen=True)
class Played:
    """Some tasks of one size, and what a learner predicted for them."""

    spec: TaskSpec
    learner: Learner
    """Sized for them."""
    batch: TaskBatch
    predictions: Tensor  # (n_tasks, n_queries, n_outputs)
    seconds: float
    """A task took on average to adapt and predict, by the wall clock."""


def play(
    learner: Learner,
    sampler: TaskSampler,
    pool: Pool,
    n_tasks: int,
    executor: Executor,
    *,
    draw: Generator,
    device: torch.device,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Played]:
    """Let the learner, as it stands, learn tasks of its own `spec` from `pool`, and yield these, a few at a time.

    The same generator state gives the same tasks to any learner. `before` is called before each few, and whatever it
    raises ends it.
    """
    learner.eval()
    views = seeds.generator(draw.initial_seed(), "views")  # so that the tasks are the same with and without them
    of_size: dict[TaskSpec, Learner] = {}
    # Tasks that share a draw of shots would not be independent, and their interval too narrow.
    for n in _chunks(n_tasks, 1 if learner.spec.least_shot else TASKS_A_CALL):
        before()
        spec = sized(learner.spec, draw)
        one = of_size.setdefault(spec, learner.with_spec(spec))
        with torch.no_grad():  # adaptation turns gradients on for itself
            batch = draw_tasks(sampler, pool, spec, n, draw).to(device)
            started = time.perf_counter()
            predictions = predict(one, executor, batch, views)
        yield Played(spec, one, batch, predictions, (time.perf_counter() - started) / n)


def acted(
    learner: Learner,
    sampler: TaskSampler,
    pool: Pool,
    n_tasks: int,
    *,
    draw: Generator,
    device: torch.device,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Let the learner, as it stands, act in environments of `pool`, and yield what came of it, some tasks at a time.

    The same generator state gives the same tasks to any learner. `before` is as in `play`.
    """
    learner.eval()
    chance = seeds.generator(draw.initial_seed(), "chance")  # so that learners who draw more have the same tasks
    for n in _chunks(n_tasks, ENVIRONMENTS_A_CALL):
        before()
        environments = sampler.environments(pool, learner.spec, n, draw).to(device)
        started = time.perf_counter()
        returns = brought(learner, environments, chance)
        yield Outcome(learner.spec, returns, returns[:, :0], (time.perf_counter() - started) / n)


@torch.no_grad()  # adaptation turns gradients on for itself
def brought(learner: Learner, environments: Environments, draw: Generator) -> Tensor:
    """Return what each episode brings, (n_tasks, n_shot + n_query): those that it learns from, and those after them."""
    memory, before = learner.adapt(environments, draw)
    after, _ = lived(learner, memory, environments, learner.spec.n_query, draw, in_turn=learner.in_turn)
    return torch.cat([before, after.returns], 1)


def _curve(played: Played, executor: Executor, steps: int) -> tuple[Tensor, ...]:
    """Return the predictions after 0, 1, …, `steps` steps of adaptation, each (n_tasks, n_queries, n_outputs).

    A learner that adapts at once, without steps, is at its end from its first step on, and knows nothing before it.
    """
    if played.learner.steps is None:
        return (torch.zeros_like(played.predictions), *[played.predictions] * steps)
    with torch.no_grad():
        return tuple(predictions_of(played.learner.with_steps(n), executor, played.batch) for n in range(steps + 1))


def fit_temperature(
    learner: Learner, sampler: TaskSampler, executor: Executor, seed: int, device: torch.device
) -> float:
    """Return what divides class scores so that train tasks are most likely (Guo et al., 2017, arXiv:1706.04599).

    The train tasks are of the size that is scored; the same seed gives the same ones.
    """
    draw, parts, truth = seeds.generator(seed, "temperature"), [], []
    for played in play(learner, sampler, "train", TEMPERATURE_TASKS, executor, draw=draw, device=device):
        parts.append(played.predictions.flatten(0, 1).double())  # (n_tasks * n_queries, n_way)
        truth.append(played.batch.query_y.flatten())
    return temperature_of(torch.cat(parts), torch.cat(truth))


def temperature_of(scores: Tensor, labels: Tensor) -> float:
    """Return what divides class scores (n, n_way) so that labels (n,) are most likely; 1 where none are finite."""
    kept = scores.isfinite().all(1)
    if not kept.any():
        return 1.0

    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped] # here, as it takes a moment

    scores = scores[kept]
    spread = float((scores - scores.mean(1, keepdim=True)).std()) or 1.0  # scores may be of any size
    found = minimize_scalar(
        lambda log: float(cross_entropy(scores / (spread * math.exp(log)), labels[kept])),
        bounds=(math.log(1e-3), math.log(1e3)),
        method="bounded",
    )
    return spread * math.exp(found.x)


def predict(learner: Learner, executor: Executor, batch: TaskBatch, views: Generator) -> Tensor:
    """Return predictions (n_tasks, n_queries, n_outputs), averaged over as many views of the tasks as are asked for."""
    if isinstance(learner, Ensemble):  # each member as it is by itself, views and all
        return learner.mean([predict(one, executor, batch, views) for one in learner.learners()])
    if learner.spec.kind != "classification":
        return predictions_of(learner, executor, batch)
    return averaged([predictions_of(learner, executor, view) for view in learner.augment.views(batch, views)])


def averaged(scores: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities that several scores (..., n_way) stand for."""
    if len(scores) == 1:
        return scores[0]
    return torch.stack([score.log_softmax(-1) for score in scores]).logsumexp(0) - math.log(len(scores))


def predictions_of(learner: Learner, executor: Executor, batch: TaskBatch) -> Tensor:
    """Return predictions (n_tasks, n_queries, n_outputs); of a stream, those along each sequence."""
    if learner.spec.stream:
        predictions = executor.map(learner, "stream", batch.support_x, batch.support_y)
    else:
        predictions = executor.map(learner, "forward", batch.support_x, batch.support_y, batch.query_x)
    assert isinstance(predictions, Tensor)
    return predictions


def _chunks(n_tasks: int, at_once: int) -> Iterator[int]:
    for start in range(0, n_tasks, at_once):
        yield min(at_once, n_tasks - start)


def outer_step(
    learner: Learner,
    spec: TaskSpec,
    sampler: TaskSampler,
    n_tasks: int,
    draw: Generator,
    device: torch.device,
    executor: Executor,
    update: Callable[[Gradients], None],
) -> Tensor:
    """Draw so many tasks of `spec` and let the learner take an outer step on them; return its loss before that."""
    if spec.kind == "control":
        return learner.practise(sampler.environments("train", spec, n_tasks, draw).to(device), update)
    return learner.outer_step(draw_batch(learner, spec, sampler, n_tasks, draw).to(device), executor, update)


def draw_batch(
    learner: Learner, spec: TaskSpec, sampler: TaskSampler, n_tasks: int, draw: Generator
) -> TaskBatch | Examples:
    """Draw what an outer step is given, and size the learner for it."""
    if learner.trains_on == "examples":
        examples = sampler.examples(n_tasks * learner.spec.n_examples, draw)  # as many as that many tasks hold
        return learner.augment.examples(examples, draw) if learner.augment.active else examples
    learner.spec = sized(spec, draw)
    batch = draw_tasks(sampler, "train", learner.spec, n_tasks, draw)
    return learner.augment.batch(batch, draw) if learner.augment.active else batch


class Average:
    """An exponential average of a learner's weights over the steps of meta-training (Polyak & Juditsky, 1992).

    Over the first steps its decay grows to what was asked for, so that the weights at the start are soon forgotten.
    """

    def __init__(self, learner: Learner, decay: float) -> None:
        self.parameters, self.decay, self.steps = trainable(learner), decay, 0
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()} if decay else {}

    def step(self) -> None:
        """Take the weights after a step into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, mean in self.mean.items():
            mean.lerp_(self.parameters[name].detach(), 1 - decay)

    def take(self) -> None:
        """Put the average in the place of the weights."""
        with torch.no_grad():
            for name, mean in self.mean.items():
                self.parameters[name].copy_(mean)


def _updater(
    learner: Learner, optimizer: torch.optim.Optimizer, outer: Outer, average: Average
) -> Callable[[Gradients], None]:
    parameters = trainable(learner)

    def update(gradients: Gradients) -> None:
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        if outer.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), outer.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.step()

    return update


def _planned(
    learner: Learner,
    sampler: TaskSampler,
    outer: Outer,
    budget: Budget,
    executor: Executor,
    seed: int,
    device: torch.device,
) -> int:
    """Return how many tasks a budget stands for."""
    planned = budget.planned or budget.tasks
    if planned is not None:
        return planned
    assert budget.cpu_seconds is not None, "a budget has tasks or CPU seconds"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # else a repetition would differ
        return _affordable(learner, sampler, outer, budget.cpu_seconds, executor, seed, device)


def _affordable(
    learner: Learner,
    sampler: TaskSampler,
    outer: Outer,
    cpu_seconds: float,
    executor: Executor,
    seed: int,
    device: torch.device,
) -> int:
    """Return how many tasks so many seconds are good for, by timing a few steps on a copy of the learner."""
    started = time.process_time()
    pace = measured(rehearsed(learner, sampler, outer, seed, device), executor, cpu_seconds, 0.05 * cpu_seconds)
    left = cpu_seconds - (time.process_time() - started)
    return max(1, int(pace.steps(left))) * outer.tasks_per_step


def rehearsed(
    learner: Learner, sampler: TaskSampler, outer: Outer, seed: int, device: torch.device
) -> Callable[[Executor], Tensor]:
    """Return what takes outer steps on a copy of the learner, to be timed."""
    trial, draw, spec = copy.deepcopy(learner), seeds.generator(seed, "probe"), learner.spec
    update = _updater(trial, outer.build(list(trainable(trial).values())), outer, Average(trial, outer.averaging))
    trial.train()
    return lambda executor: outer_step(trial, spec, sampler, outer.tasks_per_step, draw, device, executor, update)
