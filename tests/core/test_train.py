"""The two loops meet their budgets, repeat bit for bit by their seed, and schedules and scores are closed forms."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from statistics import NormalDist, median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import dropout

from metaopt.augment import Augment
from metaopt.errors import TrialError
from metaopt.executor import EXECUTORS, Executor, Vmap
from metaopt.learner import Gradients, Learner
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import POOLS, ClassPool, Examples, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.train import TASKS_A_CALL, Budget, Outer, Scores, Training, averaged, meta_test, meta_train
from metaopt_encoders.mlp import MLP
from metaopt_gradient.maml import MAML
from metaopt_metric.protonet import ProtoNet
from metaopt_objectives.accuracy import Accuracy
from metaopt_objectives.mse import MSE
from metaopt_tasks.sinusoid import Sinusoid

CPU = torch.device("cpu")
ACCURACY, ERROR = Accuracy(Accuracy.Config()), MSE(MSE.Config())

every_executor = pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS, indirect=True)
every_schedule = pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Executor:
    """Return a fresh executor, for the class that a test is parametrised by."""
    fresh: Executor = request.param()
    return fresh


class Clouds(TaskSampler):
    """Classes are tight clouds in the first six numbers of an example; the other sixteen are louder noise."""

    name = "clouds"
    kind = "classification"
    n_classes, n_members, n_signal, n_noise = 40, 20, 6, 16

    def __init__(self) -> None:
        super().__init__(self.Config())
        self.pools = {pool: self._pool(Generator().manual_seed(seed)) for seed, pool in enumerate(POOLS)}

    def _pool(self, draw: Generator) -> ClassPool:
        n = self.n_classes * self.n_members
        centres = torch.randn(self.n_classes, self.n_signal, generator=draw).repeat_interleave(self.n_members, 0)
        signal = centres + 0.1 * torch.randn(n, self.n_signal, generator=draw)
        noise = 1.5 * torch.randn(n, self.n_noise, generator=draw)
        return ClassPool(torch.cat([signal, noise], 1), list(torch.arange(n).reshape(self.n_classes, -1)))

    def spec(self, n_way: int = 5, n_shot: int = 1, n_query: int = 5) -> TaskSpec:
        x_shape = (self.n_signal + self.n_noise,)
        return TaskSpec("classification", x_shape, n_way, n_shot, n_query, n_train_classes=self.n_classes)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self.pools[pool].draw(spec, n_tasks, generator)

    def examples(self, n: int, generator: Generator) -> Examples:
        return self.pools["train"].draw_examples(n, generator)


CLOUDS = Clouds()
SINUSOID = Sinusoid(Sinusoid.Config())


def protonet(seed: int = 0, cls: type[ProtoNet] = ProtoNet) -> ProtoNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = MLP(CLOUDS.spec().x_shape, MLP.Config(width=32, depth=1))
        return cls(CLOUDS.spec(), encoder, cls.Config())


def maml(seed: int = 0) -> MAML:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = MAML.Config(inner_lr=0.01, inner_steps=1, test_steps=1)
        return MAML(SINUSOID.spec(1, 10, 10), MLP((1,), MLP.Config()), config)


class Probe(Learner):
    """One number, whose gradient is always 1 and whose loss is told; it notes what it is asked for."""

    name = "probe"

    def __init__(
        self,
        spec: TaskSpec,
        loss: Callable[[int], float] = lambda step: 0.0,
        work: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(spec, nn.Identity(), self.Config())
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.told, self.work = loss, work
        self.batches: list[int] = []
        self.weights: list[float] = []
        self.told_progress: list[float] = []

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        assert self.training
        self.work()
        update({"weight": torch.ones(1, dtype=torch.float64)})
        self.batches.append(len(batch))
        self.weights.append(self.weight.item())
        self.told_progress.append(self.progress)
        return torch.tensor(self.told(len(self.batches)))


class ProbeOfExamples(Probe):
    """The same, for labelled examples."""

    name = "probe_of_examples"
    trains_on = "examples"


class Still(Probe):
    """The same, with nothing to train."""

    name = "still"
    trains_on = "nothing"


def train(
    learner: Learner,
    budget: Budget,
    outer: Outer | None = None,
    *,
    sampler: TaskSampler = CLOUDS,
    executor: Executor | None = None,
    seed: int = 0,
    at: Callable[[Training], None] = lambda training: None,
) -> Training:
    return meta_train(learner, sampler, outer or Outer(), budget, executor or Vmap(), seed=seed, device=CPU, at=at)


def scores_of(
    learner: Learner,
    n_tasks: int,
    objective: MetaObjective = ACCURACY,
    *,
    sampler: TaskSampler = CLOUDS,
    pool: Pool = "validation",
    executor: Executor | None = None,
    seed: int = 1,
    cpu_seconds: float = math.inf,
) -> Scores:
    draw = Generator().manual_seed(seed)
    return meta_test(
        learner, sampler, pool, objective, n_tasks, executor or Vmap(), draw=draw, device=CPU, cpu_seconds=cpu_seconds
    )


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    """Compare bit for bit."""
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def differ(a: nn.Module, b: nn.Module) -> bool:
    return any(not torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


# --- one seed, one result


@every_executor
def test_one_seed_gives_one_result_bit_for_bit_whatever_the_global_generator(executor: Executor) -> None:
    trained = []
    for global_seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            trained.append(protonet())
            train(trained[-1], Budget(tasks=20), executor=executor, seed=5)
    assert_same_weights(*trained)
    assert differ(trained[0], protonet())


def test_another_seed_draws_other_tasks() -> None:
    a, b = protonet(), protonet()
    train(a, Budget(tasks=8), seed=5)
    train(b, Budget(tasks=8), seed=6)
    assert differ(a, b)


@pytest.mark.parametrize("budget", [Budget(tasks=12), Budget(cpu_seconds=0.05)], ids=["tasks", "seconds"])
def test_neither_loop_touches_the_global_generator(budget: Budget) -> None:
    before, learner = torch.get_rng_state(), protonet()
    train(learner, budget)
    scores_of(learner, 20)
    assert torch.equal(torch.get_rng_state(), before)


@every_executor
def test_scoring_on_the_way_changes_nothing(executor: Executor) -> None:
    """MAML takes other steps in meta-testing than in meta-training, so a forgotten mode would show."""
    plain, watched = maml(), maml()
    plain.config = watched.config = MAML.Config(inner_lr=0.01, inner_steps=1, test_steps=3)
    train(plain, Budget(tasks=24), sampler=SINUSOID, executor=executor)
    scores = []

    def score(training: Training) -> None:
        scores.append(scores_of(watched, 3, ERROR, sampler=SINUSOID, executor=executor).mean)

    train(watched, Budget(tasks=24), sampler=SINUSOID, executor=executor, at=score)
    assert len(set(scores)) == 6
    assert_same_weights(plain, watched)


# --- budgets


@given(tasks=st.integers(0, 40), tasks_per_step=st.integers(1, 64))
@settings(deadline=None, max_examples=40)
def test_a_budget_in_tasks_is_met_exactly(tasks: int, tasks_per_step: int) -> None:
    spec = CLOUDS.spec(2, 1, 1)
    for learner, size in ((Probe(spec), 1), (ProbeOfExamples(spec), spec.n_examples)):
        training = train(learner, Budget(tasks=tasks), Outer(tasks_per_step=tasks_per_step))
        full, rest = divmod(tasks, tasks_per_step)
        assert learner.batches == [tasks_per_step * size] * full + ([rest * size] if rest else [])
        assert (training.tasks, training.planned, training.progress) == (tasks, tasks, 1.0)


def test_what_has_nothing_to_train_is_left_alone() -> None:
    still, frozen = Still(CLOUDS.spec()), Probe(CLOUDS.spec())
    frozen.weight.requires_grad_(False)
    for learner in (still, frozen):
        assert train(learner, Budget(tasks=10)) == train(learner, Budget(cpu_seconds=10)) == Training()
        assert learner.batches == []


def test_a_listener_hears_before_every_step_how_far_it_is_and_the_learner_too() -> None:
    learner = Probe(CLOUDS.spec())
    heard: list[Training] = []
    train(learner, Budget(tasks=10), Outer(tasks_per_step=4), at=heard.append)
    assert [training.tasks for training in heard] == [0, 4, 8]
    assert [training.progress for training in heard] == learner.told_progress == [0.0, 0.4, 0.8]
    seconds = [training.cpu_seconds for training in heard]
    assert seconds == sorted(seconds)


def test_what_a_listener_raises_ends_the_training_before_the_step() -> None:
    learner = Probe(CLOUDS.spec())

    def stop(training: Training) -> None:
        if training.tasks == 8:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(learner, Budget(tasks=100), Outer(tasks_per_step=4), at=stop)
    assert learner.batches == [4, 4]


class Clock:
    """A process's CPU seconds, which pass only where somebody works, so that a busy machine changes no test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.process_time", clock)
    return clock


