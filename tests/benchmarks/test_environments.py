"""The comparison with Gymnasium tells dynamics apart, and counts steps as it says."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import environments
from metaopt_control.slope import Carts

ALL = [(name, peer) for name, case in environments.CASES.items() for peer in case.peers]


@pytest.mark.parametrize(("name", "peer"), ALL)
def test_both_go_the_same_way(name: str, peer: str) -> None:
    assert environments.difference(environments.CASES[name], peer, 4) is None


@pytest.mark.parametrize("told", [(1.0, 1.0, 0.0), (0.0, 1.01, 0.0), (0.0, 1.0, 0.01)])
def test_another_slope_mass_or_friction_is_noticed(told: tuple[float, float, float]) -> None:
    tilted = replace(
        environments.CASES["cart-pole"], environments=lambda n_tasks: Carts(torch.tensor([told] * n_tasks), 200)
    )
    found = environments.difference(tilted, "its vectorised CartPole", 4)
    assert found is not None
    assert "seen" in found


def test_another_end_is_noticed() -> None:
    class Endless(Carts):
        def step(self, state: Tensor, action: Tensor, draw: object) -> tuple[Tensor, Tensor, Tensor]:
            state, reward, ends = super().step(state, action, None)
            return state, reward, torch.zeros_like(ends)

    case = environments.CASES["cart-pole"]
    endless = replace(case, environments=lambda n_tasks: Endless(case.environments(n_tasks).values, 200))
    found = environments.difference(endless, "its vectorised CartPole", 4)
    assert found is not None
    assert "ends in one of them only" in found


def test_steps_that_count_are_those_in_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    counts = iter([np.array([True, True, True]), np.array([True, False, False])])
    assert environments.rate(lambda: next(counts), 3, 1.5) == (3.0, 4 / 6)


@pytest.mark.parametrize("name", environments.CASES)
def test_every_contender_is_measured_where_it_may_be(name: str) -> None:
    case = environments.CASES[name]
    assert set(environments.measure(case, 4, 1, 0.01)) == {"metaopt", *case.peers}
    found = environments.measure(case, 64, 2, 0.01)
    assert set(found) == {"metaopt", *case.peers} - {"AsyncVectorEnv"}
    rows = list(environments.compared(found))
    assert [row["peer"] for row in rows] == [peer for peer in case.peers if peer != "AsyncVectorEnv"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["metaopt"] / row["theirs"])
        assert all(0 <= share <= 1 for share in row["in_episodes"].values())
