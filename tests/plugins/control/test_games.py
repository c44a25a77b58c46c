"""Every game can be won, by who knows its board, and none is in two pools."""

from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import POOLS, Pool
from metaopt.testing.control import SAMPLER_CHECKS
from metaopt_control.games import Boards, Games

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
PLAIN = list(range(4))


def drawn(n: int, pool: Pool = "train", seed: int = 0, **config: Any) -> Boards:
    sampler = Games(Games.Config(**config))
    return sampler.environments(pool, sampler.spec(1, 4, 3), n, Generator().manual_seed(seed))


def board(rows: str, *, needed: bool, buttons: list[int] = PLAIN, **config: Any) -> Boards:
    """One game, written as rows of S(tart), G(oal), K(ey), # and dots."""
    cells, size = "".join(rows.split()), len(rows.split())
    places = (torch.tensor([cells.index(sign)]) for sign in "SGK")
    walls = torch.tensor([[cell == "#" for cell in cells]])
    return Boards(Games.Config(size, **config), walls, *places, torch.tensor([needed]), torch.tensor([buttons]))


def played(tasks: Boards, actions: list[int]) -> tuple[list[int], list[float], list[bool]]:
    """The cells, rewards and ends of one episode of one game."""
    state, found = tasks.start(1, None), []
    for action in actions:
        state, reward, ended = tasks.step(state, torch.tensor([[action]]), None)
        found.append((int(state[0, 0, 0]), float(reward), bool(ended)))
    cells, rewards, ends = zip(*found, strict=True)
    return list(cells), list(rewards), list(ends)


def shortest(told: list[float], start: int, size: int) -> list[int]:
    """The fewest actions that win, searched breadth first in what an oracle is told."""
    cells = size * size
    goal, key, needed = told[:cells].index(1), told[cells : 2 * cells].index(1), told[2 * cells] == 1
    walls, buttons = told[2 * cells + 1 : 3 * cells + 1], told[3 * cells + 1 :]
    does = [buttons[4 * button : 4 * button + 4].index(1) for button in PLAIN] if buttons else PLAIN
    ways: dict[tuple[int, bool], list[int]] = {(start, False): []}
    waiting = deque(ways)
    while waiting:
        here = waiting.popleft()
        for action in PLAIN:
            row, column = here[0] // size + STEPS[does[action]][0], here[0] % size + STEPS[does[action]][1]
            cell = row * size + column
            if not (0 <= row < size and 0 <= column < size) or walls[cell]:
                continue
            there = (cell, here[1] or cell == key)
            if cell == goal and (there[1] or not needed):
                return [*ways[here], action]
            if there not in ways:
                ways[there] = [*ways[here], action]
                waiting.append(there)
    raise AssertionError("the goal cannot be reached")


def wins_by_the_shortest_way(tasks: Boards, size: int) -> None:
    starts = tasks.observe(tasks.start(1, None))[:, 0, :-1].argmax(1).tolist()
    ways = [shortest(told, start, size) for told, start in zip(tasks.told.tolist(), starts, strict=True)]
    lengths = torch.tensor([len(way) for way in ways])
    assert lengths.max() <= tasks.horizon
    state, earned, first = tasks.start(1, None), torch.zeros(len(tasks)), torch.zeros(len(tasks), dtype=torch.int64)
    for step in range(int(lengths.max())):
        action = torch.tensor([[way[step] if step < len(way) else 0] for way in ways])
        state, reward, ended = tasks.step(state, action, None)
        earned += reward[:, 0] * (first == 0)
        first = torch.where((first == 0) & ended[:, 0], step + 1, first)
    assert torch.equal(first, lengths)
    torch.testing.assert_close(earned, 1 - tasks.config.step_cost * lengths)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("walls", [0.0, 0.15, 0.4])
@pytest.mark.parametrize(("size", "horizon"), [(3, 6), (3, 12), (5, 24), (9, 48), (15, 24)])
def test_the_shortest_way_wins_within_the_horizon_and_earns_1_less_its_steps(
    size: int, horizon: int, walls: float, pool: Pool
) -> None:
    wins_by_the_shortest_way(drawn(100, pool, size=size, walls=walls, horizon=horizon, shuffled=True), size)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(3, 15),
    st.floats(0, 0.4),
    st.floats(0, 1),
    st.booleans(),
    st.floats(0, 1),
    st.integers(6, 200),
    st.data(),
)
def test_every_game_of_all_settings_can_be_won(
    size: int, walls: float, keys: float, shuffled: bool, cost: float, horizon: int, data: st.DataObject
) -> None:
    pool, seed = data.draw(st.sampled_from(POOLS)), data.draw(st.integers(0, 2**32))
    config = {"keys": keys, "shuffled": shuffled, "step_cost": cost, "horizon": horizon}
    wins_by_the_shortest_way(drawn(10, pool, seed, size=size, walls=walls, **config), size)


def test_walls_and_edges_stop_and_cost_a_step() -> None:
    tasks = board("S#. ... G.K", needed=False, step_cost=0.125)
    cells, rewards, ends = played(tasks, [0, 2, 3, 1, 3, 0, 2, 1])
    assert cells == [0, 0, 0, 3, 4, 4, 3, 6]
    assert rewards == [-0.125] * 7 + [0.875]
    assert ends == [False] * 7 + [True]