def test_a_budget_in_cpu_seconds_is_turned_into_the_tasks_that_take_so_long(clock: Clock) -> None:
    """Steps that take 1/256 s each: seven are timed, a twentieth of the budget, and the rest is good for 121."""
    learner = Probe(CLOUDS.spec(), work=lambda: clock.work(1 / 256))
    training = train(learner, Budget(cpu_seconds=0.5), Outer(tasks_per_step=2))
    assert training == Training(tasks=2 * 121, planned=2 * 121, cpu_seconds=0.5)
    assert training.tasks == sum(learner.batches), "the steps that were timed are not among them"


def test_an_estimate_that_was_too_good_ends_a_quarter_above_the_budget(clock: Clock) -> None:
    """The thirteen steps that are timed take 1/1024 s each, all after them 17/1024."""
    steps = count()
    slower = Probe(CLOUDS.spec(), work=lambda: clock.work((1 if next(steps) < 13 else 17) / 1024))
    training = train(slower, Budget(cpu_seconds=0.25), Outer(tasks_per_step=1))
    assert training == Training(tasks=19, planned=243, cpu_seconds=(13 + 19 * 17) / 1024)
    assert training.cpu_seconds > 1.25 * 0.25 >= training.cpu_seconds - 17 / 1024
    assert training.tasks == sum(slower.batches)


