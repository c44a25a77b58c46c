"""Environments: tasks that a learner acts in, many side by side, instead of sets of examples."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from metaopt.errors import InputError


class Environments:
    """Tasks of one size that are environments. Each is run in many episodes at once, all stepped together in torch.

    A plugin gives `start`, `observe` and `step`. An episode's state is a tensor of the plugin's own making; nothing is
    kept between calls, and nothing is written to. Randomness comes from the generator passed in, or where that is None
    from torch's own.
    """

    told: Tensor
    """What tells the tasks apart, (n_tasks, n_told): an oracle is told it, other learners find out."""
    horizon: int
    """Steps after which an episode ends."""
    at_once: int | None = None
    """Episodes of a task that can go on side by side, as of the one robot that there is; None for any number."""

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.told)

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        """Begin so many episodes of each task; return their states, (n_tasks, n_episodes, n_state)."""
        raise NotImplementedError(f"{type(self).__name__} does not define `start`")

    def observe(self, state: Tensor) -> Tensor:
        """Return what is seen of states, (n_tasks, n_episodes, *x_shape)."""
        raise NotImplementedError(f"{type(self).__name__} does not define `observe`")

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Act once in every episode.

        Args:
            state: (n_tasks, n_episodes, n_state)
            action: (n_tasks, n_episodes) int64, or (n_tasks, n_episodes, y_size) numbers of any size
            draw: where chance comes from

        Returns:
            The states after it, the rewards (n_tasks, n_episodes), and whether episodes have ended, bool
            (n_tasks, n_episodes). All end after `horizon` steps, without being told so here; what is earned in an
            episode after its end does not count.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `step`")

    def to(self, device: torch.device) -> "Environments":
        """Return these environments on a device."""
        raise NotImplementedError(f"{type(self).__name__} does not define `to`")


class Outside(Environments):
    """One task that is an environment of a user's, with Gymnasium's methods `reset` and `step`: see `metaopt.agent`.

    It remembers itself where it is, so its episodes go on one at a time, and once. A state is what is seen. Samplers
    whose environments show or take something else than bare numbers name a class of their own: see `TaskSampler`.
    """

    at_once = 1

    def __init__(self, env: Any, x_shape: tuple[int, ...], n_actions: int, told: Tensor, horizon: int) -> None:
        """`told` is (1, n_told). Of actions that are choices there are `n_actions`; 0 where they are numbers."""
        self.env, self.x_shape, self.n_actions = env, x_shape, n_actions
        self.told, self.horizon = told, horizon

    def see(self, observation: Any) -> Tensor:
        """Return an observation as the learner takes it, (*x_shape). Raises InputError where it has another shape."""
        try:
            seen = torch.as_tensor(np.asarray(observation, dtype=np.float32))
        except (TypeError, ValueError):
            raise InputError(f"the observation {observation!r} is not numbers; give an array {self.x_shape}") from None
        if seen.shape != self.x_shape:
            raise InputError(f"the observation has shape {tuple(seen.shape)} and the model sees {self.x_shape}")
        return seen.to(self.told.device)

    def do(self, action: Tensor) -> Any:
        """Return an action of the learner's, () or (y_size,), as the environment takes it."""
        return int(action) if self.n_actions else action.cpu().numpy()

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        seed = int(torch.randint(2**31, (), generator=draw))
        observation, _ = self.env.reset(seed=seed)
        self.over = False
        return self.see(observation).flatten()[None, None]

    def observe(self, state: Tensor) -> Tensor:
        return state.view(1, 1, *self.x_shape)

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        reward = 0.0
        if not self.over:
            observation, reward, terminated, truncated, _ = self.env.step(self.do(action[0, 0]))
            state, self.over = self.see(observation).flatten()[None, None], bool(terminated or truncated)
        return state, state.new_full((1, 1), float(reward)), torch.tensor([[self.over]], device=state.device)

    def to(self, device: torch.device) -> "Outside":
        return type(self)(self.env, self.x_shape, self.n_actions, self.told.to(device), self.horizon)


@dataclass(frozen=True)
class Episodes:
    """What was experienced in tasks, in `n` episodes of each."""

    seen: Tensor  # (n_tasks, n, horizon, *x_shape)
    actions: Tensor  # (n_tasks, n, horizon) int64, or (n_tasks, n, horizon, y_size)
    rewards: Tensor  # (n_tasks, n, horizon), 0 after an episode's end
    counts: Tensor  # (n_tasks, n, horizon) bool: not after an episode's end

    @property
    def returns(self) -> Tensor:
        """What each episode brought, (n_tasks, n)."""
        return self.rewards.sum(-1)


class Actor(Protocol):
    """What acts: see `metaopt.learner.Learner.act` and `notice`."""

    def act(self, memory: Any, seen: Tensor, draw: Generator | None) -> tuple[Tensor, Any]: ...
    def notice(self, memory: Any, action: Tensor, reward: Tensor, ended: Tensor) -> Any: ...


@torch.no_grad()
def lived(
    actor: Actor, memory: Any, environments: Environments, n_episodes: int, draw: Generator | None, *, in_turn: bool
) -> tuple[Episodes, Any]:
    """Let `actor` live through so many episodes of each task; return them, and its memory after them.

    They go on side by side, as far as the environments can, or with `in_turn` one after the other. After its end an
    episode is waited out, with rewards of 0, until the others have ended.
    """
    at_once = 1 if in_turn else min(n_episodes, environments.at_once or n_episodes)
    parts: list[Episodes] = []
    for first in range(0, n_episodes, at_once):
        state = environments.start(min(at_once, n_episodes - first), draw)
        ended = torch.zeros(state.shape[:2], dtype=torch.bool, device=state.device)
        steps: list[tuple[Tensor, ...]] = []
        for step in range(environments.horizon):
            seen = environments.observe(state)
            action, memory = actor.act(memory, seen, draw)
            state, reward, ends = environments.step(state, action, draw)
            reward, now = reward.masked_fill(ended, 0.0), ended | ends
            steps.append((seen, action, reward, ~ended))
            ended = now if step + 1 < environments.horizon else torch.ones_like(now)
            memory = actor.notice(memory, action, reward, ended)
        parts.append(Episodes(*(torch.stack(one, 2) for one in zip(*steps, strict=True))))
    if len(parts) == 1:
        return parts[0], memory
    whole = zip(*((part.seen, part.actions, part.rewards, part.counts) for part in parts), strict=True)
    return Episodes(*(torch.cat(one, 1) for one in whole)), memory
