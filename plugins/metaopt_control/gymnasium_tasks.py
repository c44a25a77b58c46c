"""Families of tasks made of environments of Gymnasium (Towers et al., 2024, arXiv:2407.17032)."""

import importlib.util
import math
import re
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from metaopt.environment import Environments, Outside
from metaopt.errors import InputError, UserError, unknown
from metaopt.task import POOLS, Pool, TaskSampler, TaskSpec

if TYPE_CHECKING:
    from gymnasium import Env, Space


class Worlds(Environments):
    """Environments of Gymnasium, which themselves remember where they are: an episode goes on once, call by call.

    A state is what is seen and the number of the call that gave it, and only the latest can be acted in. All chance is
    drawn when episodes start, as the seed of each. One that has ended stands still until the next start.
    """

    def __init__(self, family: "GymnasiumTasks", values: list[dict[str, float]], told: Tensor) -> None:
        self.family, self.values, self.told, self.horizon = family, values, told, family.horizon
        self.calls = 0
        self.made: list[list[Env[Any, Any]]] = [[] for _ in values]  # by task, kept from one start to the next
        weakref.finalize(self, _close, self.made)

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        for made, values in zip(self.made, self.values, strict=True):
            made.extend(self.family.make(values) for _ in range(n_episodes - len(made)))
        self.running = [env for made in self.made for env in made[:n_episodes]]  # n_tasks * n_episodes
        seeds = torch.randint(2**31, (len(self.running),), generator=draw).tolist()
        self.seen = [self._seen(env.reset(seed=seed)[0]) for env, seed in zip(self.running, seeds, strict=True)]
        self.spaces: list[Any] = [env.action_space for env in self.running]
        self.ended = np.zeros(len(self.running), bool)
        return self._state()

    def observe(self, state: Tensor) -> Tensor:
        return state[..., :-1].reshape(*state.shape[:2], *self.family.x_shape)

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        if not state[..., -1].eq(self.calls).all():
            raise RuntimeError(
                "an environment of Gymnasium cannot go back to an earlier state; act in the one returned last"
            )
        rewards = np.zeros(len(self.running))
        for place, given in enumerate(self._given(action)):
            if not self.ended[place]:
                seen, reward, terminated, truncated, _ = self.running[place].step(given)
                self.seen[place], rewards[place] = self._seen(seen), float(reward)
                self.ended[place] = terminated or truncated
        of_episodes = state.shape[:2]
        paid = torch.from_numpy(rewards).to(self.told).view(of_episodes)
        return self._state(), paid, torch.tensor(self.ended, device=self.told.device).view(of_episodes)

    def to(self, device: torch.device) -> "Worlds":
        return Worlds(self.family, self.values, self.told.to(device))

    def _state(self) -> Tensor:
        self.calls += 1
        seen = torch.from_numpy(np.stack(self.seen)).to(self.told)  # (n_tasks * n_episodes, n_seen)
        state = torch.cat([seen, torch.full_like(seen[:, :1], self.calls)], 1)
        return state.view(len(self), -1, state.shape[1])

    def _seen(self, observation: Any) -> Any:
        return seen_in(self.family.space, observation)

    def _given(self, action: Tensor) -> Any:
        return done_in(self.spaces, action.flatten(0, 1))


class World(Outside):
    """One environment of Gymnasium, seen and acted in as those of the tasks were."""

    def see(self, observation: Any) -> Tensor:
        """Return an observation as the learner takes it, (*x_shape)."""
        space = self.env.observation_space
        if not space.contains(observation):
            raise InputError(
                f"the observation {observation!r} is none of the environment's, {space}; give one of those"
            )
        return super().see(seen_in(space, observation).reshape(self.x_shape))

    def do(self, action: Tensor) -> Any:
        """Return an action of the learner's as the environment takes it."""
        return done_in([self.env.action_space], action[None])[0]


def seen_in(space: "Space[Any]", observation: Any) -> Any:
    """Return an observation as numbers in a row, of a Discrete one-hot."""
    from gymnasium.spaces import flatten

    return flatten(space, observation)


def done_in(spaces: Sequence[Any], action: Tensor) -> Any:
    """Return actions (n, …) as environments of these spaces take them."""
    chosen = action.detach().cpu().numpy()
    if not hasattr(spaces[0], "low"):
        return chosen + np.array([space.start for space in spaces])
    low, high = (np.stack([getattr(space, end) for space in spaces]) for end in ("low", "high"))
    finite = np.isfinite(low) & np.isfinite(high)
    least, most = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
    return np.clip((least + most) / 2 + (most - least) / 2 * chosen, low, high).astype(low.dtype)