def test_the_time_in_which_it_is_scored_is_none_of_its_training(clock: Clock) -> None:
    learner = Probe(CLOUDS.spec(), work=lambda: clock.work(1 / 256))
    training = train(learner, Budget(cpu_seconds=0.5), Outer(tasks_per_step=2), at=lambda training: clock.work(1.0))
    assert training == Training(tasks=2 * 121, planned=2 * 121, cpu_seconds=0.5)


def burn(cpu_seconds: float) -> None:
    until = time.process_time() + cpu_seconds
    while time.process_time() < until:
        pass


class Slowing(ProtoNet):
    """A prototypical network whose steps take longer once it is trained in earnest."""

    name = "slowing"
    slow = False

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        if self.slow:
            burn(0.2)
        return super().outer_step(batch, executor, update)


@pytest.mark.parametrize("overrun", [False, True], ids=["on time", "overrun"])
@every_schedule
def test_a_training_by_seconds_is_repeated_bit_for_bit_by_the_tasks_it_records(schedule: str, overrun: bool) -> None:
    outer = Outer(lr=0.01, schedule=schedule, tasks_per_step=3)
    timed, repeated = protonet(cls=Slowing), protonet()
    training = train(timed, Budget(cpu_seconds=0.3), outer, seed=5, at=lambda _: setattr(timed, "slow", overrun))
    assert training.tasks < training.planned or not overrun
    again = train(repeated, Budget(tasks=training.tasks, planned=training.planned), outer, seed=5)
    assert_same_weights(timed, repeated)
    assert (again.tasks, again.planned) == (training.tasks, training.planned)
    assert differ(timed, protonet())


class Forgetful(ProtoNet):
    """A prototypical network that leaves out half of its features at random while it trains."""

    name = "forgetful"

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return dropout(super().forward(support_x, support_y, query_x), 0.5, self.training)


