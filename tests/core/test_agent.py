"""A saved policy adapts to an environment outside of metaopt, and acts there as it does in its tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from torch import Generator, Tensor

import metaopt
from metaopt import cli, seeds
from metaopt.agent import Agent
from metaopt.environment import Environments
from metaopt.errors import InputError
from metaopt.train import brought
from metaopt_control.gymnasium_tasks import GymnasiumTasks
from metaopt_control.navigation import Navigation, Plane

STUDY: dict[str, Any] = {
    "name": "plane",
    "tasks": {"sampler": "navigation", "n_shot": 6, "n_query": 4, "horizon": 10},
    "trials": 1,
    "budget": {"tasks": 40},
    "evaluation": {"tasks": 20, "finalists": 1, "report_tasks": 20},
}
GYM = {"sampler": "gymnasium", "env": "CartPole-v1", "parameters": {"gravity": [9, 11]}, "horizon": 30,
       "n_shot": 4, "n_query": 2}  # fmt: skip


class Robot:
    """A point in the plane as users write one: by Gymnasium's methods, with nothing of metaopt or of torch."""

    def __init__(self, goal: tuple[float, float] = (0.3, -0.2)) -> None:
        self.goal = np.array(goal, dtype=np.float32)
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.place = np.zeros(2, dtype=np.float32)
        return self.place, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = self.place + action.clip(-0.1, 0.1).astype(np.float32)
        far = float(np.sqrt(np.square(self.place - self.goal).sum()))
        return self.place, -far, far < 0.01, False, {}


class Seeded(Plane):
    """The same point in torch, whose starts draw a seed as those of a user's environment do."""

    at_once = 1

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        torch.randint(2**31, (), generator=draw)
        return super().start(n_episodes, draw)


