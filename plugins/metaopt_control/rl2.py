"""RL² (Duan et al., 2016, "Fast reinforcement learning via slow reinforcement learning", arXiv:1611.02779)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from metaopt import tune
from metaopt.environment import Environments
from metaopt.executor import trainable
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskSpec
from metaopt_control.policy import LEAST_LOG_STD, chosen


class RL2(Learner):
    """A recurrent policy that keeps its state over the episodes of a task: learning happens in its activations.

    Each step it sees the observation, and the action, reward and end of the step before. It is meta-trained to earn
    much over all episodes together, by proximal policy optimisation where the paper's is TRPO.
    """

    name = "rl2"
    kinds = ("control",)
    uses_encoder = False
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
        """Weight of the policy's entropy, which keeps it exploring."""

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        super().__init__(spec, encoder, config)
        self.gru = nn.GRU(prod(spec.x_shape) + spec.n_outputs + 2, config.hidden)
        self.head = nn.Linear(config.hidden, spec.n_outputs + 1)  # and the value of what is to come
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)
        if not spec.n_actions:
            self.log_std = nn.Parameter(torch.zeros(spec.n_outputs))

    def interact(self, environments: Environments, draw: Generator) -> Tensor:
        """Return what each episode brought, one after the other: (n_tasks, n_shot + n_query)."""
        return self._live(environments, draw)["earned"]

    def practise(self, environments: Environments, update: Callable[[Gradients], None]) -> Tensor:
        """Take `epochs` steps on one life in each task; return what an episode brought on average, negated."""
        config, parameters = self.config, trainable(self)
        life = self._live(environments, None)
        gain = self._worth(life["rewards"], life["values"])
        target = (gain + life["values"]) / self._far(len(gain))
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        with torch.enable_grad():
            for _ in range(config.epochs):
                found, value = self._heads(self.gru(life["inputs"])[0])
                likely, entropy = self._likely(found, life["actions"])
                ratio = (likely - life["likely"]).exp()
                clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
                kept = life["counts"]
                each = -torch.minimum(ratio * gain, clipped * gain) - config.entropy * entropy
                each = each + 0.5 * (value - target).square()
                loss = (each * kept).sum() / kept.sum()
                gradients = torch.autograd.grad(loss, list(parameters.values()))
                update(dict(zip(parameters, gradients, strict=True)))
        return -life["earned"].mean()

    @torch.no_grad()
    def _live(self, environments: Environments, draw: Generator | None) -> dict[str, Tensor]:
        """Live through all episodes of each task. Time comes first, (n_episodes * horizon, n_tasks, …)."""
        n_tasks, spec = len(environments), self.spec
        like = self.head.weight
        last = like.new_zeros(n_tasks, spec.n_outputs + 2)  # action, reward, end
        memory = like.new_zeros(1, n_tasks, self.config.hidden)
        kept: dict[str, list[Tensor]] = {
            name: [] for name in ("inputs", "actions", "likely", "values", "rewards", "counts")
        }
        earned, far = [], self._far((spec.n_shot + spec.n_query) * environments.horizon)
        for _ in range(spec.n_shot + spec.n_query):
            state, brought = environments.start(1, draw), like.new_zeros(n_tasks)
            ended = torch.zeros(n_tasks, dtype=torch.bool, device=like.device)
            for _ in range(environments.horizon):
                seen = torch.cat([environments.observe(state).flatten(1), last], 1)[None]
                features, memory = self.gru(seen, memory)
                found, value = self._heads(features[0])
                action = chosen(found, draw) if spec.n_actions else self._drawn(found, draw)
                likely, _ = self._likely(found, action)
                state, reward, ends = environments.step(state, action[:, None], draw)
                reward, now = reward[:, 0].masked_fill(ended, 0.0), ended | ends[:, 0]
                told = one_hot(action, spec.n_actions).to(like) if spec.n_actions else action
                last = torch.cat([told, reward[:, None], now[:, None].to(like)], 1)
                for name, one in zip(kept, (seen[0], action, likely, far * value, reward, ~ended), strict=True):
                    kept[name].append(one)
                brought, ended = brought + reward, now
            last = torch.cat([last[:, :-1], like.new_ones(n_tasks, 1)], 1)
            earned.append(brought)
        return {name: torch.stack(parts) for name, parts in kept.items()} | {"earned": torch.stack(earned, 1)}

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
