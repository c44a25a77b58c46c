"""Accuracy at the k-th presentation is that of a stream's queries which are the k-th of their class."""

import pytest
import torch
from torch import Tensor, nn

from metaopt import seeds
from metaopt.errors import UserError
from metaopt.executor import Loop
from metaopt.learner import Learner
from metaopt.objective import Outcome
from metaopt.task import ClassPool, Pool, TaskBatch, TaskSampler, TaskSpec
from metaopt.train import meta_test
from metaopt_objectives.at_presentation import AtPresentation

N_WAY, N_SHOT = 5, 10
STREAM = TaskSpec("classification", (1,), N_WAY, N_SHOT, 0, stream=True)


def at(k: int) -> AtPresentation:
    return AtPresentation(AtPresentation.Config(k=k))


class Numbers(TaskSampler):
    """An example is the number of its class."""

    name = "numbers"
    kind = "classification"

    def draw(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: torch.Generator) -> TaskBatch:
        examples = torch.arange(8.0).repeat_interleave(N_SHOT)[:, None]
        return ClassPool(examples, torch.arange(80).view(8, -1).unbind()).draw(spec, n_tasks, generator)


class Memorizer(Learner):
    """Knows each class that it was told of, and guesses among the labels that it was not."""

    name = "memorizer"
    forgets = False

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        told: dict[float, int] = {}
        scores = torch.zeros(len(x), self.spec.n_way)
        for row, example in enumerate(x.flatten().tolist()):
            untold = [label for label in range(self.spec.n_way) if label not in told.values()]
            scores[row, told.get(example, untold[0] if untold else 0)] = 1
            told[example] = int(y[row])
            if self.forgets:
                told = {example: told[example]}
        return scores


def accuracy(learner: Learner, k: int, n_tasks: int = 400) -> float:
    draw = seeds.generator(0, "test")
    return meta_test(learner, Numbers(None), "test", at(k), n_tasks, Loop(), draw=draw, device=torch.device("cpu")).mean


def test_by_hand() -> None:
    y = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    answers = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0]])
    spec = TaskSpec("classification", (1,), 2, 3, 0, stream=True)
    outcome = Outcome(spec, nn.functional.one_hot(answers, 2).double(), y)
    assert [at(k).score(outcome).tolist() for k in (1, 2, 3)] == [[0.5, 1.0], [0.5, 0.5], [0.5, 0.5]]


def test_a_perfect_memory_guesses_among_the_labels_not_told_at_the_first_presentation_and_then_errs_no_more() -> None:
    memorizer = Memorizer(STREAM, nn.Identity(), None)
    chance = sum(1 / n for n in range(1, N_WAY + 1)) / N_WAY  # the class that is new as the i-th: 1 in n_way - i + 1
    assert abs(accuracy(memorizer, 1) - chance) < 4 * (chance * (1 - chance) / (400 * N_WAY)) ** 0.5
    assert [accuracy(memorizer, k, 50) for k in (2, 5, 10)] == [1.0, 1.0, 1.0]


def test_a_memory_of_one_example_knows_as_much_at_each_later_presentation() -> None:
    """It is right where the same class stood just before, and where it guesses right among the four labels left."""
    memorizer = Memorizer(STREAM, nn.Identity(), None)
    memorizer.forgets = True
    before = (N_SHOT - 1) / (N_WAY * N_SHOT - 1)
    # A later presentation stands just after one of its class with a chance that grows with k; over all k it is this.
    repeated = sum(accuracy(memorizer, k) for k in range(1, N_SHOT + 1)) / N_SHOT
    chance = 1 / N_WAY / (N_WAY * N_SHOT)  # at the first place of all
    chance += (1 - 1 / (N_WAY * N_SHOT)) * (before + (1 - before) / (N_WAY - 1))
    assert abs(repeated - chance) < 0.01


def test_what_is_no_stream_or_too_short_is_refused_with_what_works() -> None:
    with pytest.raises(UserError, match=r"at_presentation scores streams; set tasks\.stream to true, or take accuracy"):
        at(2).check(TaskSpec("classification", (1,), 5, 10, 15))
    at(10).check(STREAM)
    with pytest.raises(UserError, match=r"scores presentation 11 .* shown 10 times; set its k to 10 or less"):
        at(11).check(STREAM)
