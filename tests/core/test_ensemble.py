"""An ensemble predicts the mean of what its members predict, and its members are those that do best together."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch

from metaopt import plugins, seeds
from metaopt.augment import Augment
from metaopt.ensemble import Ensemble, choose, mean
from metaopt.executor import Loop, Vmap
from metaopt.learner import Learner
from metaopt.task import TaskBatch, TaskSpec
from metaopt.train import predict

REGISTRY = plugins.load()
SPEC = TaskSpec("classification", (6,), 3, 2, 4, n_train_classes=10)


def member(name: str, spec: TaskSpec = SPEC, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    cls, encoder = REGISTRY.learner(name), REGISTRY.encoder("mlp")
    return cls(spec, encoder(spec.x_shape, encoder.Config(width=8, depth=1)), cls.Config()).eval()


def batch(spec: TaskSpec = SPEC, n_tasks: int = 3) -> TaskBatch:
    tasks = REGISTRY.task_sampler("gaussian")
    sampler = tasks(tasks.Config(features=spec.x_shape[0]))
    return sampler.draw("train", spec, n_tasks, seeds.generator(0, "tasks"))


def test_probabilities_are_averaged_each_at_its_temperature_and_by_its_share() -> None:
    first, second = torch.randn(4, 3), 9 * torch.randn(4, 3)
    together = mean([first, second], [0.25, 0.75], [2.0, 5.0], classes=True)
    expected = 0.25 * (first / 2).softmax(-1) + 0.75 * (second / 5).softmax(-1)
    torch.testing.assert_close(together.exp(), expected)


def test_targets_are_averaged_as_they_are() -> None:
    first, second = torch.randn(4, 1), torch.randn(4, 1)
    torch.testing.assert_close(mean([first, second], [0.5, 0.5], [1, 1], classes=False), (first + second) / 2)


def test_what_all_members_hold_impossible_is_still_a_finite_score() -> None:
    sure = torch.tensor([[1e4, 0.0, -1e4]])
    assert mean([sure, sure], [0.5, 0.5], [1, 1], classes=True).isfinite().all()


@pytest.mark.parametrize("executor", [Loop(), Vmap()])
def test_an_ensemble_predicts_the_mean_of_its_members_task_by_task(executor: Loop | Vmap) -> None:
    members, tasks = [member("protonet"), member("r2d2", seed=1)], batch()
    together = Ensemble(members, [0.4, 0.6], [1.0, 2.0])
    found = predict(together, executor, tasks, seeds.generator(0, "views"))
    alone = [predict(one, executor, tasks, seeds.generator(0, "views")) for one in members]
    torch.testing.assert_close(found.exp(), 0.4 * alone[0].softmax(-1) + 0.6 * (alone[1] / 2).softmax(-1))
    support_x, support_y, query_x, _ = (tensor[0] for tensor in tasks.tensors())
    torch.testing.assert_close(together(support_x, support_y, query_x), found[0])


def test_an_ensemble_of_one_member_alone_is_that_member() -> None:
    one, tasks = member("matching"), batch()
    views = seeds.generator(0, "views")
    found = predict(Ensemble([one, one], [0.5, 0.5], [1, 1]), Loop(), tasks, views)
    torch.testing.assert_close(found.softmax(-1), predict(one, Loop(), tasks, views).softmax(-1))


def test_each_member_is_averaged_over_as_many_views_as_it_asks_for() -> None:
    many, tasks = member("protonet"), batch()
    many.augment = Augment(noise=0.5, test_copies=3)
    together = Ensemble([many, member("protonet")], [1.0, 0.0], [1, 1])
    found = predict(together, Loop(), tasks, seeds.generator(0, "views"))
    alone = predict(many, Loop(), tasks, seeds.generator(0, "views"))
    torch.testing.assert_close(found.exp(), alone.exp())
    assert together.augment.test_copies == 3, "which an exported program must know"


def test_it_can_what_all_of_its_members_can_and_needs_what_one_of_them_needs() -> None:
    free, fixed = member("protonet"), member("maml")
    assert Ensemble([free, free], [0.5, 0.5], [1, 1]).any_way
    both = Ensemble([free, fixed], [0.5, 0.5], [1, 1])
    assert not both.any_way
    assert both.spec == fixed.spec
    assert not both.transductive
    assert not Ensemble([free, member("sklearn")], [0.5, 0.5], [1, 1]).batchable


def test_sized_for_other_tasks_its_members_are_and_it_shares_their_weights() -> None:
    together = Ensemble([member("protonet"), member("matching")], [0.5, 0.5], [1, 1]).eval()
    other = together.with_spec(replace(SPEC, n_way=5))
    assert [one.spec.n_way for one in (other, *other.learners())] == [5, 5, 5]
    assert [one.spec.n_way for one in (together, *together.learners())] == [3, 3, 3]
    assert not other.training
    assert all(a is b for a, b in zip(together.parameters(), other.parameters(), strict=True))


# Who is in it


def choose_for(answers: Sequence[float], most: int) -> list[int]:
    """Return who is chosen where the mean answer should be 1: the nearer, the better."""
    return choose(len(answers), lambda chosen: -abs(sum(answers[one] for one in chosen) / len(chosen) - 1.0), most)


def test_the_best_one_comes_first_then_who_makes_up_for_its_error() -> None:
    assert choose_for([0.0, 0.9, 1.1], 10) == [1, 2]
    assert choose_for([0.5, 1.25, 9.0], 10) == [1, 0, 1], "a member may be there twice: 1 is their mean then"


def test_one_that_nobody_helps_stays_alone_and_equal_ones_come_by_their_order() -> None:
    assert choose_for([1.0, 1.0, 5.0], 10) == [0]
    assert choose_for([3.0, 1.5, 2.0], 10) == [1]


def test_no_more_are_chosen_than_there_may_be() -> None:
    answers = [0.0, 1.7]
    for most in range(1, 9):
        assert len(choose_for(answers, most)) <= most
    assert len(choose_for(answers, 8)) > len(choose_for(answers, 1))


def test_no_greedy_choice_is_worse_than_its_best_member() -> None:
    for answers in product((0.0, 0.6, 1.2, 3.0), repeat=3):
        chosen = choose_for(answers, 6)
        together = abs(sum(answers[one] for one in chosen) / len(chosen) - 1)
        assert together <= min(abs(one - 1) for one in answers)