class GymnasiumTasks(TaskSampler):
    """Act in any environment of Gymnasium, whose parameters tell the tasks apart: each uniform in a range of the pool.

    A parameter is an argument of the environment, or else an attribute that holds a number and is set once before the
    first episode, as it is: what the environment made of the old one before stays, as CartPole's `total_mass` does
    where its `masspole` is set. Pools with ranges apart show whether what was learned extrapolates.

    What is seen is the numbers of a Box, or a Discrete one-hot. Actions are those of a Discrete, or the numbers of a
    Box, from −1 for its lower bound to 1 for its upper one and cut off there; unbounded ones are taken as they are. An
    oracle is told the parameters, scaled to mean 0 and standard deviation 1 in the train range.
    """

    name = "gymnasium"
    kind = "control"
    outside = World

    @dataclass(frozen=True)
    class Config:
        env: str = ""
        """An id such as Pendulum-v1, or module:Id-v0 to import a module before, as gymnasium.make takes it."""
        parameters: Mapping[str, Any] | None = None
        """By name [low, high], or such a range for each pool: {train: [8, 11], validation: …, test: …}."""
        settings: Mapping[str, Any] | None = None
        """Further arguments of the environment, the same in all tasks."""
        horizon: int | None = None
        """Steps after which an episode ends; None for the environment's own limit."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where Gymnasium or the environment is missing, or does not fit."""
        super().__init__(config)
        if importlib.util.find_spec("gymnasium") is None:
            raise UserError("tasks.sampler: gymnasium is not installed; pip install 'metaopt-fewshot[gym]' brings it")
        if not config.env:
            raise UserError("tasks.env is empty; set it to an id such as Pendulum-v1, or module:Id-v0")
        if config.horizon is not None and (type(config.horizon) is not int or config.horizon < 1):
            raise UserError(f"tasks.horizon is {config.horizon!r}; an episode has 1 step or more, a whole number")
        self.ranges = _ranges(config)
        if any(of["test"] != of["train"] for of in self.ranges.values()):
            self.pools_are = "parameters have other ranges in the test pool than in training"
        ends = [{name: of[pool][end] for name, of in self.ranges.items()} for pool in POOLS for end in (0, 1)]
        values, envs = ends[0], []
        try:
            self.attributes = self._attributes(values)
            for values in ends:  # of which an environment may refuse one
                envs.append(self.make(values))
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises, or the module that it is in
            shown = ", ".join(f"{name} = {value:g}" for name, value in values.items())
            raise UserError(
                f"tasks.env: gymnasium cannot make {config.env!r} with {shown} ({_said(error)}); mend the id, "
                "tasks.parameters or tasks.settings, or install what it needs"
            ) from None
        self.space: Space[Any] = envs[0].observation_space
        self.x_shape, self.n_actions, self.y_size = sizes = _sizes(config.env, envs[0])
        if any(_sizes(config.env, env) != sizes for env in envs):
            raise UserError(
                f"tasks.parameters: they change the sizes of what is seen or done in {config.env}, and all tasks are "
                "of one size; leave out what changes them"
            )
        if not (envs[0].spec and envs[0].spec.max_episode_steps):
            raise UserError(f"tasks.horizon: {config.env} has no limit of its own; set it to a number of steps")
        self.horizon = envs[0].spec.max_episode_steps
        _close([envs])

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        return TaskSpec(
            self.kind,
            self.x_shape,
            n_way=1,
            n_shot=n_shot,
            n_query=n_query,
            y_size=self.y_size,
            n_actions=self.n_actions,
            n_told=len(self.ranges),
        )

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Worlds:
        low, high = torch.tensor([of[pool] for of in self.ranges.values()], dtype=torch.float64).T
        least, most = torch.tensor([of["train"] for of in self.ranges.values()], dtype=torch.float64).T
        drawn = low + (high - low) * torch.rand(n_tasks, len(low), generator=generator, dtype=torch.float64)
        told = (drawn - (least + most) / 2) / ((most - least) / math.sqrt(12))  # (n_tasks, n_parameters)
        values = [dict(zip(self.ranges, task, strict=True)) for task in drawn.tolist()]
        return Worlds(self, values, told.float())

    def make(self, values: Mapping[str, float]) -> "Env[Any, Any]":
        """Return an environment with these values of the parameters."""
        env = self._plain({name: value for name, value in values.items() if name not in self.attributes})
        for name in self.attributes:
            setattr(env.unwrapped, name, values[name])
        return env

    def _plain(self, arguments: Mapping[str, float]) -> "Env[Any, Any]":
        import gymnasium

        ours = {"max_episode_steps": self.config.horizon, "disable_env_checker": True}
        with warnings.catch_warnings(action="ignore"):  # such as of a version that is out of date, for each task
            return gymnasium.make(self.config.env, **{**ours, **(self.config.settings or {}), **arguments})

    def _attributes(self, values: Mapping[str, float]) -> list[str]:
        """Return which parameters are no arguments of the environment, but attributes that hold numbers."""
        arguments, env = dict(values), None
        while env is None:
            try:
                env = self._plain(arguments)
            except TypeError as error:
                refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if not refused or refused[1] not in arguments:
                    raise
                del arguments[refused[1]]
        attributes = [name for name in values if name not in arguments]
        for name in attributes:
            if not _is_number(getattr(env.unwrapped, name, None)):
                own = signature(type(env.unwrapped)).parameters.values()
                numbers = vars(env.unwrapped) | {argument.name: argument.default for argument in own}
                known = [other for other, value in numbers.items() if _is_number(value)]
                raise UserError(f"tasks.parameters: {unknown(f'number in {self.config.env}', name, known)}")
        return attributes