def test_it_is_repeated_also_where_the_learner_draws_at_random() -> None:
    """Timing the first steps must not take from the generator that the learner draws from."""

    def forgetful() -> Forgetful:
        plain = protonet()
        return Forgetful(plain.spec, plain.encoder, plain.config)

    timed, repeated = forgetful(), forgetful()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        training = train(timed, Budget(cpu_seconds=0.05))
        torch.manual_seed(3)
        train(repeated, Budget(tasks=training.tasks, planned=training.planned))
    assert_same_weights(timed, repeated)


# --- the outer loop


SHARES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: math.cos(math.pi * progress / 2) ** 2,
}


@every_schedule
@given(progress=st.floats(0, 1))
def test_a_schedule_is_its_closed_form(schedule: str, progress: float) -> None:
    assert Outer(schedule=schedule).factor(progress) == pytest.approx(SHARES[schedule](progress), abs=1e-12)


@every_schedule
def test_every_step_is_taken_at_the_scheduled_rate(schedule: str) -> None:
    """Under a gradient of 1 gradient descent moves by minus the rate, from the full one on."""
    learner, n_steps = Probe(CLOUDS.spec()), 10
    train(learner, Budget(tasks=n_steps), Outer("sgd", sgd_lr=0.5, schedule=schedule, tasks_per_step=1))
    moves = [before - after for before, after in zip([0.0, *learner.weights], learner.weights, strict=False)]
    assert moves == pytest.approx([0.5 * SHARES[schedule](step / n_steps) for step in range(n_steps)], abs=1e-12)


@every_schedule
@given(progress=st.floats(0, 1), warmup=st.floats(0.01, 0.5))
def test_the_rate_rises_from_zero_to_the_schedules_over_the_warm_up(
    schedule: str, progress: float, warmup: float
) -> None:
    warmed, plain = Outer(schedule=schedule, warmup=warmup), Outer(schedule=schedule)
    if progress >= warmup:
        assert warmed.factor(progress) == plain.factor(progress)
    else:
        assert warmed.factor(progress) == pytest.approx(plain.factor(warmup) * progress / warmup)
    assert warmed.factor(0.0) == 0.0


def test_weight_decay_shrinks_weights_by_the_rate_times_itself_apart_from_the_gradient() -> None:
    for outer, rate in ((Outer("sgd", sgd_lr=0.5), 0.5), (Outer("adam", lr=0.01), 0.01)):
        plain, decayed = nn.Parameter(torch.full((3,), 2.0)), nn.Parameter(torch.full((3,), 2.0))
        for parameter, decay in ((plain, 0.0), (decayed, 0.1)):
            optimizer = replace(outer, weight_decay=decay).build([parameter])
            parameter.grad = torch.tensor([0.3, -0.2, 0.0])
            optimizer.step()
        torch.testing.assert_close(decayed, plain - rate * 0.1 * 2.0)


def test_clipping_scales_all_gradients_together_to_the_norm() -> None:
    """Under a gradient of 1 in one weight gradient descent moves by the rate, clipped to 0.1 by a tenth of it."""
    learner = Probe(CLOUDS.spec())
    train(learner, Budget(tasks=2), Outer("sgd", sgd_lr=1.0, clip=0.1, tasks_per_step=1))
    assert learner.weights == pytest.approx([-0.1, -0.2], abs=1e-5)


