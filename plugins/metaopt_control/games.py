"""Small games on a board whose layout and rules are found out by playing (akin to Nikulin et al., arXiv:2312.12044)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from metaopt.environment import Environments
from metaopt.errors import UserError
from metaopt.task import POOLS, Pool, TaskSampler, TaskSpec

MOVES = 4
"""Up, down, left and right."""


class Boards(Environments):
    """Boards that one walks over, seeing only where one stands and whether one holds the key.

    A state is the number of a cell, row by row, and 1 with the key or 0 without.
    """

    def __init__(self, config: "Games.Config", *drawn: Tensor) -> None:
        """Make boards of walls (n_tasks, n_cells) bool, and what follows, and the move of each button (n_tasks, 4).

        In between the cells (n_tasks,) of the start, the goal and the key, and whether the key is needed, bool.
        """
        walls, self.begin, self.goal, self.key, self.needed, buttons = self.drawn = drawn
        self.config, self.horizon = config, config.horizon
        cells = walls.shape[1]
        told = [one_hot(self.goal, cells), one_hot(self.key, cells), self.needed[:, None], walls]
        told += [one_hot(buttons, MOVES).flatten(1)] if config.shuffled else []
        self.told = torch.cat([part.float() for part in told], 1)  # (n_tasks, n_told)
        ahead = beside(config.size).to(walls.device)[:, buttons].movedim(1, 0)  # (n_tasks, n_cells, 4)
        blocked = walls[torch.arange(len(walls), device=walls.device)[:, None, None], ahead]
        self.leads = torch.where(blocked, torch.arange(cells, device=walls.device)[:, None], ahead)

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        state = torch.stack([self.begin, torch.zeros_like(self.begin)], 1).to(self.told.dtype)  # (n_tasks, 2)
        return state[:, None].repeat(1, n_episodes, 1)

    def observe(self, state: Tensor) -> Tensor:
        cell = one_hot(state[..., 0].long(), self.leads.shape[1]).to(state.dtype)
        return torch.cat([cell, state[..., 1:]], -1)  # (n_tasks, n_episodes, n_cells + 1)

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        task = torch.arange(len(self), device=state.device)[:, None]
        cell = self.leads[task, state[..., 0].long(), action]  # (n_tasks, n_episodes)
        holds = (state[..., 1] > 0) | (cell == self.key[:, None])
        won = (cell == self.goal[:, None]) & (holds | ~self.needed[:, None])
        return torch.stack([cell, holds], -1).to(state.dtype), won.to(state.dtype) - self.config.step_cost, won

    def to(self, device: torch.device) -> "Boards":
        return Boards(self.config, *(part.to(device) for part in self.drawn))


class Games(TaskSampler):
    """Walk to a goal that is not seen, past walls that are not seen, as fast as can be: other ones in each game.

    The goal pays 1 and ends the episode, each step costs a little. In some games the goal pays only those who found the
    key on another cell; in the others that key is good for nothing. With `shuffled` the buttons, too, do other moves in
    each game. All of that is told to an oracle: goal, key, whether it is needed, walls, and where shuffled the buttons.

    Goals are uniform. Cells that cannot reach the goal in a third of the horizon are walls, so every game can be won in
    time: from the start to the goal, on to the key and back, at worst. Where fewer than five cells are left, those
    within two steps of the goal are cleared.

    The pools are disjoint: of each layout of walls and goal, the cells to start from are dealt out in an order that a
    hash of the layout gives, two for train, one for validation, one for test, and so on. Layout and start of one pool
    thus never are those of another, whatever the key, the buttons and the other settings. On boards with few walls,
    walls and goal without the start are met again in another pool.
    """

    name = "games"
    kind = "control"
    pools_are = "no game of one pool, by its walls, goal and start, is in another"

    @dataclass(frozen=True)
    class Config:
        size: int = 5
        """Cells a side."""
        walls: float = 0.15
        """The chance of a cell to be a wall; cells that the walls cut off become walls as well."""
        keys: float = 0.5
        """The share of games in which the goal pays only with the key."""
        shuffled: bool = False
        """Whether which button does which move is drawn anew each game."""
        step_cost: float = 0.02
        horizon: int = 24
        """Steps of an episode; six a cell of a side let games fill the board, fewer keep them near the goal."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises UserError where a setting makes no game."""
        if not 3 <= config.size <= 15:
            raise UserError(f"tasks.size is {config.size}; a board has 3 to 15 cells a side")
        if not 0 <= config.walls <= 0.4:
            raise UserError(f"tasks.walls is {config.walls}; the share of walls is 0 to 0.4")
        if not 0 <= config.keys <= 1:
            raise UserError(f"tasks.keys is {config.keys}; the share of games that need the key is 0 to 1")
        if not 0 <= config.step_cost <= 1:
            raise UserError(f"tasks.step_cost is {config.step_cost}; a step costs 0 to 1")
        if not 6 <= config.horizon <= 10_000:
            raise UserError(f"tasks.horizon is {config.horizon}; an episode has 6 to 10000 steps")
        super().__init__(config)

    def spec(self, n_way: int, n_shot: int, n_query: int) -> TaskSpec:
        cells = self.config.size**2
        told = 3 * cells + 1 + (MOVES**2 if self.config.shuffled else 0)
        return TaskSpec(self.kind, (cells + 1,), 1, n_shot, n_query, n_actions=MOVES, n_told=told)

    def environments(self, pool: Pool, spec: TaskSpec, n_tasks: int, generator: Generator) -> Boards:
        cells = self.config.size**2
        goal = torch.randint(cells, (n_tasks,), generator=generator)
        free = torch.rand(n_tasks, cells, generator=generator) >= self.config.walls
        ground, at_goal = self._ground(free, goal), one_hot(goal, cells).bool()  # (n_tasks, n_cells)
        starts = ground & ~at_goal & (owner(ground, goal) == POOLS.index(pool))
        start = starts.float().multinomial(1, generator=generator)  # (n_tasks, 1)
        key = (ground & ~at_goal).float().scatter(1, start, 0.0).multinomial(1, generator=generator)
        needed = torch.rand(n_tasks, generator=generator) < self.config.keys
        buttons = torch.arange(MOVES).repeat(n_tasks, 1)  # (n_tasks, 4)
        if self.config.shuffled:
            buttons = torch.rand(n_tasks, MOVES, generator=generator).argsort(1)
        return Boards(self.config, ~ground, start[:, 0], goal, key[:, 0], needed, buttons)

    def _ground(self, free: Tensor, goal: Tensor) -> Tensor:
        """Return the cells (n_tasks, n_cells), bool, that are no walls: five or more, all near enough to the goal."""
        near = beside(self.config.size)
        at_goal = one_hot(goal, free.shape[1]).bool()
        ground = at_goal
        for _ in range(self.config.horizon // 3):
            before, ground = ground, ground | (ground[:, near].any(-1) & free)
            if torch.equal(before, ground):
                break
        around = at_goal | at_goal[:, near].any(-1)
        around = around | around[:, near].any(-1)  # six cells at least, in a corner
        return torch.where(ground.sum(1, keepdim=True) < 5, ground | around, ground)


def beside(size: int) -> Tensor:
    """Return the cells above, below, left and right of each cell, (n_cells, 4); beyond the edge the cell itself."""
    row, column = torch.arange(size**2) // size, torch.arange(size**2) % size
    rows = torch.stack([row - 1, row + 1, row, row], 1).clamp(0, size - 1)
    return rows * size + torch.stack([column, column, column - 1, column + 1], 1).clamp(0, size - 1)


def owner(ground: Tensor, goal: Tensor) -> Tensor:
    """Return which of `POOLS` has the game that begins at a cell, (n_tasks, n_cells), on that ground with that goal.

    Four cells besides the goal are enough for each pool to have one.
    """
    cell = torch.arange(ground.shape[1])
    layout = (ground * mixed(cell + 1)).sum(1) + mixed(goal + 1000)  # (n_tasks,)
    order = mixed((layout[:, None] + mixed(cell + 2000)) & 0x7FFFFFFF)
    order = order.masked_fill(~ground, 1 << 31).scatter(1, goal[:, None], 1 << 31)  # who cannot start comes last
    turn: Tensor = order.argsort(dim=1, stable=True).argsort(1) % 4
    return (turn - 1).clamp(0)


def mixed(number: Tensor) -> Tensor:
    """Return a hash below 2³¹ of numbers from 0 to below 2³¹; torch's own random numbers may differ by version."""
    for _ in range(3):
        number = ((number ^ (number >> 15)) * 0x2C1B3C6D + 0x297A2D39) & 0x7FFFFFFF
    return number ^ (number >> 15)
