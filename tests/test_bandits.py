"""The rules beside which RL² stands play the tasks that it plays, and are what their papers say."""

import math

import pytest
import torch
from torch import Generator, Tensor

import bandits
from metaopt import seeds
from metaopt.learner import Learner
from metaopt.train import acted
from metaopt_control.bandits import Bandits
from metaopt_control.rl2 import RL2

SAMPLER = Bandits(Bandits.Config(arms=3))


def test_rules_and_learner_play_the_same_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def adapt(self: Learner, environments: object, draw: Generator) -> tuple[object, Tensor]:
        seen.append(environments.told)  # type: ignore[attr-defined]  # of every environment
        return RL2.blank(self, environments), torch.zeros(len(seen[-1]), 1)  # type: ignore[arg-type]  # it is an RL2

    monkeypatch.setattr(RL2, "adapt", adapt)
    learner = RL2(SAMPLER.spec(1, 1, 1), torch.nn.Identity(), RL2.Config(hidden=16))
    draw = seeds.generator(0, "evaluate", "test")
    assert len(list(acted(learner, SAMPLER, "test", 150, draw=draw, device=bandits.CPU))) > 1, "in several calls"
    assert torch.equal(torch.cat(seen), bandits.chances(SAMPLER, "test", 150))


def test_a_pull_of_the_only_arm_that_pays_is_found_and_kept_by_greedy() -> None:
    chances = torch.tensor([[0.0, 0.0, 1.0]]).expand(200, 3)
    earned = bandits.played(bandits.greedy(1, 1), chances, 50)
    assert (earned >= 48 / 50).all(), "two pulls at most are lost"


def test_ucb1_adds_the_bonus_of_its_paper_and_pulls_each_arm_first() -> None:
    worth = bandits.ucb1(2**0.5)(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]), 4, Generator())
    assert worth[0, 0].item() == pytest.approx(3 / 4 + math.sqrt(2 * math.log(4) / 4))
    assert worth[0, 1].item() == math.inf


def test_thompson_sampling_draws_from_the_beta_distribution_of_what_is_believed() -> None:
    draw, n = Generator().manual_seed(0), 40_000
    drawn = bandits.thompson(1, 2)(torch.full((n, 1), 3.0), torch.full((n, 1), 4.0), 7, draw)
    known = torch.distributions.Beta(4.0, 6.0)
    torch.testing.assert_close(drawn.mean(), known.mean, rtol=0.01, atol=0)
    torch.testing.assert_close(drawn.var(), known.variance, rtol=0.03, atol=0)


def test_a_rule_earns_what_its_arm_pays() -> None:
    chances = torch.tensor([[0.7, 0.2]]).expand(4000, 2)
    always_first = lambda successes, failures, pull, draw: torch.tensor([1.0, 0.0]).expand(4000, 2)  # noqa: E731 a rule
    assert bandits.played(always_first, chances, 20).mean().item() == pytest.approx(0.7, abs=0.01)
