"""What learners with a memory share: labels as inputs, and one step of an LSTM."""

import torch
from torch import Tensor

from metaopt.task import TaskSpec


def label_inputs(spec: TaskSpec, y: Tensor, like: Tensor) -> Tensor:
    """Return labels (n,) as one-hot rows and regression targets as they are, (n, n_outputs), of the dtype of `like`."""
    if spec.kind == "regression":
        return y.to(like)
    return (y[:, None] == torch.arange(spec.n_way, device=y.device)).to(like)


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden and the cell state after a step of an LSTM: (…, 4 n) of its gates and (…, n) to two (…, n).

    By hand, because the order of `nn.LSTMCell`'s operations is none that `vmap` can run from an unbatched state.
    """
    forget, write, out, new = gates.chunk(4, dim=-1)
    cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell
