"""Policy gradients are what their formulas say: score function, derivative, clipping, and what actions are worth."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from metaopt.environment import Environments, Episodes, lived
from metaopt.task import TaskSpec
from metaopt.testing.control import environments
from metaopt_control.policy import Lessons, Mind, Policy, adapted, chosen, collect, of_each, surrogate, worth

NUMBERS = TaskSpec("control", (2,), n_way=1, n_shot=4, n_query=3, y_size=2)
CHOICES = TaskSpec("control", (2,), n_way=1, n_shot=4, n_query=3, n_actions=3)


def policy(spec: TaskSpec) -> Policy:
    torch.manual_seed(0)
    return Policy(spec, 8, 1).double()


def tasks_of(spec: TaskSpec) -> Environments:
    tasks = environments(spec, 3)
    tasks.told = tasks.told.double()
    return tasks


def lessons_of(spec: TaskSpec, n: int = 5) -> tuple[Policy, Lessons]:
    one, tasks = policy(spec), tasks_of(spec)
    return one, collect(one, Mind(of_each(one.weights(), 3)), tasks, n, torch.Generator().manual_seed(0), 0.9)


def episodes_of(spec: TaskSpec, n: int) -> Episodes:
    one = policy(spec)
    mind = Mind(of_each(one.weights(), 3))
    return lived(one, mind, tasks_of(spec), n, torch.Generator().manual_seed(0), in_turn=False)[0]


@pytest.mark.parametrize("spec", [NUMBERS, CHOICES])
def test_where_episodes_were_collected_the_gradient_is_that_of_reinforce(spec: TaskSpec) -> None:
    one, lessons = lessons_of(spec)
    names, weights = zip(*one.weights().items(), strict=True)
    ours = torch.autograd.grad(surrogate(one, one.weights(), lessons).sum(), weights)
    likely = one.log_likely(one.weights(), lessons.seen, lessons.actions)
    theirs = torch.autograd.grad(-((likely * lessons.advantage).sum(1) / lessons.counts.sum(1)).sum(), weights)
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_derivative_of_the_inner_gradient_is_on_average_the_curvature_of_what_is_earned() -> None:
    # By all three actions of one step: what sampling terms are for (Rothfuss et al., 2019, arXiv:1810.06784).
    scores, pays = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), torch.tensor([1.0, 2.0, -1.0]).double()

    def earned(scores: Tensor) -> Tensor:
        return scores.softmax(0) @ pays

    exact, found = hessian(earned, scores), torch.zeros(3, 3, dtype=torch.float64)
    one = Policy(TaskSpec("control", (1,), n_way=1, n_shot=1, n_query=1, n_actions=3), 1, 1).double()
    for action, chance in enumerate(scores.softmax(0)):
        seen, taken, paid = torch.zeros(1, 1, 1, dtype=torch.float64), torch.tensor([[action]]), pays[action].view(1, 1)
        lesson = Lessons(seen, taken, chance.log().view(1, 1), paid, taken >= 0, paid)
        bias = scores.clone().requires_grad_()
        weights = one.weights() | {"weight1": torch.zeros(1, 3).double(), "bias1": bias[None]}
        loss = surrogate(one, weights, lesson)
        [gradient] = torch.autograd.grad(loss.sum(), bias, create_graph=True)
        found -= chance * torch.stack([torch.autograd.grad(part, bias, retain_graph=True)[0] for part in gradient])
    torch.testing.assert_close(found, exact)


def test_a_gradient_through_a_step_is_that_of_finite_differences() -> None:
    one, lessons = lessons_of(NUMBERS)
    _, after = lessons_of(NUMBERS, 4)

    def loss(shift: float, derivatives: Literal[0, 1, 2]) -> Tensor:
        moved = one.weights() | {"weight1": one.weights()["weight1"] + shift}
        weights = adapted(one, of_each(moved, 3), lessons, 0.5, derivatives)
        return surrogate(one, weights, after).mean()

    [gradient] = torch.autograd.grad(loss(0.0, 2), [one.weights()["weight1"]])
    [rough] = torch.autograd.grad(loss(0.0, 1), [one.weights()["weight1"]])
    step = 1e-5
    difference = (loss(step, 0) - loss(-step, 0)) / (2 * step)
    torch.testing.assert_close(gradient.sum(), difference, rtol=1e-5, atol=1e-8)
    assert (rough.sum() - difference).abs() > 1e-3 * difference.abs(), "the first order leaves something out"


def test_beyond_the_clip_nothing_is_gained_and_what_is_lost_counts() -> None:
    one, lessons = lessons_of(CHOICES)
    for sign, moves in ((1.0, False), (-1.0, True)):
        gain = sign * lessons.counts.double()
        rarer = replace(lessons, likely=lessons.likely - 1, advantage=gain)  # now e times as likely as then
        loss = surrogate(one, one.weights(), rarer, clip=0.2)
        gradients = torch.autograd.grad(loss.sum(), list(one.weights().values()))
        assert any(gradient.abs().max() > 1e-9 for gradient in gradients) == moves
        if not moves:
            torch.testing.assert_close(loss, -torch.full((3,), 1.2, dtype=torch.float64))


def test_worth_is_standardised_in_each_task_and_nothing_after_an_end() -> None:
    episodes = episodes_of(NUMBERS, 40)
    rewards = 100 * torch.randn(episodes.rewards.shape, dtype=torch.float64)
    counts = torch.ones_like(rewards, dtype=torch.bool)
    counts[:, ::2, 2:] = False
    gain = worth(episodes.seen, replace(episodes, rewards=rewards * counts, counts=counts), 0.9)
    kept = counts.double()
    n = kept.sum((1, 2))
    torch.testing.assert_close(gain.sum((1, 2)) / n, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(gain.square().sum((1, 2)) / n, torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    assert not gain[~counts].any()


def test_a_better_action_is_worth_more_than_the_others() -> None:
    episodes = episodes_of(CHOICES, 60)
    rewards = (episodes.actions == 1).double() * episodes.counts
    gain = worth(episodes.seen, replace(episodes, rewards=rewards), 0.0)
    counted = episodes.counts
    assert gain[counted & (episodes.actions == 1)].mean() > 0.5 > gain[counted & (episodes.actions != 1)].mean()


def test_choices_are_as_often_as_their_chances() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0]).expand(20_000, 3)
    shares = chosen(scores, torch.Generator().manual_seed(0)).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, scores[0].softmax(0), rtol=0, atol=0.01)