@pytest.fixture(scope="module", params=["maml_rl", "rl2", "randomised", "oracle"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studied(tmp_path_factory, {"learners": [request.param]})


def studied(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    (folder / "plane.yaml").write_text(yaml.safe_dump(STUDY | changes))
    assert cli.main(["study", "run", str(folder / "plane.yaml"), "--quiet", "--out", str(folder / "out")]) == 0
    return folder / "out"


def opened(run: Path) -> tuple[Agent, dict[str, Any]]:
    agent = metaopt.load(run)
    assert isinstance(agent, Agent)
    return agent, {"told": [0.3, -0.2]} if agent.model.learner.is_told else {}


def test_an_agent_experiences_with_a_robot_what_its_learner_does_in_the_same_task(run: Path) -> None:
    agent, more = opened(run)
    returns = agent.adapt(Robot(), max_steps=10, **more).returns_
    with torch.no_grad():
        task = Seeded(torch.tensor([[0.3, -0.2]]), 10)
        _, expected = agent.model.learner.adapt(task, seeds.generator(0, "agent"))
    np.testing.assert_allclose(returns, expected[0].double(), rtol=1e-4)
    assert returns.shape == (6,)


def test_an_agent_acts_after_adapting_as_its_learner_does(run: Path) -> None:
    agent, more = opened(run)
    task = Seeded(torch.tensor([[0.3, -0.2]]), 10)
    expected = brought(agent.model.learner, task, seeds.generator(0, "agent"))[0, 6:]
    agent.adapt(robot := Robot(), max_steps=10, **more)
    earned = []
    for _ in range(4):
        torch.randint(2**31, (), generator=agent._state()[1])  # as its learner's start does
        (seen, _), total, ended, step = robot.reset(), 0.0, False, 0
        while not ended and step < 10:
            action = agent.act(seen)
            assert action.shape == (2,)
            seen, reward, ended, _, _ = robot.step(action)
            step += 1
            agent.notice(reward, ended or step == 10)
            total += reward
        earned.append(total)
    np.testing.assert_allclose(earned, expected.double(), rtol=1e-3)


def test_the_same_seed_is_the_same_agent_and_another_is_not(run: Path) -> None:
    agent, more = opened(run)
    one, same, other = Robot(), Robot(), Robot()
    first = agent.adapt(one, max_steps=10, **more).returns_
    assert (first == agent.adapt(same, max_steps=10, **more).returns_).all()
    assert (first != agent.adapt(other, max_steps=10, seed=1, **more).returns_).any()
    assert one.seeds == same.seeds != other.seeds


def test_an_agent_learns_from_as_many_episodes_as_one_says(run: Path) -> None:
    agent, more = opened(run)
    robot = Robot()
    assert len(agent.adapt(robot, episodes=9, max_steps=10, **more).returns_) == len(robot.seeds) == 9


def test_an_environment_of_metaopt_serves_as_well(run: Path) -> None:
    agent, more = opened(run)
    sampler = Navigation(Navigation.Config(horizon=10))
    tasks: Environments = sampler.environments("test", agent.model.spec, 1, Generator().manual_seed(0))
    assert agent.adapt(tasks, **more).returns_.shape == (6,)
    assert agent.act(np.zeros(2)).shape == (2,)


def test_a_refused_environment_leaves_the_agent_as_it_was(run: Path) -> None:
    agent, more = opened(run)
    agent.adapt(Robot(), max_steps=10, **more)
    with pytest.raises(InputError, match="these are 2 environments"):
        agent.adapt(Plane(torch.zeros(2, 2), 5), **more)
    assert agent.act(np.zeros(2)).shape == (2,)


def test_too_few_episodes_for_the_learners_steps_are_refused_with_what_to_give(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    agent, _ = opened(studied(tmp_path_factory, {"learners": {"maml_rl": {"test_steps": 3}}}))
    with pytest.raises(
        InputError, match=r"3 steps need 3 episodes .* have 2; .* \(of a saved model, the episodes of ad"
    ):
        agent.adapt(Robot(), episodes=2, max_steps=10)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Any]]:
    agent, _ = opened(studied(tmp_path_factory, {"tasks": GYM, "learners": ["randomised"]}))
    env = gymnasium.make("CartPole-v1", max_episode_steps=30)
    yield agent, env
    env.close()


def test_an_agent_trained_in_gymnasium_adapts_to_a_task_of_its_sampler(cartpole: tuple[Agent, Any]) -> None:
    agent, _ = cartpole
    sampler = GymnasiumTasks(GymnasiumTasks.Config(env="CartPole-v1", parameters={"gravity": [9, 11]}, horizon=30))
    tasks = sampler.environments("test", agent.model.spec, 1, Generator().manual_seed(0))
    assert len(agent.adapt(tasks).returns_) == 4
    assert agent.act(np.zeros(4)) in (0, 1)


def test_an_agent_trained_in_gymnasium_acts_in_gymnasium(cartpole: tuple[Agent, Any]) -> None:
    agent, env = cartpole
    assert (agent.adapt(env).returns_ >= 1).all(), "the environment's own limit of steps is known"
    seen, _ = env.reset(seed=0)
    assert env.action_space.contains(agent.act(seen))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda agent, env: agent.act(np.zeros(4)), r"the agent knows no environment yet; call adapt\(env\) before"),
        (lambda agent, env: agent.notice(1.0, False), r"the agent knows no environment yet"),
        (lambda agent, env: agent.adapt(env).notice(1.0, False), r"there is no action to tell of yet; call act"),
        (lambda agent, env: agent.adapt(env).act(np.zeros(3)), "the observation array.* is none of the environment's"),
        (lambda agent, env: agent.adapt(3), "int has no method 'reset'; give an environment with Gymnasium's reset"),
        (lambda agent, env: agent.adapt(env.unwrapped), r"says no limit of an episode's steps; give max_steps"),
        (lambda agent, env: agent.adapt(env, max_steps=0), "max_steps is 0; give a whole number, 1 or more"),
        (lambda agent, env: agent.adapt(env, episodes=True), "episodes is True; give a whole number, 1 or more"),
        (lambda agent, env: agent.adapt(env, told=[1, 2]), r"told has shape \(2,\) and tasks are told apart by 1 numb"),
        (lambda agent, env: agent.adapt(Plane(torch.zeros(2, 2), 5)), "these are 2 environments; an agent adapts to o"),
    ],
)
def test_what_an_agent_cannot_do_is_said_in_a_sentence(call: Any, said: str, cartpole: tuple[Agent, Any]) -> None:
    agent, env = cartpole
    with pytest.raises(InputError, match=said) as refused:
        call(Agent(agent.model), env)
    assert "\n" not in str(refused.value)


def test_an_observation_of_another_shape_and_what_is_no_number_are_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    agent, _ = opened(studied(tmp_path_factory, {"learners": ["oracle"]}))
    with pytest.raises(InputError, match="this model is told which task it is in; give told, 2 numbers"):
        agent.adapt(Robot(), max_steps=10)
    agent.adapt(Robot(), max_steps=10, told=[0.3, -0.2])
    with pytest.raises(InputError, match=r"the observation has shape \(3,\) and the model sees \(2,\)"):
        agent.act([0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="the observation 'left' is not numbers"):
        agent.act("left")
