"""Environments: tasks that a learner acts in, many side by side, instead of sets of examples."""

import torch
from torch import Generator, Tensor


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
