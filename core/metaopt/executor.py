"""Run one task's code over many tasks at once.

Executors are interchangeable ways to compute one result. `Loop` runs the tasks one by one and is the reference;
`Vmap` batches them. The gradient is always taken inside the batching (`vmap(grad(task))`): in torch 2.13 the other
order, `grad(vmap(task))`, gives silently wrong second-order gradients behind a convolution and a normalisation.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metaopt.errors import UserError, unknown
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskBatch, TaskSpec


class Executor(Protocol):
    """A way to run a learner's one-task methods over a batch of tasks."""

    name: ClassVar[str]

    def map(self, learner: Learner, method: str, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        """Call the learner's `method` on each task's slice of `tensors` and stack what it returns.

        `method` returns a tensor or a dict of tensors of the same shapes for every task; (n_tasks, …) comes back.
        """
        ...

    def gradient(self, learner: Learner, batch: TaskBatch) -> tuple[Tensor, Gradients]:
        """Return the mean over tasks of `task_loss`, and its gradient by parameter name."""
        ...


class Loop(Executor):
    """One task after another: the reference that the others must equal."""

    name = "loop"

    def map(self, learner: Learner, method: str, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        results = [getattr(learner, method)(*task) for task in zip(*tensors, strict=True)]
        if isinstance(results[0], Mapping):
            return {name: torch.stack([result[name] for result in results]) for name in results[0]}
        return torch.stack(results)

    def gradient(self, learner: Learner, batch: TaskBatch) -> tuple[Tensor, Gradients]:
        parameters = trainable(learner)
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        losses = []
        for task in zip(*batch.tensors(), strict=True):
            loss = learner.task_loss(*task)
            gradients = torch.autograd.grad(loss / len(batch), list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
            losses.append(loss.detach())
        return torch.stack(losses).mean(), total


class Vmap(Executor):
    """All tasks at once by `torch.func.vmap`."""

    name = "vmap"

    def map(self, learner: Learner, method: str, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        in_dims = (None, *(0 for _ in tensors))
        run = vmap(pure(learner, method), in_dims=in_dims, randomness="different")
        result: Tensor | dict[str, Tensor] = run(trainable(learner), *tensors)
        return result

    def gradient(self, learner: Learner, batch: TaskBatch) -> tuple[Tensor, Gradients]:
        one_task = grad_and_value(pure(learner, "task_loss"))
        every_task = vmap(one_task, in_dims=(None, 0, 0, 0, 0), randomness="different")
        parameters = {name: parameter.detach() for name, parameter in trainable(learner).items()}
        gradients, losses = every_task(parameters, *batch.tensors())
        return losses.mean(), {name: gradient.mean(0) for name, gradient in gradients.items()}


EXECUTORS: Mapping[str, type[Executor]] = {"loop": Loop, "vmap": Vmap}


def choose(name: str, spec: TaskSpec) -> Executor:
    """Return the executor of that name; "auto" is vmap for vectors and loop for pictures.

    On a CPU vmap is some five times faster on small networks, whose cost is dispatch, and slower for convolutions
    over more than about 30 pictures a task, which it turns into grouped convolutions.
    """
    if name == "auto":
        name = "vmap" if len(spec.x_shape) == 1 else "loop"
    if name not in EXECUTORS:
        raise UserError(unknown("executor", name, ["auto", *EXECUTORS]))
    return EXECUTORS[name]()


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that meta-training moves, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def pure(learner: Learner, method: str) -> Callable[..., Tensor | dict[str, Tensor]]:
    """Return the learner's method as a function of its parameters (a dict by name) and of one task's tensors."""
    call = _Call(learner, method)

    def run(parameters: Mapping[str, Tensor], *task: Tensor) -> Tensor | dict[str, Tensor]:
        named = {f"learner.{name}": parameter for name, parameter in parameters.items()}
        result: Tensor | dict[str, Tensor] = functional_call(call, named, task)
        return result

    return run


class _Call(nn.Module):
    """Calls any method of a learner through `forward`, the only door of `functional_call`."""

    def __init__(self, learner: Learner, method: str) -> None:
        super().__init__()
        self.learner = learner
        self.method = method

    def forward(self, *task: Tensor) -> Tensor | dict[str, Tensor]:
        result: Tensor | dict[str, Tensor] = getattr(self.learner, self.method)(*task)
        return result