def test_averaged_weights_are_their_exponential_average_over_the_steps() -> None:
    plain, averaged = Probe(CLOUDS.spec()), Probe(CLOUDS.spec())
    outer = Outer("sgd", sgd_lr=1.0, tasks_per_step=1)
    train(plain, Budget(tasks=40), outer)
    train(averaged, Budget(tasks=40), replace(outer, averaging=0.5))
    assert plain.weights == averaged.weights, "the steps are the same"
    mean = 0.0
    for step, weight in enumerate(plain.weights, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    assert averaged.weight.item() == pytest.approx(mean, rel=1e-5)
    assert plain.weight.item() == plain.weights[-1]


def test_learners_are_trained_on_augmented_tasks_and_tested_on_plain_ones() -> None:
    noisy, plain = protonet(), protonet()
    noisy.augment = Augment(noise=0.5)
    untrained = scores_of(noisy, 20)
    assert torch.equal(untrained.per_task, scores_of(plain, 20).per_task)
    for learner in (noisy, plain):
        train(learner, Budget(tasks=8))
    assert differ(noisy, plain)


def test_test_copies_average_the_probabilities_of_views_of_the_same_tasks() -> None:
    learner = protonet()
    alone = scores_of(learner, 40)
    learner.augment = Augment(test_copies=4)
    assert torch.equal(scores_of(learner, 40).per_task, alone.per_task), "of views without jitter"
    learner.augment = Augment(noise=1.0, test_copies=4)
    first, again = scores_of(learner, 40), scores_of(learner, 40)
    assert torch.equal(first.per_task, again.per_task)
    assert not torch.equal(first.per_task, alone.per_task)


def test_averaged_scores_stand_for_the_mean_of_their_probabilities() -> None:
    scores = [torch.randn(3, 2, 5) for _ in range(4)]
    assert averaged(scores[:1]) is scores[0]
    torch.testing.assert_close(averaged(scores).exp(), torch.stack([s.softmax(-1) for s in scores]).mean(0))


def test_the_schedule_goes_by_the_planned_tasks() -> None:
    learner = Probe(CLOUDS.spec())
    training = train(learner, Budget(tasks=4, planned=8), Outer("sgd", sgd_lr=1.0, schedule="linear", tasks_per_step=2))
    assert learner.weights == [-1.0, -1.75]
    assert training.progress == 0.5


def test_adam_under_a_constant_gradient_moves_by_its_own_rate() -> None:
    learner = Probe(CLOUDS.spec())
    train(learner, Budget(tasks=5), Outer("adam", lr=0.03, sgd_lr=1.0, tasks_per_step=1))
    assert learner.weights == pytest.approx([-0.03 * step for step in range(1, 6)], rel=1e-6)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_the_trial(loss: float) -> None:
    learner = Probe(CLOUDS.spec(), loss=lambda step: loss if step == 3 else 1.0)
    with pytest.raises(TrialError, match=f"the meta-training loss became {loss} after 12 tasks"):
        train(learner, Budget(tasks=100), Outer(tasks_per_step=4))
    assert len(learner.batches) == 3


# --- meta-testing


class Predicts(Learner):
    """Predicts by a function of the queries."""

    name = "predicts"
    kinds = ("classification", "regression")

    def __init__(self, spec: TaskSpec, predict: Callable[[Tensor], Tensor]) -> None:
        super().__init__(spec, nn.Identity(), self.Config())
        self.predict = predict

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.predict(query_x)


class Notes(Accuracy):
    """Accuracy that notes the outcomes it is given."""

    name = "notes"

    def __init__(self) -> None:
        super().__init__(self.Config())
        self.outcomes: list[Outcome] = []

    def score(self, outcome: Outcome) -> Tensor:
        self.outcomes.append(outcome)
        return super().score(outcome)


def first_class(query_x: Tensor) -> Tensor:
    """Predict class 0 of five for every query."""
    return torch.eye(5)[0].expand(len(query_x), 5)


@every_executor
def test_the_same_generator_state_gives_the_same_tasks_to_different_learners(executor: Executor) -> None:
    seen = []
    for learner in (protonet(), Predicts(CLOUDS.spec(), first_class)):
        notes = Notes()
        scores_of(learner, 20, notes, executor=executor)
        seen.append(torch.cat([outcome.query_y for outcome in notes.outcomes]))
    assert torch.equal(*seen)
    notes = Notes()
    scores_of(protonet(), 20, notes, seed=2, executor=executor)
    assert not torch.equal(seen[0], torch.cat([outcome.query_y for outcome in notes.outcomes]))


@pytest.mark.parametrize(("seconds", "n_tasks"), [(0.0, 2 * TASKS_A_CALL), (0.8, 64), (1.0, 80), (5.0, 100)])
def test_after_its_time_a_learner_is_scored_on_the_first_of_the_tasks(
    clock: Clock, seconds: float, n_tasks: int
) -> None:
    """Sixteen tasks take a fifth of a second; on twenty it is always scored."""

    class Slow(Accuracy):
        name = "slow"

        def score(self, outcome: Outcome) -> Tensor:
            clock.work(0.2)
            return super().score(outcome)

    whole = scores_of(protonet(), 100)
    scores = scores_of(protonet(), 100, Slow(Slow.Config()), cpu_seconds=seconds)
    assert torch.equal(scores.per_task, whole.per_task[:n_tasks])
    assert scores.mean == float(whole.per_task[:n_tasks].mean())


@pytest.mark.parametrize("n_tasks", [1, TASKS_A_CALL, TASKS_A_CALL + 3])
def test_as_many_tasks_are_scored_as_asked_for_a_few_at_a_time(n_tasks: int) -> None:
    notes = Notes()
    scores = scores_of(protonet(), n_tasks, notes)
    assert len(scores.per_task) == n_tasks == sum(len(outcome.predictions) for outcome in notes.outcomes)
    assert max(len(outcome.predictions) for outcome in notes.outcomes) <= TASKS_A_CALL
    assert scores.per_task.dtype == torch.float64


@every_executor
def test_scores_are_those_of_the_learner_called_on_the_pools_tasks_one_by_one(executor: Executor) -> None:
    learner, spec = protonet().eval(), CLOUDS.spec()
    scores = scores_of(learner, 20, pool="test", executor=executor)
    draw, expected = Generator().manual_seed(1), []
    for n in (TASKS_A_CALL, 20 - TASKS_A_CALL):
        for support_x, support_y, query_x, query_y in zip(*CLOUDS.draw("test", spec, n, draw).tensors(), strict=True):
            answers = learner(support_x, support_y, query_x).argmax(1)
            expected.append((answers == query_y).double().mean().item())
    assert scores.per_task.tolist() == expected
    assert len(set(expected)) > 3
    assert scores_of(learner, 20, pool="validation", executor=executor).per_task.tolist() != expected


class Noting(Clouds):
    """Notes the sizes of what is drawn from it."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[TaskSpec] = []

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        self.drawn.append(spec)
        return super().draw(pool, spec, n_tasks, generator)


@every_executor
def test_each_batch_has_a_number_of_shots_of_the_range_in_both_loops(executor: Executor) -> None:
    spec = replace(CLOUDS.spec(n_shot=3), least_shot=1)
    learner, again = (protonet().with_spec(spec) for _ in range(2))
    trained, tested, tested_again = Noting(), Noting(), Noting()
    train(learner, Budget(tasks=120), sampler=trained, executor=executor)
    assert learner.spec == spec, "the learner is given back as it came"
    scores = scores_of(learner, 300, sampler=tested, executor=executor)
    for drawn, n in ((trained.drawn, 30), (tested.drawn, 300)):
        assert len(drawn) == n, "each task that scores has shots of its own: with shared ones it were not independent"
        assert all(one == replace(spec, n_shot=one.n_shot, least_shot=0) for one in drawn)
        counts = [sum(one.n_shot == shots for one in drawn) for shots in (1, 2, 3)]
        assert min(counts) >= n / 10, counts
    more = scores.per_task[torch.tensor([one.n_shot == 3 for one in tested.drawn])].mean()
    assert more > scores.mean, "with more shots it scores better"
    scores_of(again, 300, sampler=tested_again, executor=executor)
    assert tested_again.drawn == tested.drawn, "any learner is scored with the same shots"


def test_tasks_of_another_size_are_drawn_for_a_learner_with_another_spec() -> None:
    notes = Notes()
    scores_of(protonet().with_spec(CLOUDS.spec(7, 2, 3)), 2, notes)
    (outcome,) = notes.outcomes
    assert outcome.predictions.shape == (2, 21, 7)
    assert torch.bincount(outcome.query_y.flatten()).tolist() == [6] * 7


def spoilt(predict: Callable[[Tensor], Tensor], value: float) -> Callable[[Tensor], Tensor]:
    """Return predictions of which one is `value` in tasks whose first number of the first query is above 0."""

    def spoil(query_x: Tensor) -> Tensor:
        hit = (query_x[0, 0] > 0).expand(len(query_x), 1) & (torch.arange(len(query_x)) == 1)[:, None]
        return predict(query_x).masked_fill(hit, value)

    return spoil


@every_executor
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tasks_that_are_not_finite_are_counted_and_score_the_worst_accuracy(value: float, executor: Executor) -> None:
    def right(query_x: Tensor) -> Tensor:
        return first_class(query_x)

    clean = scores_of(Predicts(CLOUDS.spec(), right), 40, executor=executor)
    scores = scores_of(Predicts(CLOUDS.spec(), spoilt(right, value)), 40, executor=executor)
    bad = scores.per_task == 0.0
    assert clean.not_finite == 0
    assert clean.per_task.tolist() == [0.2] * 40  # five classes with five queries each, all said to be class 0
    assert 5 < scores.not_finite == int(bad.sum()) < 35
    assert torch.equal(scores.per_task[~bad], clean.per_task[~bad])


@every_executor
def test_an_objective_without_a_worst_score_fails_the_trial_where_tasks_are_not_finite(executor: Executor) -> None:
    spec = SINUSOID.spec(1, 5, 5)
    whole = Predicts(spec, torch.zeros_like)
    assert scores_of(whole, 20, ERROR, sampler=SINUSOID, executor=executor).not_finite == 0
    broken = Predicts(spec, spoilt(torch.zeros_like, math.nan))
    with pytest.raises(TrialError, match=r"\d+ of 20 validation tasks have predictions that are not finite"):
        scores_of(broken, 20, ERROR, sampler=SINUSOID, executor=executor)


def test_a_listener_is_asked_before_every_few_tasks_and_may_end_the_scoring() -> None:
    asked: list[int] = []

    def stop(scores: Tensor) -> None:
        asked.append(len(scores))
        if len(asked) == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        meta_test(
            protonet(), CLOUDS, "test", ACCURACY, 1000, Vmap(), draw=Generator().manual_seed(0), device=CPU, at=stop
        )
    assert asked == [0, 16, 32]


# --- scores


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_the_interval_is_1_96_standard_errors_and_the_median_is_the_middle(per_task: list[float]) -> None:
    scores = Scores(torch.tensor(per_task, dtype=torch.float64), 0)
    mean = sum(per_task) / len(per_task)
    variance = sum((score - mean) ** 2 for score in per_task) / (len(per_task) - 1)
    assert scores.mean == pytest.approx(mean, abs=1e-12)
    assert scores.ci95 == pytest.approx(1.96 * math.sqrt(variance / len(per_task)), abs=1e-12)
    assert scores.median == pytest.approx(median(per_task), abs=1e-12)


def test_the_interval_covers_the_true_mean_in_95_of_100_repetitions() -> None:
    draw = Generator().manual_seed(0)
    n = 2000
    repetitions = [Scores(torch.randn(200, dtype=torch.float64, generator=draw) + 3, 0) for _ in range(n)]
    covered = sum(abs(scores.mean - 3) <= scores.ci95 for scores in repetitions) / n
    assert NormalDist().inv_cdf(0.975) == pytest.approx(1.96, abs=1e-3)
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / n)


def test_one_task_says_nothing_of_the_spread() -> None:
    assert Scores(torch.tensor([0.5]).double(), 0).ci95 == math.inf


# --- learning


@every_executor
def test_a_prototypical_network_learns_to_see_past_the_noise(executor: Executor) -> None:
    learner = protonet()
    untrained = scores_of(learner, 100, pool="test", executor=executor)
    train(learner, Budget(tasks=1200), Outer(lr=0.01, tasks_per_step=8), executor=executor)
    trained = scores_of(learner, 100, pool="test", executor=executor)
    assert untrained.mean < 0.5
    assert trained.mean - trained.ci95 > 0.95


def test_maml_learns_to_fit_a_sinusoid_in_one_step() -> None:
    """The untrained network's error after its step is about the sinusoids' own variance; training takes half off."""
    learner = maml()
    untrained = scores_of(learner, 100, ERROR, sampler=SINUSOID)
    train(learner, Budget(tasks=2400), Outer(lr=0.01, tasks_per_step=8), sampler=SINUSOID)
    trained = scores_of(learner, 100, ERROR, sampler=SINUSOID)
    assert trained.mean < 0.5 * untrained.mean
    # Paired, task by task: far more than chance.
    gain = untrained.per_task - trained.per_task
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))
