"""Saved models that act: `adapt` learns a new environment by acting in it, and `act` acts there from then on.

agent = metaopt.load("runs/navigation").adapt(env)
observation, _ = env.reset()
action = agent.act(observation)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from metaopt import seeds
from metaopt.environment import Environments, Outside
from metaopt.errors import InputError, UserError
from metaopt.study.model import Model


class Agent:
    """A policy for new environments. These have Gymnasium's methods `reset` and `step`; it need not be installed."""

    returns_: NDArray[np.float64]
    """What each of the episodes brought that `adapt` lived through."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._adapted: tuple[Any, Generator] | None = None
        self._action: Tensor | None = None

    def __repr__(self) -> str:
        return f"Agent({self.model.name!r})"

    def adapt(
        self,
        env: Any,
        *,
        episodes: int | None = None,
        max_steps: int | None = None,
        told: Sequence[float] | None = None,
        seed: int = 0,
    ) -> Self:
        """Learn an environment by acting in it.

        Args:
            env: one with Gymnasium's methods `reset` and `step`, or `Environments` of one task
            episodes: to learn from; as many as the tasks of the study had where it is None
            max_steps: of an episode; the environment's own limit, `env.spec.max_episode_steps`, where it is None
            told: the numbers that tell tasks apart, for a learner that is told them, such as the oracle
            seed: of its chance, and of the environment's

        Raises InputError, a ValueError, where that does not fit the model.
        """
        spec, device = self.model.spec, self.model.device
        n_shot = spec.n_shot if episodes is None else _count("episodes", episodes)
        learner = self.model.learner.with_spec(replace(spec, n_shot=n_shot))
        here = _told(told, spec.n_told, needed=learner.is_told).to(device)
        sizes = spec.x_shape, spec.n_actions, here
        if isinstance(env, Environments):
            tasks, outside = env.to(device), Outside(None, *sizes, horizon=0)
            if len(tasks) != 1:
                raise InputError(f"these are {len(tasks)} environments; an agent adapts to one")
        else:
            tasks = outside = self.model.outside(env, *sizes, horizon=_steps(env, max_steps))
        draw = seeds.generator(seed, "agent")
        try:
            with torch.no_grad():  # adaptation turns gradients on for itself
                memory, returns = learner.adapt(tasks, draw)
        except UserError as error:
            raise InputError(str(error)) from None
        self._outside, self._adapted, self._action = outside, (memory, draw), None
        self.returns_ = returns[0].double().cpu().numpy()
        return self

    def act(self, observation: Any) -> Any:
        """Return what to do in the environment that it adapted to: a whole number, or an array (y_size,).

        A policy that learns while it acts, such as rl2, is to hear by `notice` what came of it.
        """
        memory, draw = self._state()
        seen = self._outside.see(observation)[None, None]
        with torch.no_grad():
            action, memory = self.model.learner.act(memory, seen, draw)
        self._adapted, self._action = (memory, draw), action
        return self._outside.do(action[0, 0])

    def notice(self, reward: float, ended: bool) -> None:
        """Tell what the last action brought, and whether the episode is over with it."""
        memory, draw = self._state()
        if self._action is None:
            raise InputError("there is no action to tell of yet; call act(observation) before")
        device = self.model.device
        paid, over = torch.tensor([[float(reward)]], device=device), torch.tensor([[bool(ended)]], device=device)
        with torch.no_grad():
            self._adapted = self.model.learner.notice(memory, self._action, paid, over), draw

    def _state(self) -> tuple[Any, Generator]:
        if self._adapted is None:
            raise InputError("the agent knows no environment yet; call adapt(env) before")
        return self._adapted


def _count(name: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
        raise InputError(f"{name} is {given!r}; give a whole number, 1 or more")
    return int(given)


def _steps(env: Any, max_steps: int | None) -> int:
    """Return how many steps an episode has at most."""
    if missing := [name for name in ("reset", "step") if not callable(getattr(env, name, None))]:
        raise InputError(
            f"{type(env).__name__} has no method {missing[0]!r}; give an environment with Gymnasium's reset and step"
        )
    limit = max_steps if max_steps is not None else getattr(getattr(env, "spec", None), "max_episode_steps", None)
    if limit is None:
        raise InputError("the environment says no limit of an episode's steps; give max_steps")
    return _count("max_steps", limit)


def _told(told: Sequence[float] | None, n_told: int, *, needed: bool) -> Tensor:
    """Return what tells the task apart, (1, n_told)."""
    if told is None:
        if needed:
            raise InputError(f"this model is told which task it is in; give told, {n_told} numbers")
        return torch.zeros(1, n_told)
    numbers = np.asarray(told, dtype=np.float32)
    if numbers.shape != (n_told,):
        raise InputError(f"told has shape {numbers.shape} and tasks are told apart by {n_told} numbers; give those")
    return torch.from_numpy(numbers)[None]