def test_a_goal_that_needs_the_key_pays_nothing_without_it_and_1_with_it() -> None:
    tasks = board("SGK ### ###", needed=True, step_cost=0.125)
    _, rewards, ends = played(tasks, [3, 3, 2])
    assert (rewards, ends) == ([-0.125, -0.125, 0.875], [False, False, True])


def test_a_key_that_is_not_needed_changes_what_is_seen_and_nothing_else() -> None:
    tasks = board("SKG ... ...", needed=False, step_cost=0.125)
    through = played(tasks, [3, 3])
    assert through[1:] == ([-0.125, 0.875], [False, True])
    assert played(tasks, [1, 3, 3, 0])[1][-1] == 0.875
    state, _, _ = tasks.step(tasks.start(1, None), torch.tensor([[3]]), None)
    assert tasks.observe(tasks.start(1, None))[0, 0].tolist() == [1, *[0] * 8, 0]
    assert tasks.observe(state)[0, 0].tolist() == [0, 1, *[0] * 7, 1]


def test_buttons_do_the_moves_that_are_told() -> None:
    tasks = board("... .S. G.K", needed=False, buttons=[3, 0, 2, 1], shuffled=True)
    assert [played(tasks, [button])[0][0] for button in PLAIN] == [5, 1, 3, 7]
    assert tasks.told[0, -16:].view(4, 4).argmax(1).tolist() == [3, 0, 2, 1]


def test_all_orders_of_the_buttons_are_drawn_equally_often_where_shuffled_and_one_where_not() -> None:
    told = drawn(4800, shuffled=True).told[:, -16:]
    counts = Counter(map(tuple, told.tolist()))
    assert len(counts) == 24
    assert max(abs(count - 200) for count in counts.values()) < 60  # more than four standard deviations
    assert [played(board("... .S. G.K", needed=False), [button])[0][0] for button in PLAIN] == [1, 7, 3, 5]


def test_the_share_of_games_that_need_the_key_is_the_one_set() -> None:
    for keys in (0.0, 0.3, 1.0):
        assert float(drawn(4000, keys=keys).needed.float().mean()) == pytest.approx(keys, abs=0.03)


def layouts(tasks: Boards) -> set[tuple[Any, ...]]:
    """Walls, goal and start of games, from what is told and seen."""
    cells = tasks.config.size**2
    seen = tasks.observe(tasks.start(1, None))[:, 0, :cells]
    known = torch.cat([tasks.told[:, :cells], tasks.told[:, 2 * cells + 1 : 3 * cells + 1], seen], 1)
    return set(map(tuple, known.tolist()))


@pytest.mark.parametrize("size", [3, 5])
def test_no_board_is_in_two_pools_whatever_the_other_settings(size: int) -> None:
    found: list[set[tuple[Any, ...]]] = []
    for pool in POOLS:
        plain = layouts(drawn(3000, pool, size=size, walls=0.0, keys=0.0))
        found.append(plain | layouts(drawn(3000, pool, seed=1, size=size, walls=0.3, shuffled=True, horizon=30)))
    train, validation, test = found
    assert len(train | validation | test) == len(train) + len(validation) + len(test)


def test_of_an_open_board_train_has_half_the_games_validation_and_test_a_quarter_each() -> None:
    sizes = [len(layouts(drawn(3000, pool, size=3, walls=0.0))) for pool in POOLS]
    assert sizes == [36, 18, 18]  # of 9 goals and 8 starts


def test_pools_are_alike() -> None:
    def numbers(tasks: Boards) -> Tensor:
        far = (tasks.begin // 5 - tasks.goal // 5).abs() + (tasks.begin % 5 - tasks.goal % 5).abs()
        return torch.stack([tasks.told[:, 51:].sum(1).mean(), far.float().mean(), tasks.begin.float().mean()])

    train, *others = (numbers(drawn(4000, pool)) for pool in POOLS)
    for other in others:
        torch.testing.assert_close(other, train, rtol=0.05, atol=0)


def test_episodes_of_one_game_are_apart_and_go_on_after_their_end() -> None:
    tasks = board("SG. ... ..K", needed=False, step_cost=0.125)
    state = tasks.start(2, None)
    state, reward, ended = tasks.step(state, torch.tensor([[3, 1]]), None)
    assert ended.tolist() == [[True, False]]
    assert reward.tolist() == [[0.875, -0.125]]
    state, _, ended = tasks.step(state, torch.tensor([[1, 3]]), None)
    assert state[..., 0].tolist() == [[4, 4]]
    assert not ended.any()


@pytest.mark.parametrize("check", SAMPLER_CHECKS)
@pytest.mark.parametrize("config", [{}, {"size": 3, "walls": 0.4, "shuffled": True}])
def test_it_keeps_the_contract_of_samplers(check: Any, config: dict[str, Any]) -> None:
    check(SimpleNamespace(cls=Games, settings=config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"size": 2}, "tasks.size is 2; a board has 3 to 15 cells a side"),
        ({"size": 16}, "tasks.size is 16; a board has 3 to 15"),
        ({"walls": 0.5}, "tasks.walls is 0.5; the share of walls is 0 to 0.4"),
        ({"walls": float("nan")}, "tasks.walls is nan"),
        ({"keys": -0.1}, "tasks.keys is -0.1; the share of games that need the key is 0 to 1"),
        ({"step_cost": 2.0}, "tasks.step_cost is 2.0; a step costs 0 to 1"),
        ({"horizon": 5}, "tasks.horizon is 5; an episode has 6 to 10000 steps"),
    ],
)
def test_settings_that_make_no_game_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Games(Games.Config(**config))
