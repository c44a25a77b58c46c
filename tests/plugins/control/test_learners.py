"""Learners that act: their limits, in which they equal one another, and what they do and do not know."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, nn

from metaopt.errors import UserError
from metaopt.learner import Gradients, Learner
from metaopt.testing.control import SPECS, environments
from metaopt_control.maml_rl import MAMLPolicy
from metaopt_control.oracle import Oracle
from metaopt_control.policy import collect, of_each, surrogate, worth
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
    collect(maml.policy, maml.policy.weights(), tasks, spec.n_shot, None)
    after = collect(maml.policy, of_each(maml.policy.weights(), len(tasks)), tasks, spec.n_query, None)
    loss = surrogate(maml.policy, maml.policy.weights(), after, worth(after, 0.99)).mean()
    for (name, parameter), theirs in zip(
        maml.named_parameters(), torch.autograd.grad(loss, list(maml.parameters())), strict=True
    ):
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=1e-6, msg=f"{name} {parameter.shape}")


def test_reptile_in_one_step_moves_along_the_policy_gradient() -> None:
    reptile = built(ReptilePolicy, inner_steps=1, inner_lr=0.25)
    [ours] = steps(reptile)
    torch.manual_seed(1)
    tasks = environments(NUMBERS)
    episodes = collect(reptile.policy, of_each(reptile.policy.weights(), len(tasks)), tasks, 7, None)
    loss = surrogate(reptile.policy, reptile.policy.weights(), episodes, worth(episodes, 0.99)).mean()
    for name, gradient in zip(ours, torch.autograd.grad(loss, list(reptile.policy.parameters())), strict=True):
        torch.testing.assert_close(ours[name], 0.25 * gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_policy_without_steps_does_the_same_whatever_the_task_and_an_oracle_does_not() -> None:
    one, other = environments(NUMBERS), environments(NUMBERS, seed=1)
    for cls, alike in ((Randomised, True), (Oracle, False)):
        learner = built(cls)
        learner.policy.weight0.data *= 5
        seen = []
        for tasks in (one, other):
            told = tasks.told if cls is Oracle else None
            draw = Generator().manual_seed(0)
            seen.append(collect(learner.policy, learner.policy.weights(), tasks, 4, draw, told).seen[..., :2])
        assert torch.allclose(*seen) == alike


def test_steps_at_meta_test_divide_the_episodes_to_learn_from() -> None:
    spec = replace(NUMBERS, n_shot=7)
    learner = built(Randomised, spec, test_steps=3)
    returns = learner.interact(environments(spec), Generator().manual_seed(0))
    none = built(Randomised, spec, test_steps=0).interact(environments(spec), Generator().manual_seed(0))
    assert returns.shape == none.shape == (6, 10)
    with pytest.raises(
        UserError, match=r"8 steps need 8 episodes to learn from and tasks have 7; set tasks\.n_shot to 8"
    ):
        built(Randomised, spec, test_steps=8)


@pytest.mark.parametrize("spec", SPECS)
def test_what_rl2_did_is_as_likely_when_its_life_is_read_again(spec: Any) -> None:
    learner = built(RL2, spec)
    learner.head.weight.data.normal_(0, 0.5)
    life = learner._live(environments(spec), Generator().manual_seed(0))
    found, value = learner._heads(learner.gru(life["inputs"])[0])
    likely, _ = learner._likely(found, life["actions"])
    torch.testing.assert_close(likely, life["likely"], rtol=1e-4, atol=1e-5)
    far = learner._far(len(value))
    torch.testing.assert_close(far * value, life["values"], rtol=1e-4, atol=1e-4)


def test_rl2_judges_by_all_that_is_to_come_in_the_task() -> None:
    learner = built(RL2, discount=0.9, decay=1.0)
    rewards, values = torch.randn(6, 2), torch.randn(6, 2)
    to_come = [sum(0.9 ** (later - now) * rewards[later] for later in range(now, 6)) for now in range(6)]
    expected = torch.stack([one - value for one, value in zip(to_come, values, strict=True)])  # type: ignore[operator]
    torch.testing.assert_close(learner._worth(rewards, values), expected)


def test_rl2_remembers_earlier_episodes_and_forgets_them_in_the_next_task() -> None:
    learner = built(RL2, CHOICES)
    life = learner._live(environments(CHOICES), Generator().manual_seed(0))
    told = life["inputs"][1:, :, 2:]  # the action, reward and end of the step before
    torch.testing.assert_close(told[:, :, 3], life["rewards"][:-1])
    assert not life["inputs"][0, :, 2:].any(), "nothing was before the first step"
    assert life["inputs"][4, :, -1].all(), "and its horizon ends an episode"
