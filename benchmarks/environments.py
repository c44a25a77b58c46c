"""How fast environments step, beside Gymnasium's own vector environments of the same dynamics in one run.

    make bench-environments
    python benchmarks/environments.py [--rounds 5] [--seconds 1] [--json FILE]

`cart-pole` is the family `slope` on level rails without friction, against CartPole-v1; `navigation` is its `Plane`,
against the same written for Gymnasium as a user would. Before a clock runs, both go through the same states by the same
actions; where they differ, the run ends. Then contenders take turns on one thread, by actions drawn beforehand: no
policy runs. Numbers are environment steps a second by the wall clock, medians over the rounds.

Gymnasium starts an ended episode again in the step after its end, while metaopt's go on side by side to the horizon,
when all start again, and what comes after an end does not count. `in episodes` is the ratio of the steps that do count:
under these random actions they are few of cart-pole's. Starting again, looking, and keeping track of ends are in the
time. AsyncVectorEnv has a process for each environment, so it is measured with 16 alone, on whatever cores there are.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Generator, Tensor

from metaopt.environment import Environments
from metaopt_control.navigation import Plane
from metaopt_control.slope import FALLEN, FAR, Carts

SIZES = (16, 64, 1024, 4096)  # environments side by side
N_TASKS = 64  # at most, in as many episodes each as make up the size
AT_MOST = {"AsyncVectorEnv": 16}  # which starts a process for each environment
TOLERANCE = 1e-5  # of a step in float32 beside CartPole's in float64

Vector: TypeAlias = VectorEnv[Any, Any, Any]
Step = Callable[[], Tensor | NDArray[np.bool_]]
"""Steps all environments once; returns which of the steps were in episodes."""


@dataclass(frozen=True)
class Case:
    environments: Callable[[int], Environments]
    """Of so many tasks."""
    peers: Mapping[str, Callable[[Environments, int], Vector]]
    """Gymnasium's, of those tasks in so many episodes each."""
    random: Callable[[Generator, int, int], Tensor]
    """Actions in so many tasks and episodes, (n_tasks, n_episodes, y_size)."""
    wise: Callable[[Environments, Tensor], Tensor]
    """Actions that lead to long episodes, or to the goal, where the check has to come, too."""
    translate: Callable[[Tensor], NDArray[Any]]
    """From metaopt's actions to Gymnasium's, (n, …)."""
    margin: Callable[[Environments, Tensor], Tensor]
    """How far states are from where it is decided whether an episode ends, (n_tasks, n_episodes)."""

    same_pay: bool
    """Whether rewards are the same."""

    def shape(self, n: int) -> tuple[int, int]:
        n_tasks = min(n, N_TASKS)
        return n_tasks, n // n_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for which a contender steps in a round")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, case in CASES.items():
        for peer in case.peers:
            if found := difference(case, peer, AT_MOST.get(peer, 64)):
                sys.exit(f"{name}: metaopt and {peer} are not the same: {found}")
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread")
    print(f"torch {torch.__version__}, gymnasium {gymnasium.__version__}\n")
    print(f"{'':<11} {'n':>5} {'metaopt':>12}  {'beside':<24} {'':>10} {'ratio':>7} {'in episodes':>12}")
    rows = []
    for name, case in CASES.items():
        for n in SIZES:
            for row in compared(measure(case, n, options.rounds, options.seconds)):
                rows.append({"case": name, "n": n} | row)
                print(
                    f"{name:<11} {n:>5} {row['metaopt']:>12,.0f}  {row['peer']:<24} {row['theirs']:>10,.0f} "
                    f"{row['ratio']:>7.2f} {row['ratio_in_episodes']:>12.2f}",
                    flush=True,
                )
    if options.json:
        found_on = {"date": str(datetime.date.today()), "cores": os.cpu_count(), "threads": 1}
        versions = {"torch": torch.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__}
        how = {"rounds": options.rounds, "seconds": options.seconds}
        text = json.dumps(found_on | versions | how | {"rows": rows}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


# are they the same?


@torch.no_grad()
def difference(case: Case, peer: str, n: int) -> str | None:
    """Say how Gymnasium's environments go another way than metaopt's by the same actions, or None.

    Step by step from where Gymnasium's are: a falling pole soon makes much of what float32 rounds off. Within rounding
    of the edge either may end first.
    """
    n_tasks, n_episodes = case.shape(n)
    environments, draw = case.environments(n_tasks), Generator().manual_seed(0)

    def by_episode(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).view(n_tasks, n_episodes, *values.shape[1:])

    with closing(case.peers[peer](environments, n_episodes)) as envs:
        seen = by_episode(envs.reset(seed=0)[0])  # in both families, all of an episode's state
        age, over, n_ended = torch.zeros(n_tasks, n_episodes), torch.zeros(n_tasks, n_episodes, dtype=torch.bool), 0
        for at in range(3 * environments.horizon):
            action = case.random(draw, n_tasks, n_episodes)
            action[::2] = case.wise(environments, seen)[::2]
            state, reward, ends = environments.step(seen, action, None)
            *found, _ = envs.step(case.translate(action))
            seen, paid, terminated, truncated = map(by_episode, found)
            age = torch.where(over, 0, age + 1)
            off = (environments.observe(state) - seen).abs().amax(-1)
            if case.same_pay:
                off = off.maximum((reward - paid).abs())
            unlike = (ends != terminated) & (case.margin(environments, state) > TOLERANCE)
            unlike |= truncated != (age == environments.horizon)
            if (off[~over] > TOLERANCE).any():  # where it was over, Gymnasium has started again
                return f"what is seen or earned is {off[~over].max():.2g} off in step {at + 1}"
            if unlike[~over].any():
                return f"an episode ends in one of them only, in step {at + 1}"
            over = terminated | truncated
            n_ended += int(terminated.sum())
    return None if n_ended else "no episode ended, so ends could not be compared"


# measuring


@torch.no_grad()
def measure(case: Case, n: int, rounds: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Return, by contender and round, steps a second, and the share of them in episodes."""
    n_tasks, n_episodes = case.shape(n)
    environments, draw = case.environments(n_tasks), Generator().manual_seed(0)
    actions = [case.random(draw, n_tasks, n_episodes) for _ in range(environments.horizon)]
    steps: dict[str, Step] = {"metaopt": ours(environments, n_episodes, actions)}
    with ExitStack() as stack:
        for name, peer in case.peers.items():
            if n <= AT_MOST.get(name, n):
                envs = stack.enter_context(closing(peer(environments, n_episodes)))
                steps[name] = theirs(envs, [case.translate(action) for action in actions])
        for step in steps.values():
            rate(step, n, seconds)  # warms up, and has episodes end at different times
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                found[name].append(rate(step, n, seconds))
    return found


def compared(found: Mapping[str, list[tuple[float, float]]]) -> Iterator[dict[str, Any]]:
    """Yield metaopt beside each peer."""
    medians = {name: median(rate for rate, _ in rounds) for name, rounds in found.items()}
    shares = {name: mean(share for _, share in rounds) for name, rounds in found.items()}
    mine, my_share = medians.pop("metaopt"), shares["metaopt"]
    for peer, other in medians.items():
        yield {
            "peer": peer,
            "metaopt": mine,
            "theirs": other,
            "ratio": mine / other,
            "ratio_in_episodes": mine * my_share / (other * shares[peer]),
            "in_episodes": {"metaopt": my_share, "theirs": shares[peer]},
            "rounds": {"metaopt": [rate for rate, _ in found["metaopt"]], "theirs": [rate for rate, _ in found[peer]]},
        }


def rate(step: Step, n: int, seconds: float) -> tuple[float, float]:
    """Return steps a second, and the share of them in episodes."""
    counts = []
    started = now = time.perf_counter()
    while now - started < seconds:
        counts.append(step())
        now = time.perf_counter()
    n_steps = n * len(counts)
    return n_steps / (now - started), sum(int(one.sum()) for one in counts) / n_steps


def ours(environments: Environments, n_episodes: int, actions: list[Tensor]) -> Step:
    """As `metaopt.environment.lived` steps them."""
    draw, at = Generator().manual_seed(0), 0
    state = ended = torch.empty(0)

    def step() -> Tensor:
        nonlocal state, ended, at
        if at == 0:
            state = environments.start(n_episodes, draw)
            ended = torch.zeros(state.shape[:2], dtype=torch.bool)
        counts = ~ended
        environments.observe(state)
        state, reward, ends = environments.step(state, actions[at], draw)
        reward.masked_fill(ended, 0.0)
        ended, at = ended | ends, (at + 1) % environments.horizon
        return counts

    return step


def theirs(envs: Vector, actions: list[NDArray[Any]]) -> Step:
    envs.reset(seed=0)
    over, at = np.zeros(envs.num_envs, np.bool_), 0

    def step() -> NDArray[np.bool_]:
        nonlocal over, at
        counts = ~over  # a step after an end starts again, and is in no episode
        _, _, terminated, truncated, _ = envs.step(actions[at])
        over, at = terminated | truncated, (at + 1) % len(actions)
        return counts

    return step


# cart-pole


def level(n_tasks: int) -> Carts:
    return Carts(torch.tensor([[0.0, 1.0, 0.0]]).repeat(n_tasks, 1), horizon=200)


def cart_pole(mode: str, environments: Environments, n_episodes: int) -> Vector:
    limit: dict[str, Any] = {"max_episode_steps": environments.horizon}
    if mode != "vector_entry_point":
        limit["disable_env_checker"] = True  # which would take time
    return gymnasium.make_vec("CartPole-v1", len(environments) * n_episodes, mode, **limit)


def push_either_way(draw: Generator, n_tasks: int, n_episodes: int) -> Tensor:
    return 2.0 * torch.randint(2, (n_tasks, n_episodes, 1), generator=draw) - 1


def push_under_the_pole(environments: Environments, state: Tensor) -> Tensor:
    return 2.0 * (state[..., 2:3] + 0.5 * state[..., 3:4] > 0) - 1


def from_the_rails_end(environments: Environments, state: Tensor) -> Tensor:
    return (state[..., [0, 2]].abs() - torch.tensor([FAR, FALLEN])).abs().amin(-1)


# navigation


class Navigator(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):  # type: ignore[misc] # skipped in pyproject.toml
    """`Plane` for Gymnasium."""

    def __init__(self, goal: NDArray[np.float32]) -> None:
        self.goal = goal
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.place = np.zeros(2, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.place = np.zeros(2, np.float32)
        return self.place, {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.place = self.place + np.clip(action, -0.1, 0.1)
        far = float(np.linalg.norm(self.place - self.goal))
        return self.place, -far, far < 0.01, False, {}


def limited(goal: NDArray[np.float32], horizon: int) -> gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]:
    return gymnasium.wrappers.TimeLimit(Navigator(goal), horizon)


def plane(n_tasks: int) -> Plane:
    return Plane(torch.rand(n_tasks, 2, generator=Generator().manual_seed(1)) - 0.5, horizon=100)


def navigators(kind: Callable[..., Vector], environments: Environments, n_episodes: int) -> Vector:
    goals = environments.told.repeat_interleave(n_episodes, 0).numpy()
    return kind([partial(limited, goal, environments.horizon) for goal in goals])


def go_anywhere(draw: Generator, n_tasks: int, n_episodes: int) -> Tensor:
    return 0.1 * torch.randn(n_tasks, n_episodes, 2, generator=draw)


def go_to_the_goal(environments: Environments, state: Tensor) -> Tensor:
    return environments.told[:, None] - state


def from_the_goals_edge(environments: Environments, state: Tensor) -> Tensor:
    far = (state - environments.told[:, None]).square().sum(-1).sqrt()
    return (far - 0.01).abs()


CASES = {
    "cart-pole": Case(
        level,
        {
            "SyncVectorEnv": partial(cart_pole, "sync"),
            "AsyncVectorEnv": partial(cart_pole, "async"),
            "its vectorised CartPole": partial(cart_pole, "vector_entry_point"),
        },
        push_either_way,
        push_under_the_pole,
        lambda action: action.gt(0).long().flatten().numpy(),
        from_the_rails_end,
        same_pay=False,  # by the place on the rail, and 1 a step
    ),
    "navigation": Case(
        plane,
        {
            "SyncVectorEnv": partial(navigators, SyncVectorEnv),
            "AsyncVectorEnv": partial(navigators, AsyncVectorEnv),
        },
        go_anywhere,
        go_to_the_goal,
        lambda action: action.flatten(0, 1).numpy(),
        from_the_goals_edge,
        same_pay=True,
    ),
}


if __name__ == "__main__":
    main()
