"""Learners that act: their limits, in which they equal one another, and what they do and do not know."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, nn

from metaopt.environment import lived
from metaopt.errors import UserError
from metaopt.learner import Gradients, Learner
from metaopt.testing.control import SPECS, environments
from metaopt.train import brought
from metaopt_control.maml_rl import MAMLPolicy
from metaopt_control.oracle import Oracle
from metaopt_control.policy import collect, surrogate
from metaopt_control.randomised import Randomised
from metaopt_control.reptile_rl import ReptilePolicy
from metaopt_control.rl2 import RL2

NUMBERS, CHOICES = SPECS


def built(cls: type[Learner], spec: Any = NUMBERS, **config: Any) -> Any:
    torch.manual_seed(0)
    return cls(spec, nn.Identity(), cls.Config(**config))


def steps(learner: Learner, seed: int = 1) -> list[Gradients]:
    found: list[Gradients] = []
    torch.manual_seed(seed)
    learner.practise(environments(learner.spec), found.append)
    return found


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_without_a_step_is_practice_on_the_episodes_after_it(spec: Any, first_order: bool) -> None:
    maml = built(MAMLPolicy, spec, inner_lr=0.0, epochs=1, first_order=first_order)
    [ours] = steps(maml)
    torch.manual_seed(1)
    tasks = environments(spec)
    collect(maml.policy, maml.mind(tasks), tasks, spec.n_shot, None, 0.99)
    after = collect(maml.policy, maml.mind(tasks), tasks, spec.n_query, None, 0.99)
    loss = surrogate(maml.policy, maml.policy.weights(), after).mean()
    for (name, parameter), theirs in zip(
        maml.named_parameters(), torch.autograd.grad(loss, list(maml.parameters())), strict=True
    ):
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=1e-6, msg=f"{name} {parameter.shape}")


def test_reptile_in_one_step_moves_along_the_policy_gradient() -> None:
    reptile = built(ReptilePolicy, inner_steps=1, inner_lr=0.25)
    [ours] = steps(reptile)
    torch.manual_seed(1)
    tasks = environments(NUMBERS)
    lessons = collect(reptile.policy, reptile.mind(tasks), tasks, 7, None, 0.99)
    loss = surrogate(reptile.policy, reptile.policy.weights(), lessons).mean()
    for name, gradient in zip(ours, torch.autograd.grad(loss, list(reptile.policy.parameters())), strict=True):
        torch.testing.assert_close(ours[name], 0.25 * gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_policy_without_steps_does_the_same_whatever_the_task_and_an_oracle_does_not() -> None:
    one, other = environments(NUMBERS), environments(NUMBERS, seed=1)
    for cls, alike in ((Randomised, True), (Oracle, False)):
        learner = built(cls)
        learner.policy.weight0.data *= 5
        seen = []
        for tasks in (one, other):
            draw = Generator().manual_seed(0)
            seen.append(collect(learner.policy, learner.mind(tasks), tasks, 4, draw, 0.99).seen[..., :2])
        assert torch.allclose(*seen) == alike


def test_steps_at_meta_test_divide_the_episodes_to_learn_from() -> None:
    spec = replace(NUMBERS, n_shot=7)
    learner = built(Randomised, spec, test_steps=3)
    returns = brought(learner, environments(spec), Generator().manual_seed(0))
    none = brought(built(Randomised, spec, test_steps=0), environments(spec), Generator().manual_seed(0))
    assert returns.shape == none.shape == (6, 10)
    with pytest.raises(
        UserError, match=r"8 steps need 8 episodes to learn from and tasks have 7; set tasks\.n_shot to 8"
    ):
        built(Randomised, spec, test_steps=8)


@pytest.mark.parametrize("spec", SPECS)
def test_rl2_reads_its_life_as_it_lived_it(spec: Any) -> None:
    learner, lived_as = built(RL2, spec), list[Any]()
    learner.head.weight.data.normal_(0, 0.5)
    act = learner.act

    def noted(memory: Any, seen: Any, draw: Any) -> Any:
        action, after = act(memory, seen, draw)
        lived_as.append((torch.cat([seen.flatten(1), memory.last], 1), after.state[0]))
        return action, after

    learner.act = noted
    tasks = environments(spec)
    episodes, _ = lived(learner, learner.blank(tasks), tasks, 7, Generator().manual_seed(0), in_turn=True)
    inputs = learner._told(episodes)
    torch.testing.assert_close(inputs, torch.stack([told for told, _ in lived_as]))
    torch.testing.assert_close(learner.gru(inputs)[0], torch.stack([state for _, state in lived_as]))
    assert not inputs[0, :, 2:].any(), "nothing was before the first step"
    assert inputs[tasks.horizon, :, -1].all(), "and its horizon ends an episode"


def test_rl2_judges_by_all_that_is_to_come_in_the_task() -> None:
    learner = built(RL2, discount=0.9, decay=1.0)
    rewards, values = torch.randn(6, 2), torch.randn(6, 2)
    to_come = [sum(0.9 ** (later - now) * rewards[later] for later in range(now, 6)) for now in range(6)]
    expected = torch.stack([one - value for one, value in zip(to_come, values, strict=True)])  # type: ignore[operator]
    torch.testing.assert_close(learner._worth(rewards, values), expected)
