"""RL² (Duan et al., 2016, "Fast reinforcement learning via slow reinforcement learning", arXiv:1611.02779)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from metaopt import tune
from metaopt.environment import Environments, Episodes, lived
from metaopt.executor import trainable
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskSpec
from metaopt_control.policy import LEAST_LOG_STD, chosen


@dataclass(frozen=True)
class Memory:
    """What it knows of tasks: the network's state, and what came of the step before."""

    state: Tensor  # (1, n_tasks, hidden)
    last: Tensor  # (n_tasks, n_outputs + 2): action, reward and end


class RL2(Learner):
    """A recurrent policy that keeps its state over the episodes of a task: learning happens in its activations.

    Each step it sees the observation, and the action, reward and end of the step before. It is meta-trained to earn
    much over all episodes together, by proximal policy optimisation where the paper's is TRPO.
    """

    name = "rl2"
    kinds = ("control",)
    uses_encoder = False
    in_turn = True
    defaults: ClassVar[dict[str, Any]] = {"outer.lr": 5e-3, "outer.tasks_per_step": 256, "outer.clip": 1.0}
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        hidden: int = tune.integer(16, 256, log=True, default=64)
        discount: float = tune.real(0.8, 1.0, default=0.9)
        decay: float = tune.real(0.0, 1.0, default=0.9)
        """λ of the advantages' estimate (Schulman et al., 2016, arXiv:1506.02438)."""
        epochs: int = tune.integer(1, 8, default=2)
        clip: float = tune.real(0.05, 0.5, log=True, default=0.2)
        entropy: float = tune.real(1e-4, 0.1, log=True, default=0.03)
        """Weight of the policy's entropy, which keeps it exploring, at the start; it falls to nothing at the end."""

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.gru = nn.GRU(prod(spec.x_shape) + spec.n_outputs + 2, config.hidden)
        for gate in self.gru.get_parameter("weight_hh_l0").data.chunk(3):
            nn.init.orthogonal_(gate)  # what is remembered neither grows nor fades at first
        self.head = nn.Linear(config.hidden, spec.n_outputs + 1)  # and the value of what is to come
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)
        if not spec.n_actions:
            self.log_std = nn.Parameter(torch.zeros(spec.n_outputs))

    def adapt(self, environments: Environments, draw: Generator) -> tuple[Memory, Tensor]:
        """Live through the first episodes; what it has learned then is in its state."""
        episodes, memory = lived(self, self.blank(environments), environments, self.spec.n_shot, draw, in_turn=True)
        return memory, episodes.returns

    def blank(self, environments: Environments) -> Memory:
        """Return the memory of one who has seen nothing of these tasks."""
        like = self.head.weight
        last = like.new_zeros(len(environments), self.spec.n_outputs + 2)
        return Memory(like.new_zeros(1, len(environments), self.config.hidden), last)

    def act(self, memory: Memory, seen: Tensor, draw: Generator | None) -> tuple[Tensor, Memory]:
        """Take one step of the network for each task's episode."""
        features, state = self.gru(torch.cat([seen.flatten(1), memory.last], 1)[None], memory.state)
        found, _ = self._heads(features[0])
        action = chosen(found, draw) if self.spec.n_actions else self._drawn(found, draw)
        return action[:, None], Memory(state, memory.last)

    def notice(self, memory: Memory, action: Tensor, reward: Tensor, ended: Tensor) -> Memory:
        """Keep what it is told in the next step."""
        told = one_hot(action[:, 0], self.spec.n_actions) if self.spec.n_actions else action[:, 0]
        return Memory(memory.state, torch.cat([told, reward, ended], 1).to(self.head.weight))

    def practise(self, environments: Environments, update: Callable[[Gradients], None]) -> Tensor:
        """Take `epochs` steps on one life in each task; return what an episode brought on average, negated."""
        config, parameters = self.config, trainable(self)
        entropy_weight = config.entropy * (1 - self.progress)
        n = self.spec.n_shot + self.spec.n_query
        episodes, _ = lived(self, self.blank(environments), environments, n, None, in_turn=True)
        inputs, actions = self._told(episodes), _by_step(episodes.actions)
        rewards, kept = _by_step(episodes.rewards), _by_step(episodes.counts)
        far = self._far(len(rewards))
        with torch.no_grad():
            found, value = self._heads(self.gru(inputs)[0])
            before, _ = self._likely(found, actions)
            gain = self._worth(rewards, far * value)
            target = gain / far + value
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        with torch.enable_grad():
            for _ in range(config.epochs):
                found, value = self._heads(self.gru(inputs)[0])
                likely, entropy = self._likely(found, actions)
                ratio = (likely - before).exp()
                clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
                each = -torch.minimum(ratio * gain, clipped * gain) - entropy_weight * entropy
                each = each + 0.5 * (value - target).square()
                loss = (each * kept).sum() / kept.sum()
                gradients = torch.autograd.grad(loss, list(parameters.values()))
                update(dict(zip(parameters, gradients, strict=True)))
        return -episodes.returns.mean()

    def _told(self, episodes: Episodes) -> Tensor:
        """Return all that it was told in each step of its life: (n_episodes * horizon, n_tasks, n_in)."""
        ended = torch.ones_like(episodes.counts)
        ended[..., :-1] = ~episodes.counts[..., 1:]
        done = one_hot(episodes.actions, self.spec.n_actions) if self.spec.n_actions else episodes.actions
        last = torch.cat([done, episodes.rewards[..., None], ended[..., None]], -1).to(self.head.weight)
        last = _by_step(last).roll(1, 0)
        last[0] = 0  # nothing was before the first step
        return torch.cat([_by_step(episodes.seen).flatten(2), last], -1)

    def _far(self, n_steps: int) -> float:
        """Return the steps that count of a life, discounted: values are learned as what a step of them earns."""
        discount = self.config.discount
        return float((1 - discount**n_steps) / (1 - discount)) if discount < 1 else float(n_steps)

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(features)
        return found[..., :-1], found[..., -1]

    def _drawn(self, found: Tensor, draw: Generator | None) -> Tensor:
        noise = torch.randn(found.shape, generator=draw, dtype=found.dtype).to(found.device)
        return found + noise * self.log_std.clamp(min=LEAST_LOG_STD).exp()

    def _likely(self, found: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of how likely actions are, and the entropy of what they were drawn from."""
        of: torch.distributions.Distribution
        if self.spec.n_actions:
            of = torch.distributions.Categorical(logits=found, validate_args=False)
            return of.log_prob(action), of.entropy()  # type: ignore[no-untyped-call]  # torch leaves it so
        scale = self.log_std.clamp(min=LEAST_LOG_STD).exp().expand_as(found)
        of = torch.distributions.Normal(found, scale, validate_args=False)
        return of.log_prob(action).sum(-1), of.entropy().sum(-1)  # type: ignore[no-untyped-call]  # torch leaves it so

    def _worth(self, rewards: Tensor, values: Tensor) -> Tensor:
        """Return the advantages of actions, (n_steps, n_tasks), over all that is to come in the task."""
        config, found = self.config, torch.empty_like(rewards)
        later, value = torch.zeros_like(rewards[0]), torch.zeros_like(rewards[0])
        for step in reversed(range(len(rewards))):
            surprise = rewards[step] + config.discount * value - values[step]
            later = surprise + config.discount * config.decay * later
            found[step], value = later, values[step]
        return found


def _by_step(of: Tensor) -> Tensor:
    """Return a part of episodes (n_tasks, n_episodes, horizon, …) as one life, (n_episodes * horizon, n_tasks, …)."""
    return of.flatten(1, 2).transpose(0, 1)
