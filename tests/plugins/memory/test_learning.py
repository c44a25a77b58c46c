"""Learners with a memory learn to learn: what matters in an example, and what the support set says of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from metaopt.executor import Traced, Vmap
from metaopt.learner import Learner
from metaopt.task import ClassPool, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.train import Budget, Outer, meta_test, meta_train
from metaopt_baseline.pixels import Pixels
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.identity import Identity
from metaopt_encoders.mlp import MLP
from metaopt_memory.mann import MANN
from metaopt_memory.metanet import MetaNet
from metaopt_memory.snail import SNAIL
from metaopt_objectives.accuracy import Accuracy
from metaopt_objectives.at_presentation import AtPresentation
from metaopt_tasks.gaussian import Gaussian
from metaopt_tasks.omniglot import Omniglot

CPU = torch.device("cpu")


class Clouds(TaskSampler):
    """Classes that differ in four numbers of an example, hidden among eight of mere noise that is louder."""

    name = "clouds"
    kind = "classification"

    def __init__(self) -> None:
        super().__init__(self.Config())
        self.pools = {"train": self._pool(300, 0), "validation": self._pool(100, 1)}

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(self.kind, (12,), n_way, n_shot, n_query)

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> TaskBatch:
        return self.pools[pool].draw(spec, n_tasks, generator)

    @staticmethod
    def _pool(n_classes: int, seed: int) -> ClassPool:
        draw = Generator().manual_seed(seed)
        examples = torch.randn(n_classes, 10, 12, generator=draw)
        examples[..., :4] = 2 * torch.randn(n_classes, 1, 4, generator=draw) + 0.2 * examples[..., :4]
        examples[..., 4:] *= 3
        return ClassPool(examples.flatten(0, 1), list(torch.arange(10 * n_classes).split(10)))


def accuracy(learner: Learner, sampler: TaskSampler) -> float:
    objective, draw = Accuracy(Accuracy.Config()), Generator().manual_seed(0)
    return meta_test(learner, sampler, "validation", objective, 200, Traced(), draw=draw, device=CPU).mean


def learned(learner: Learner, sampler: TaskSampler, n_tasks: int, outer: Outer, seed: int = 0) -> float:
    """Meta-train; return what it comes to."""
    meta_train(learner, sampler, outer, Budget(tasks=n_tasks), Traced(), seed=seed, device=CPU)
    return accuracy(learner, sampler)


@pytest.fixture
def characters(drawings: Path) -> Omniglot:
    return Omniglot(Omniglot.Config(root=str(drawings), split="splits/vinyals"))


@pytest.mark.parametrize(
    ("cls", "config", "outer", "n_tasks"),
    [
        (MANN, {"controller": 64, "slots": 16, "slot_size": 20}, {}, 5000),
        (SNAIL, {"width": 16}, {}, 2500),
        (MetaNet, {"width": 16}, {"lr": 3e-3}, 600),
    ],
)
def test_meta_training_beats_the_untrained_and_the_nearest_class_mean(
    cls: type[Learner], config: dict[str, Any], outer: dict[str, Any], n_tasks: int
) -> None:
    """All begin with a plateau of some hundred steps, where they answer at random."""
    sampler = Clouds()
    spec = sampler.spec(2, 1, 5)
    torch.manual_seed(0)
    learner = cls(spec, MLP((12,), MLP.Config(width=32)), cls.Config(**config))
    nearest, untrained = (accuracy(it, sampler) for it in (Pixels(spec, nn.Identity(), Pixels.Config()), learner))
    own = {key.removeprefix("outer."): value for key, value in cls.defaults.items()}
    assert learned(learner, sampler, n_tasks, Outer(**own | outer)) > max(untrained, nearest) + 0.1


def test_mann_tells_five_classes_apart_whose_features_are_ready_after_a_few_hundred_steps() -> None:
    """Told where to read after it wrote it never did; from small keys, half open gates or faint labels it is slower."""
    sampler = Gaussian(Gaussian.Config(features=16, spread=3.0))
    torch.manual_seed(0)
    learner = MANN(sampler.spec(5, 1, 5), Identity((16,), Identity.Config()), MANN.Config())
    assert learned(learner, sampler, 3000, Outer(tasks_per_step=16)) > 0.8


@pytest.mark.slow
def test_mann_tells_twenty_classes_apart_by_labels_of_two_letters() -> None:
    """By one-hot labels it takes longer, and where features drown them it answers at random."""
    sampler = Gaussian(Gaussian.Config(features=16, spread=3.0))
    torch.manual_seed(0)
    learner = MANN(sampler.spec(20, 1, 1), Identity((16,), Identity.Config()), MANN.Config())
    assert learned(learner, sampler, 10_000, Outer(tasks_per_step=16)) > 0.6


def test_metanet_tells_twenty_classes_apart_and_does_not_shut_its_units() -> None:
    """From fast weights and keys with something in common it did, and its scores were 0 from then on."""
    sampler = Clouds()
    torch.manual_seed(1)
    learner = MetaNet(sampler.spec(20, 1, 1), MLP((12,), MLP.Config(width=32)), MetaNet.Config(width=16))
    assert learned(learner, sampler, 300, Outer(), seed=1) > 0.2


@pytest.mark.slow
def test_snail_learns_twenty_characters_within_a_few_hundred_steps(characters: Omniglot) -> None:
    """From attention that looks anywhere it answered at random for longer."""
    spec = characters.spec(20, 1, 1)
    torch.manual_seed(0)
    learner = SNAIL(spec, Conv4(spec.x_shape, Conv4.Config(pool="stride")), SNAIL.Config())
    assert learned(learner, characters, 3000, Outer()) > 0.3


@pytest.mark.slow
def test_mann_learns_characters_from_their_pixels_as_in_its_paper(characters: Omniglot) -> None:
    """At three times the rate, half as sharp and from small keys it answered at random for much longer."""
    spec = characters.spec(5, 1, 5)
    torch.manual_seed(0)
    encoder = Identity(spec.x_shape, Identity.Config())
    learner, pixels = (cls(spec, encoder, cls.Config()) for cls in (MANN, Pixels))
    assert learned(learner, characters, 16_000, Outer(tasks_per_step=16)) > accuracy(pixels, characters) + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config", "n_tasks"),
    [(MANN, {"controller": 40, "slots": 16, "slot_size": 16}, 8000), (SNAIL, {"width": 16}, 4000)],
)
def test_in_a_stream_a_class_shown_before_is_known_and_a_new_one_is_guessed(
    cls: type[Learner], config: dict[str, Any], n_tasks: int
) -> None:
    """Of two classes the first to come is guessed, and the other then has the label that is left: 3/4 at best."""
    sampler = Gaussian(Gaussian.Config(features=8, spread=3.0))
    spec = replace(sampler.spec(2, 5, 0), stream=True)
    torch.manual_seed(0)
    learner = cls(spec, Identity((8,), Identity.Config()), cls.Config(**config))
    outer = Outer(lr=5e-3, tasks_per_step=16, clip=10.0)
    meta_train(learner, sampler, outer, Budget(tasks=n_tasks), Vmap(), seed=0, device=CPU)

    def at(k: int) -> float:
        objective, draw = AtPresentation(AtPresentation.Config(k=k)), Generator().manual_seed(0)
        return meta_test(learner, sampler, "validation", objective, 400, Vmap(), draw=draw, device=CPU).mean

    deviation = (3 / 4 * 1 / 4 / 800) ** 0.5
    assert 0.5 < at(1) < 3 / 4 + 3 * deviation
    assert at(2) > 0.85
    assert at(5) > 0.85