def _ranges(config: GymnasiumTasks.Config) -> dict[str, dict[Pool, tuple[float, float]]]:
    """Return the range of each parameter in each pool."""
    parameters, settings = config.parameters, config.settings or {}
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserError(f"tasks.parameters is {parameters!r}; name what tells the tasks apart, such as {{g: [8, 12]}}")
    if not isinstance(settings, Mapping):
        raise UserError(f"tasks.settings is {settings!r}; it must be a mapping of arguments to values")
    if twice := sorted(parameters.keys() & settings.keys()):
        raise UserError(f"tasks.settings.{twice[0]}: each task has one of its own by tasks.parameters; leave out one")
    found: dict[str, dict[Pool, tuple[float, float]]] = {}
    for name, given in parameters.items():
        key = f"tasks.parameters.{name}"
        if not isinstance(given, Mapping):
            found[name] = dict.fromkeys(POOLS, _range(key, given))
        elif given.keys() == set(POOLS):
            found[name] = {pool: _range(f"{key}.{pool}", given[pool]) for pool in POOLS}
        else:
            raise UserError(f"{key} has ranges for {', '.join(given)}; give one each to {', '.join(POOLS)}")
    return found


def _range(key: str, given: Any) -> tuple[float, float]:
    if isinstance(given, list | tuple) and len(given) == 2 and all(map(_is_number, given)):
        low, high = given
        if -1e18 < low < high < 1e18:
            return float(low), float(high)
    raise UserError(f"{key} is {given!r}; a range is two numbers, the lower one first, such as [8, 12]")


def _sizes(name: str, env: "Env[Any, Any]") -> tuple[tuple[int, ...], int, int]:
    """Return the shape of what is seen, the number of actions or 0, and the size of an action of numbers."""
    from gymnasium.spaces import Box, Discrete

    seen, done = env.observation_space, env.action_space
    if not isinstance(seen, Box | Discrete):
        raise UserError(f"tasks.env: what is seen in {name} is a {seen}; take one in which it is a Box or Discrete")
    x_shape = (int(seen.n),) if isinstance(seen, Discrete) else seen.shape or (1,)
    if isinstance(done, Discrete):
        return x_shape, int(done.n), 1
    if not isinstance(done, Box) or len(done.shape) != 1 or not np.issubdtype(done.dtype, np.floating):
        raise UserError(
            f"tasks.env: what is done in {name} is a {done}; take one in which it is Discrete, or a Box of real "
            "numbers in a row"
        )
    return x_shape, 0, done.shape[0]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _said(error: Exception) -> str:
    """Return what an error says, in one line without its full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _close(envs: "list[list[Env[Any, Any]]]") -> None:
    for env in (env for of_task in envs for env in of_task):
        env.close()
