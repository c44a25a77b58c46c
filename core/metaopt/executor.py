"""Run one task's code over many tasks at once.

Executors are interchangeable ways to compute one result. `Loop` runs the tasks one by one and is the reference;
`Vmap` batches them; `Traced` records what `Vmap` does and replays it. The gradient is always taken inside the batching
(`vmap(grad(task))`): in torch 2.13 the other order, `grad(vmap(task))`, gives silently wrong second-order gradients
behind a convolution and a normalisation.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metaopt.errors import UserError, unknown
from metaopt.graph import record
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskBatch, TaskSpec

RECORD_AFTER = 100
"""Calls of one kind after which `Traced` records it."""
Parameters = Mapping[str, Tensor]
log = logging.getLogger(__name__)


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
        parameters = {name: parameter.detach() for name, parameter in trainable(learner).items()}
        gradients, losses = _gradients_by_task(learner, parameters, *batch.tensors())
        return losses.mean(), {name: gradient.mean(0) for name, gradient in gradients.items()}


class Traced(Executor):
    """The operators that `Vmap` runs, recorded once for each shape and then replayed without anything else.

    Recording takes a second, so it is worth it for what is called often: a call is recorded when its like was seen
    RECORD_AFTER times. What cannot be recorded goes on under `Vmap`.
    """

    name = "traced"

    def __init__(self) -> None:
        self.batched = Vmap()
        self.seen: Counter[Hashable] = Counter()
        self.replays: dict[Hashable, tuple[Callable[..., Sequence[Tensor]], list[str]]] = {}

    def map(self, learner: Learner, method: str, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        names: list[str] = []  # of what the method returns, filled in while it is recorded; empty for one tensor

        def run(named: Parameters, *tensors: Tensor) -> Sequence[Tensor]:
            result = vmap(pure(learner, method), in_dims=(None, *(0 for _ in tensors)), randomness="different")(
                named, *tensors
            )
            if isinstance(result, Tensor):
                return [result]
            names.extend(result)
            return list(result.values())

        replayed = self._replay(learner, method, run, tensors, names)
        if replayed is None:
            return self.batched.map(learner, method, *tensors)
        results, names = replayed
        return dict(zip(names, results, strict=True)) if names else results[0]

    def gradient(self, learner: Learner, batch: TaskBatch) -> tuple[Tensor, Gradients]:
        names = list(trainable(learner))

        def run(named: Parameters, *tensors: Tensor) -> Sequence[Tensor]:
            gradients, losses = _gradients_by_task(learner, named, *tensors)
            return [losses.mean(), *(gradients[name].mean(0) for name in names)]

        replayed = self._replay(learner, "gradient", run, batch.tensors(), names)
        if replayed is None:
            return self.batched.gradient(learner, batch)
        (loss, *gradients), names = replayed
        return loss, dict(zip(names, gradients, strict=True))

    def _replay(
        self,
        learner: Learner,
        what: str,
        run: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        names: list[str],
    ) -> tuple[Sequence[Tensor], list[str]] | None:
        """Return what `run(parameters by name, *tensors)` returns, by replay; None where there is none (yet)."""
        parameters = trainable(learner)
        sizes = ((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        key = (learner, what, learner.training, tuple(parameters), *sizes)
        inputs = [*(parameter.detach() for parameter in parameters.values()), *tensors]
        self.seen[key] += 1
        if self.seen[key] == RECORD_AFTER and learner.traceable:
            n = len(parameters)

            def flat(*inputs: Tensor) -> Sequence[Tensor]:
                return run(dict(zip(parameters, inputs[:n], strict=True)), *inputs[n:])

            try:
                with torch.random.fork_rng(devices=[]):  # else what is recorded anew after a checkpoint drew twice
                    self.replays[key] = (record(flat, inputs), names)
            except Exception as error:  # tracing may fail in any way, and none of them is the user's concern
                reason = next(iter(str(error).splitlines()), "")
                log.info("%s of %s is not replayed (%s: %s)", what, learner.name, type(error).__name__, reason)
        if key not in self.replays:
            return None
        replay, names = self.replays[key]
        with torch.no_grad():
            return replay(*inputs), names

    def calls(self, learner: Learner) -> list[Any]:
        """Return as JSON how often each kind of call of this learner was seen, for `take_up`."""
        calls = []
        for key, n in self.seen.items():
            assert isinstance(key, tuple)
            one, what, training, _, *sizes = key
            if one is learner:
                written = [[list(shape), str(dtype), str(device)] for shape, dtype, device in sizes]
                calls.append([what, training, written, n])
        return calls

    def take_up(self, learner: Learner, calls: list[Any]) -> None:
        """Record from the first call on what was replayed before: a replay may differ in the last bit."""
        names = tuple(trainable(learner))
        for what, training, sizes, n in calls:
            tensors = (
                (torch.Size(shape), getattr(torch, dtype.removeprefix("torch.")), torch.device(device))
                for shape, dtype, device in sizes
            )
            self.seen[learner, what, training, names, *tensors] = min(n, RECORD_AFTER - 1)


EXECUTORS: Mapping[str, type[Executor]] = {"loop": Loop, "vmap": Vmap, "traced": Traced}


def choose(name: str, spec: TaskSpec) -> Executor:
    """Return the executor of that name; "auto" is `traced` for vectors and `loop` for pictures.

    On a CPU vmap is some ten times faster than the loop on small networks, whose cost is dispatch, and replay three
    times faster again. For convolutions over more than about 30 pictures a task vmap is slower than the loop, because
    weights adapted to each task turn them into grouped convolutions.
    """
    if name == "auto":
        name = "traced" if len(spec.x_shape) == 1 else "loop"
    if name not in EXECUTORS:
        raise UserError(unknown("executor", name, ["auto", *EXECUTORS]))
    return EXECUTORS[name]()


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that meta-training moves, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def pure(learner: Learner, method: str) -> Callable[..., Tensor | dict[str, Tensor]]:
    """Return the learner's method as a function of its parameters (a dict by name) and of one task's tensors."""
    call = _Call(learner, method)

    def run(parameters: Parameters, *task: Tensor) -> Tensor | dict[str, Tensor]:
        named = {f"learner.{name}": parameter for name, parameter in parameters.items()}
        result: Tensor | dict[str, Tensor] = functional_call(call, named, task)
        return result

    return run


def _gradients_by_task(learner: Learner, parameters: Parameters, *tensors: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return each task's gradient of `task_loss` by parameter name, (n_tasks, *shape), and its loss, (n_tasks,)."""
    one_task = grad_and_value(pure(learner, "task_loss"))
    every_task = vmap(one_task, in_dims=(None, 0, 0, 0, 0), randomness="different")
    result: tuple[dict[str, Tensor], Tensor] = every_task(parameters, *tensors)
    return result


class _Call(nn.Module):
    """Calls any method of a learner through `forward`, the only door of `functional_call`."""

    def __init__(self, learner: Learner, method: str) -> None:
        super().__init__()
        self.learner = learner
        self.method = method

    def forward(self, *task: Tensor) -> Tensor | dict[str, Tensor]:
        result: Tensor | dict[str, Tensor] = getattr(self.learner, self.method)(*task)
        return result
