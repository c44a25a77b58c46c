"""What learners that act share: a policy whose weights may differ from task to task, its episodes, and their worth."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from metaopt.environment import Environments, Episodes, lived
from metaopt.nn import Weights
from metaopt.task import TaskSpec

LEAST_LOG_STD = math.log(1e-3)


class Policy(nn.Module):
    """A network of tanh layers from what is seen to a distribution over actions: categorical, or normal.

    Its weights are passed in, of all tasks alike, or with a first dimension of the tasks.
    """

    def __init__(self, spec: TaskSpec, width: int, depth: int, n_more: int = 0) -> None:
        """Build the parameters. `n_more` numbers are seen beside the observation."""
        super().__init__()
        self.n_actions = spec.n_actions
        sizes = [math.prod(spec.x_shape) + n_more, *[width] * depth, spec.n_outputs]
        for layer, (n_in, n_out) in enumerate(pairwise(sizes)):
            weight = nn.init.xavier_uniform_(torch.empty(n_in, n_out))
            self.register_parameter(f"weight{layer}", nn.Parameter(weight))
            self.register_parameter(f"bias{layer}", nn.Parameter(torch.zeros(1, n_out)))
        self.depth = depth
        if not spec.n_actions:
            self.log_std = nn.Parameter(torch.zeros(1, spec.n_outputs))

    def weights(self) -> Weights:
        """Return the parameters by name."""
        return dict(self.named_parameters())

    def forward(self, weights: Weights, seen: Tensor) -> Tensor:
        """Return what parametrises the distribution, (n_tasks, n, n_outputs), from what is seen (n_tasks, n, n_in)."""
        for layer in range(self.depth):
            seen = (seen @ weights[f"weight{layer}"] + weights[f"bias{layer}"]).tanh()
        return seen @ weights[f"weight{self.depth}"] + weights[f"bias{self.depth}"]

    def act(self, memory: "Mind", seen: Tensor, draw: Generator | None) -> tuple[Tensor, "Mind"]:
        """Return actions (n_tasks, n, …) in answer to what is observed, (n_tasks, n, *x_shape)."""
        weights = memory.weights
        found = self(weights, memory.beside(seen.flatten(2)))
        if self.n_actions:
            return chosen(found, draw), memory
        noise = torch.randn(found.shape, generator=draw, dtype=found.dtype).to(found.device)
        return found + noise * weights["log_std"].clamp(min=LEAST_LOG_STD).exp(), memory

    def notice(self, memory: "Mind", action: Tensor, reward: Tensor, ended: Tensor) -> "Mind":
        """A policy learns after its episodes."""
        return memory

    def log_likely(self, weights: Weights, seen: Tensor, action: Tensor) -> Tensor:
        """Return the logarithms of how likely actions are, (n_tasks, n)."""
        found = self(weights, seen)
        if self.n_actions:
            chances: Tensor = found.log_softmax(-1)
            return chances.gather(-1, action[..., None])[..., 0]
        log_std = weights["log_std"].clamp(min=LEAST_LOG_STD)
        apart: Tensor = (action - found) / log_std.exp()
        return (-0.5 * apart.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def chosen(scores: Tensor, draw: Generator | None) -> Tensor:
    """Return a choice by each row of unnormalised scores (…, n_actions), by the Gumbel-max trick."""
    uniform = torch.rand(scores.shape, generator=draw, dtype=scores.dtype).to(scores.device)
    noise = -(-uniform.clamp(min=1e-20).log()).log()
    return (scores + noise).argmax(-1)


@dataclass(frozen=True)
class Mind:
    """What a policy acts by: its weights, and where it is told which task it is in, that too."""

    weights: Weights
    told: Tensor | None = None  # (n_tasks, n_told)

    def beside(self, seen: Tensor) -> Tensor:
        """Return what is observed (n_tasks, n, n_seen) with what it is told beside it."""
        if self.told is None:
            return seen
        return torch.cat([seen, self.told[:, None].expand(-1, seen.shape[1], -1)], -1)


@dataclass(frozen=True)
class Lessons:
    """What a policy learns from: what it did in each step of its episodes, and what came of that."""

    seen: Tensor  # (n_tasks, n_steps, n_in)
    actions: Tensor  # (n_tasks, n_steps, …)
    likely: Tensor  # (n_tasks, n_steps): the logarithms of how likely the actions were
    advantage: Tensor  # (n_tasks, n_steps): how much better they were than expected
    counts: Tensor  # (n_tasks, n_steps) bool: not after an episode's end
    returns: Tensor  # (n_tasks, n): what each episode brought


@torch.no_grad()
def collect(
    policy: Policy, mind: Mind, environments: Environments, n_episodes: int, draw: Generator | None, discount: float
) -> Lessons:
    """Act in every task for so many episodes; return what is to be learned from them."""
    episodes, _ = lived(policy, mind, environments, n_episodes, draw, in_turn=False)
    seen, actions = mind.beside(episodes.seen.flatten(1, 2).flatten(2)), episodes.actions.flatten(1, 2)
    likely = policy.log_likely(mind.weights, seen, actions)
    advantage = worth(seen.view(*episodes.rewards.shape, -1), episodes, discount).flatten(1, 2)
    return Lessons(seen, actions, likely, advantage, episodes.counts.flatten(1, 2), episodes.returns)


def worth(seen: Tensor, episodes: Episodes, discount: float) -> Tensor:
    """Return the advantages of actions, (n_tasks, n, horizon), standardised in each task.

    They are the discounted rewards to come less a baseline that is linear in features of what is seen and of time,
    fitted to each task's episodes (Duan et al., 2016, arXiv:1604.06778, appendix).
    """
    rewards = episodes.rewards
    to_come, later = torch.empty_like(rewards), torch.zeros_like(rewards[..., 0])
    for step in reversed(range(rewards.shape[-1])):
        later = rewards[..., step] + discount * later
        to_come[..., step] = later
    time = torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device)[:, None] / 100
    time = time.expand(*rewards.shape[:2], -1, 1)
    features = torch.cat([seen, seen.square(), time, time**2, time**3, torch.ones_like(time)], -1)
    counted = episodes.counts.to(rewards.dtype)
    x = (features * counted[..., None]).flatten(1, 2)  # (n_tasks, n * horizon, n_features)
    y = (to_come * counted).flatten(1, 2)[..., None]
    ridge = 1e-5 * len(y[0]) * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    fitted = torch.linalg.solve(x.mT @ x + ridge, x.mT @ y)
    advantage = (to_come - (features @ fitted[:, None])[..., 0]) * counted
    n = counted.sum((1, 2), keepdim=True)
    mean = advantage.sum((1, 2), keepdim=True) / n
    spread = (((advantage - mean) * counted).square().sum((1, 2), keepdim=True) / n).sqrt()
    standard: Tensor = (advantage - mean) * counted / (spread + 1e-8)
    return standard


def surrogate(policy: Policy, weights: Weights, lessons: Lessons, clip: float | None = None) -> Tensor:
    """Return the loss of each task, (n_tasks,), whose gradient is the policy gradient from these episodes.

    It is the mean of how much more likely actions are than when they were taken, times their worth; with `clip` that
    ratio gains nothing beyond 1 ± clip (Schulman et al., 2017, "Proximal policy optimization", arXiv:1707.06347).
    """
    ratio = (policy.log_likely(weights, lessons.seen, lessons.actions) - lessons.likely).exp()
    value = ratio * lessons.advantage
    if clip is not None:
        value = torch.minimum(value, ratio.clamp(1 - clip, 1 + clip) * lessons.advantage)
    return -(value * lessons.counts).sum(1) / lessons.counts.sum(1)


def of_each(weights: Weights, n_tasks: int) -> Weights:
    """Return weights with a first dimension of the tasks, so that they may part."""
    return {name: weight.expand(n_tasks, *weight.shape) for name, weight in weights.items()}


def adapted(
    policy: Policy, weights: Weights, lessons: Lessons, lr: float, derivatives: Literal[0, 1, 2] = 0
) -> Weights:
    """Return each task's weights after a step of policy gradient on its episodes.

    `derivatives` says what a later gradient sees of it: nothing, the weights before the step, or the step as well.
    """
    with torch.enable_grad():
        if not derivatives:
            weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        loss = surrogate(policy, weights, lessons).sum()  # the tasks' weights are their own
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=derivatives == 2)
        stepped = zip(weights.items(), gradients, strict=True)
        found = {name: weight - lr * gradient for (name, weight), gradient in stepped}
    return found if derivatives else {name: weight.detach() for name, weight in found.items()}
