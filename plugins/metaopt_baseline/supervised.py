"""What the baselines that pretrain share: ordinary training of a classifier of all train classes, one-hot labels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import cross_entropy

from metaopt.executor import trainable
from metaopt.learner import Gradients, Learner
from metaopt.task import Examples, TaskBatch


def supervised_step(
    learner: Learner, classifier: nn.Module, batch: TaskBatch | Examples, update: Callable[[Gradients], None]
) -> Tensor:
    """Take one step of the classifier on the learner's encoder, on labelled examples; return the loss before it."""
    assert isinstance(batch, Examples)
    parameters = trainable(learner)
    loss = cross_entropy(classifier(learner.encoder(batch.x)), batch.y)
    update(dict(zip(parameters, grad(loss, list(parameters.values())), strict=True)))
    return loss.detach()


def one_hot(labels: Tensor, n_way: int, like: Tensor) -> Tensor:
    """Return labels (n,) as rows (n, n_way) of the dtype of `like`; torch's own cannot be run by vmap."""
    return (labels[:, None] == torch.arange(n_way, device=labels.device)).to(like)
