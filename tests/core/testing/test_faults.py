"""Each check catches a fault that no other check does: a class for each that breaks one law and keeps all others."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from metaopt import tune
from metaopt.executor import Executor
from metaopt.learner import Gradients, Learner
from metaopt.nn import Encoder, class_means, squared_distances
from metaopt.objective import MetaObjective, Outcome
from metaopt.task import ClassPool, Examples, Kind, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.testing import CHECKS, encoders, learners, objectives, run_checks, samplers

# Learners


class Good(Learner):
    """Score a class by the closeness of its mean: what the faulty ones are but for their fault."""

    name = "good"

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support, query = self.encoder(support_x), self.encoder(query_x)
        return -squared_distances(query, class_means(support, support_y, self.spec.n_way))


class BadName(Good):
    name = "Bad name"


class BadDefault(Good):
    defaults: ClassVar[dict[str, Any]] = {"outer.rate": 0.1}


class BadDefaultRange(Good):
    defaults: ClassVar[dict[str, Any]] = {"outer.tasks_per_step": 0}


class ExtraColumn(Good):
    """Adds a class that nothing is ever put into."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        return torch.cat([scores, torch.full_like(scores[:, :1], -1e3)], 1)


class InfiniteAtOneEnd(Good):
    @dataclass(frozen=True)
    class Config:
        temperature: float = tune.real(0.0, 1.0, default=1.0)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return super().forward(support_x, support_y, query_x) / self.config.temperature


class NoGradientAtAnOption(Good):
    """Takes a square root whose slope at 0 is infinite, with an option that is no default."""

    @dataclass(frozen=True)
    class Config:
        rooted: bool = tune.choice(False, True)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        return scores + (scores - scores.detach()).abs().sqrt() if self.config.rooted else scores


class UnusedParameter(Good):
    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.forgotten = nn.Linear(2, 2)


class Remembers(Good):
    """At meta-test a task before another one shifts its predictions; the same one again does not."""

    batchable = False
    last: float | None = None

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        if not self.training:
            seen = float(support_x.sum())
            if self.last is not None and not math.isclose(self.last, seen, rel_tol=1e-3):
                scores = scores + 1e-3 * scores.square()
            self.last = seen
        return scores


class CountsTasks(Good):
    """Writes to a buffer of its own."""

    batchable = False
    count: Tensor

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(support_x, support_y, query_x)


class ClipsItsInputs(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return super().forward(support_x.copy_(support_x.clamp(-2, 2)), support_y, query_x)


class FirstSupportsCountMore(Good):
    equal_shots = True

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        weights = torch.linspace(1.0, 1.1, len(support_x)).to(support_x)[:, None]
        support, query = weights * self.encoder(support_x), self.encoder(query_x)
        return -squared_distances(query, class_means(support, support_y, self.spec.n_way))


class FirstSupportsCountMoreWithAnOption(FirstSupportsCountMore):
    @dataclass(frozen=True)
    class Config:
        ordered: bool = tune.choice(False, True)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        forward = super().forward if self.config.ordered else functools.partial(Good.forward, self)
        return forward(support_x, support_y, query_x)


class CentresQueries(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return super().forward(support_x - support_x.mean(0), support_y, query_x - query_x.mean(0))


class CentresQueriesWithAnOption(CentresQueries):
    @dataclass(frozen=True)
    class Config:
        centred: bool = tune.choice(False, True)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        forward = super().forward if self.config.centred else functools.partial(Good.forward, self)
        return forward(support_x, support_y, query_x)


class NumbersItsQueries(Good):
    """A later query has higher scores; that it says to be transductive is no excuse."""

    transductive = True

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        return scores + torch.arange(len(scores)).to(scores)[:, None]


class NeedsGradients(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        sharpness = 2.0 if torch.is_grad_enabled() else 1.0
        return sharpness * super().forward(support_x, support_y, query_x)


class StartsAtRandom(Good):
    """Draws its parameters from a generator that nobody seeded."""

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.scale = nn.Parameter(torch.tensor(np.random.default_rng().uniform(1.0, 1.1)))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return self.scale * super().forward(support_x, support_y, query_x)


class DrawsAndForgets(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        torch.rand(())
        return super().forward(support_x, support_y, query_x)


class DrawsFromNumpy(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        np.random.rand()
        return super().forward(support_x, support_y, query_x)


class NamesNoField(Good):
    steps = "stepz"


class TakesNoSteps(Good):
    steps = "steps"

    @dataclass(frozen=True)
    class Config:
        steps: int = tune.integer(1, 5, default=2)


class AlwaysFloat64(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return super().forward(support_x, support_y, query_x).double()


class CountsItsSteps(Good):
    """Its steps become smaller by a count that is no tensor."""

    traceable = False
    count = 0

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        self.count += 1
        return super().outer_step(
            batch, executor, lambda gradients: update({name: g / self.count for name, g in gradients.items()})
        )


class LearnsOutsideItsState(Good):
    """Keeps the sharpness that it learns in a plain number."""

    sharpness = 1.0

    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        loss = super().outer_step(batch, executor, update)
        self.sharpness *= 1.01
        return loss

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        return scores if self.training else self.sharpness * scores


class HoldsAFunction(Good):
    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.sharpen = lambda scores: 2.0 * scores

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores: Tensor = self.sharpen(super().forward(support_x, support_y, query_x))
        return scores


class BranchesOnAValue(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        if support_x.abs().sum() == 0:
            support_x = support_x + 1
        return super().forward(support_x, support_y, query_x)


class OtherWhenBatched(Good):
    """Gives what is right for one task, and something else for many."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        return scores * 1.01 if torch._C._functorch.is_batchedtensor(support_x) else scores


class ReadsProgress(Good):
    """Changes what it computes in the course of meta-training, and does not say so."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores = super().forward(support_x, support_y, query_x)
        return (1 + self.progress) * scores if self.training else scores


class FixedShots(Good):
    equal_shots = True

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shots, length = self.built_for
        features = self.encoder(support_x)[support_y.argsort(stable=True)]  # class by class
        means = features.reshape(length, shots, -1).mean(1)
        return -squared_distances(self.encoder(query_x), means)

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.built_for = spec.n_shot, spec.n_way


class CutsIntoEqualParts(Good):
    """Takes it that each class has as many supports as the others, also where these differ."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        features = self.encoder(support_x)[support_y.argsort(stable=True)]
        means = torch.stack([part.mean(0) for part in features.tensor_split(self.spec.n_way)])
        return -squared_distances(self.encoder(query_x), means)


class NotFiniteWhereShotsDiffer(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shots = (support_y[:, None] == torch.arange(self.spec.n_way)).to(support_x).sum(0)
        spread = shots.amax() - shots.amin()
        return super().forward(support_x, support_y, query_x) / (1 - spread).clamp(min=0)


class RefusesUnequalShots(Good):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        features = self.encoder(support_x)[support_y.argsort(stable=True)]
        means = features.reshape(self.spec.n_way, -1, features.shape[1]).mean(1)
        return -squared_distances(self.encoder(query_x), means)


class Streams(Good):
    """Learns streams, too: what those that are faulty there are but for their fault."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Classes that were not seen yet lie at the origin."""
        member = (support_y == torch.arange(self.spec.n_way)[:, None]).to(support_x)
        means = member @ self.encoder(support_x) / member.sum(1).clamp(min=1)[:, None]
        return -squared_distances(self.encoder(query_x), means)

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self(x[:t], y[:t], x[t][None]) for t in range(len(x))])


class PeeksAtItsLabel(Streams):
    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self(x[: t + 1], y[: t + 1], x[t][None]) for t in range(len(x))])


class PeeksAtTheFirstLabel(Streams):
    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        own = (y[:1, None] == torch.arange(self.spec.n_way)).to(x)
        return torch.cat([own, super().stream(x, y)[1:]])


class CentresItsStream(Streams):
    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        return super().stream(x - x.mean(0), y)


class StreamsOtherwise(Streams):
    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * super().stream(x, y)


class StreamsAnExtraColumn(Streams):
    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        scores = super().stream(x, y)
        return torch.cat([scores, torch.full_like(scores[:, :1], -1e3)], 1)


class StreamsOtherwiseWhenBatched(Streams):
    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        scores = super().stream(x, y)
        return scores * 1.01 if torch._C._functorch.is_batchedtensor(x) else scores


class FromFeatures(Learner):
    """Sees examples by their features alone: what those that are faulty there are but for their fault."""

    name = "from_features"

    def from_features(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        return -squared_distances(query, class_means(support, support_y, self.spec.n_way))


class LearnsOtherwiseInTurns(FromFeatures):
    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return super().forward(support_x, support_y, query_x) / 2


class FixedWays(Good):
    any_way = True

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.n_way = spec.n_way

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        member = (support_y[:, None] == torch.arange(self.n_way)).to(support_x)  # (n_support, n_way)
        means = member.T @ self.encoder(support_x) / member.sum(0).clamp(min=1)[:, None]
        return -squared_distances(self.encoder(query_x), means)


class GoesUphill(Good):
    def outer_step(
        self, batch: TaskBatch | Examples, executor: Executor, update: Callable[[Gradients], None]
    ) -> Tensor:
        return super().outer_step(
            batch, executor, lambda gradients: update({name: -gradient for name, gradient in gradients.items()})
        )


class IgnoresItsSupport(Good):
    def __init__(self, spec: TaskSpec, encoder: Any, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.head = nn.Linear(encoder.n_features, spec.n_outputs)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(query_x))
        return scores


# Encoders


class Dense(Encoder):
    """One layer: what the faulty ones are but for their fault."""

    name = "dense"

    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        super().__init__(x_shape, config)
        self.layer = nn.Linear(math.prod(x_shape), 8)
        self.n_features = 8

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(x.flatten(1))
        return features


class BadEncoderName(Dense):
    name = ""


class SaysNine(Dense):
    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        super().__init__(x_shape, config)
        self.n_features = 9


class NoMaps(Dense):
    """Says that its features lie on a grid, on which they do not lie."""

    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        super().__init__(x_shape, config)
        self.map_shape = (2, 2, 2)

    def maps(self, x: Tensor) -> Tensor:
        return self.forward(x)


class InfiniteFeatures(Dense):
    @dataclass(frozen=True)
    class Config:
        scale: float = tune.real(0.0, 1.0, default=1.0)

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        return features / self.config.scale if self.config.scale else features.detach() / torch.zeros(())


class CentresItsBatch(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 0.5 * super().forward(x).mean(0)


class UnusedLayer(Dense):
    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        super().__init__(x_shape, config)
        self.forgotten = nn.Linear(2, 2)


class CountsCalls(Dense):
    count: Tensor

    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        super().__init__(x_shape, config)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


class RectifiesItsInput(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.relu(x, inplace=True))


class DrawsWhileEncoding(Dense):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(())
        return super().forward(x)


class AlwaysFloat64Features(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class HoldsALambda(Dense):
    def __init__(self, x_shape: tuple[int, ...], config: Any) -> None:
        super().__init__(x_shape, config)
        self.squash = lambda features: features.tanh()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.squash(super().forward(x))
        return features


class LooksAtValues(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else x.clamp(max=1.0))


# Task samplers


class Blobs(TaskSampler):
    """Classes are normal distributions: what the faulty ones are but for their fault."""

    name = "blobs"
    kind = "classification"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pools = {pool: self.pool(seed) for seed, pool in enumerate(("train", "validation", "test"))}

    def pool(self, seed: int) -> ClassPool:
        draw = Generator().manual_seed(seed)
        examples = torch.randn(10, 1, 4, generator=draw) + 0.1 * torch.randn(10, 8, 4, generator=draw)
        return ClassPool(examples.flatten(0, 1), torch.arange(80).view(10, 8).unbind())

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, (4,), n_way, n_shot, n_query, n_train_classes=10)

    def check(self, pool: Pool, spec: TaskSpec) -> None:
        self.pools[pool].check(pool, spec)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self.pools[pool].draw(spec, n_tasks, generator)

    def examples(self, n: int, generator: Generator) -> Examples:
        return self.pools["train"].draw_examples(n, generator)


class Lines(TaskSampler):
    """Regression on lines: what a sound sampler without classes is."""

    name = "lines"
    kind = "regression"

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, (1,), 1, n_shot, n_query)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        x = torch.randn(n_tasks, spec.n_shot + spec.n_query, 1, generator=generator)
        y = torch.randn(n_tasks, 1, 1, generator=generator) * x
        k = spec.n_shot
        return TaskBatch(x[:, :k], y[:, :k], x[:, k:], y[:, k:])


class BadKind(Blobs):
    name = "bad-kind"


class SaysRegression(Blobs):
    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return replace(super().spec(n_way, n_shot, n_query), kind="regression")


class Flattened(Blobs):
    """Says that examples are pictures, and gives their numbers in a row."""

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return replace(super().spec(n_way, n_shot, n_query), x_shape=(1, 2, 2))

    def examples(self, n: int, generator: Generator) -> Examples:
        examples = super().examples(n, generator)
        return replace(examples, x=examples.x.view(-1, 1, 2, 2))


class OneIsInfinite(Blobs):
    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        batch = super().draw(pool, spec, n_tasks, generator)
        batch.query_x[0, 0, 0] = torch.inf
        return batch


class LabelsByChance(Blobs):
    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        batch = super().draw(pool, spec, n_tasks, generator)
        return replace(batch, query_y=torch.randint(spec.n_way, batch.query_y.shape, generator=generator))


class ClassByClass(Blobs):
    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        batch = super().draw(pool, spec, n_tasks, generator)
        order = batch.query_y.argsort(1)
        return replace(
            batch,
            query_x=batch.query_x.gather(1, order[:, :, None].expand_as(batch.query_x)),
            query_y=batch.query_y.gather(1, order),
        )


class AsksWhatItShows(Blobs):
    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        batch = super().draw(pool, spec, n_tasks, generator)
        rows = torch.arange(n_tasks)
        same = (batch.query_y[:, :1] == batch.support_y).int().argmax(1)  # of the first query's class
        batch.query_x[:, 0] = batch.support_x[rows, same]
        return batch


class ValidatesOnTestClasses(Blobs):
    def pool(self, seed: int) -> ClassPool:
        return super().pool(min(seed, 1))


class OwnGenerator(Blobs):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.own = Generator()
        self.own.seed()

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return super().draw(pool, spec, n_tasks, self.own)


class OneDraw(Blobs):
    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return super().draw(pool, spec, n_tasks, Generator().manual_seed(7))


class OneTask(Blobs):
    """Repeats one task, its examples in another order each time."""

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        one = super().draw(pool, spec, 1, generator)
        parts: list[Tensor] = []
        for x, y in ((one.support_x, one.support_y), (one.query_x, one.query_y)):
            order = torch.rand(n_tasks, y.shape[1], generator=generator).argsort(1)
            parts += [x[0][order], y[0][order]]
        return TaskBatch(*parts)


class UsesTheGlobalGenerator(Blobs):
    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        torch.rand(())
        return super().draw(pool, spec, n_tasks, generator)


class UsesNumpysGenerator(Blobs):
    def __init__(self, config: Any) -> None:
        np.random.rand()
        super().__init__(config)


class ExamplesOfTestClasses(Blobs):
    def examples(self, n: int, generator: Generator) -> Examples:
        return self.pools["test"].draw_examples(n, generator)


class LabelsBeyondTheirClasses(Blobs):
    def examples(self, n: int, generator: Generator) -> Examples:
        examples = super().examples(n, generator)
        return replace(examples, y=examples.y + 1)


class PromisesEverything(Blobs):
    def check(self, pool: Pool, spec: TaskSpec) -> None:
        pass


# Meta-objectives


class Correct(MetaObjective):
    """Accuracy: what the faulty ones are but for their fault."""

    name = "correct"
    direction = "maximize"
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    worst = 0.0

    def score(self, outcome: Outcome) -> Tensor:
        return (outcome.predictions.argmax(-1) == outcome.query_y).double().mean(1)


class Error(MetaObjective):
    """Absolute error: what a sound objective of regression is."""

    name = "error"
    direction = "minimize"
    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)

    def score(self, outcome: Outcome) -> Tensor:
        return (outcome.predictions - outcome.query_y).abs().mean((1, 2))


class BadWorst(Correct):
    worst = "nothing"  # type: ignore[assignment]


class BadObjectiveName(Correct):
    name = "CORRECT"


class ScoresInAColumn(Correct):
    def score(self, outcome: Outcome) -> Tensor:
        return super().score(outcome)[:, None]


class InfiniteWhenSureAndWrong(Correct):
    """The probability of the truth, its logarithm unguarded."""

    worst = -math.inf

    def score(self, outcome: Outcome) -> Tensor:
        truth = outcome.predictions.softmax(-1).gather(-1, outcome.query_y[:, :, None])
        return truth.log().mean((1, 2))


class AgainstTheBestTask(Correct):
    worst = -1.0

    def score(self, outcome: Outcome) -> Tensor:
        scores = super().score(outcome)
        return scores - 0.5 * scores.max()


class FirstQueriesCountMore(Correct):
    def score(self, outcome: Outcome) -> Tensor:
        correct = (outcome.predictions.argmax(-1) == outcome.query_y).double()
        weights = torch.linspace(2, 1, correct.shape[1], dtype=torch.float64)
        return (correct * weights).sum(1) / weights.sum()


class Sharpens(Correct):
    def score(self, outcome: Outcome) -> Tensor:
        outcome.predictions.mul_(2.0)
        return super().score(outcome)


class WrongDirection(Correct):
    direction = "minimize"
    worst = 1.0


class WrongWorst(Correct):
    worst = 0.5


Check = Callable[[Any], None]
FAULTS: Mapping[Check, tuple[type, ...]] = {
    learners.obeys_the_contract: (BadName,),
    learners.its_defaults_exist: (BadDefault, BadDefaultRange),
    learners.predictions_have_their_shape: (ExtraColumn,),
    learners.is_finite_at_both_ends_of_every_range: (InfiniteAtOneEnd, NoGradientAtAnOption),
    learners.gradients_reach_every_parameter: (UnusedParameter,),
    learners.keeps_no_memory_between_tasks: (Remembers, CountsTasks),
    learners.leaves_its_inputs_untouched: (ClipsItsInputs,),
    learners.ignores_the_order_of_the_support_set: (FirstSupportsCountMore, FirstSupportsCountMoreWithAnOption),
    learners.predicts_each_query_by_itself: (CentresQueries, CentresQueriesWithAnOption),
    learners.does_not_care_for_query_order: (NumbersItsQueries,),
    learners.works_without_gradients: (NeedsGradients,),
    learners.is_reproducible_from_a_seed: (StartsAtRandom,),
    learners.draws_no_random_numbers_at_meta_test: (DrawsAndForgets, DrawsFromNumpy),
    learners.adapts_in_the_steps_that_it_names: (NamesNoField, TakesNoSteps),
    learners.runs_in_float32_and_float64: (AlwaysFloat64,),
    learners.survives_a_state_dict_round_trip: (LearnsOutsideItsState,),
    learners.goes_on_from_its_tensors: (CountsItsSteps,),
    learners.pickles_to_a_worker_process: (HoldsAFunction,),
    learners.batched_equals_the_loop: (BranchesOnAValue, OtherWhenBatched, StreamsOtherwiseWhenBatched),
    learners.replayed_equals_the_loop: (ReadsProgress,),
    learners.serves_other_shots_and_queries: (FixedShots,),
    learners.serves_classes_of_unequal_shots: (
        CutsIntoEqualParts,
        NotFiniteWhereShotsDiffer,
        RefusesUnequalShots,
    ),
    learners.predicts_a_stream_as_it_comes: (
        PeeksAtItsLabel,
        PeeksAtTheFirstLabel,
        CentresItsStream,
        StreamsOtherwise,
        StreamsAnExtraColumn,
    ),
    learners.takes_turns_as_it_learns_tasks: (LearnsOtherwiseInTurns,),
    learners.serves_other_ways: (FixedWays,),
    learners.meta_training_lowers_its_loss: (GoesUphill,),
    learners.learns_a_separable_task: (IgnoresItsSupport,),
    encoders.obeys_the_contract: (BadEncoderName,),
    encoders.features_have_their_shape: (SaysNine, NoMaps),
    encoders.features_are_finite: (InfiniteFeatures,),
    encoders.encodes_each_example_by_itself: (CentresItsBatch,),
    encoders.gradients_reach_every_parameter: (UnusedLayer,),
    encoders.keeps_no_memory: (CountsCalls,),
    encoders.leaves_its_inputs_untouched: (RectifiesItsInput,),
    encoders.draws_no_random_numbers_at_meta_test: (DrawsWhileEncoding,),
    encoders.runs_in_float32_and_float64: (AlwaysFloat64Features,),
    encoders.pickles_to_a_worker_process: (HoldsALambda,),
    encoders.batched_equals_the_loop: (LooksAtValues,),
    samplers.obeys_the_contract: (BadKind,),
    samplers.its_spec_is_what_was_asked_for: (SaysRegression,),
    samplers.tasks_have_their_shapes: (Flattened,),
    samplers.tasks_are_finite: (OneIsInfinite,),
    samplers.ways_and_shots_are_exact: (LabelsByChance,),
    samplers.tasks_come_in_no_order: (ClassByClass,),
    samplers.no_query_stands_in_its_support_set: (AsksWhatItShows,),
    samplers.pools_are_disjoint: (ValidatesOnTestClasses,),
    samplers.same_seed_same_tasks: (OwnGenerator,),
    samplers.other_seeds_other_tasks: (OneDraw, OneTask),
    samplers.leaves_the_global_generators_alone: (UsesTheGlobalGenerator, UsesNumpysGenerator),
    samplers.labelled_examples_are_of_train_classes: (ExamplesOfTestClasses, LabelsBeyondTheirClasses),
    samplers.refuses_what_it_cannot_give: (PromisesEverything,),
    objectives.obeys_the_contract: (BadObjectiveName,),
    objectives.scores_each_task: (ScoresInAColumn,),
    objectives.scores_are_finite: (InfiniteWhenSureAndWrong,),
    objectives.scores_a_task_by_itself: (AgainstTheBestTask,),
    objectives.does_not_care_for_query_order: (FirstQueriesCountMore,),
    objectives.leaves_its_inputs_untouched: (Sharpens,),
    objectives.better_predictions_never_score_worse: (WrongDirection,),
    objectives.nothing_scores_worse_than_the_worst: (WrongWorst,),
}
"""Of each check, the faulty classes that it alone catches."""


def failures(cls: type) -> dict[str, str | None]:
    """Return the checks that a class fails, with their reasons."""
    return {verdict.check: verdict.reason for verdict in run_checks(cls) if verdict.status == "failed"}


def test_no_check_is_without_a_fault_that_it_catches() -> None:
    assert set(FAULTS) == {check for checks in CHECKS.values() for check in checks}
    assert all(FAULTS.values())


@pytest.mark.parametrize("cls", [Good, Streams, FromFeatures, Dense, Blobs, Lines, Correct, Error])
def test_a_class_without_a_fault_fails_no_check(cls: type) -> None:
    assert failures(cls) == {}


@pytest.mark.parametrize(
    ("check", "cls"),
    [pytest.param(check, cls, id=f"{cls.__name__}-{check.__name__}") for check, some in FAULTS.items() for cls in some],
)
def test_a_fault_is_caught_by_its_check_alone_which_states_the_law_and_the_remedy(check: Check, cls: type) -> None:
    failed = failures(cls)
    assert list(failed) == [check.__name__], failed
    [reason] = failed.values()
    assert reason is not None
    assert not reason.startswith("it raised")
    assert "\n" not in reason
    assert len(reason.split()) > 6
