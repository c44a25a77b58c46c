"""Run one task's code over many tasks at once.

Executors are interchangeable ways to compute one result. `Loop` runs the tasks one by one and is the reference;
`Vmap` batches them; `TracedLoop` and `Traced` record what these do and replay it. The gradient is taken inside the
batching (`vmap(grad(task))`), as in torch 2.13 the other order gives silently wrong second-order gradients behind a
convolution and a normalisation. Of learners that take no gradients themselves it is taken outside, `grad(vmap(task))`:
else each task would have a gradient of its own for every weight, only for their mean to be taken.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metaopt.cuda import graphed
from metaopt.errors import UserError, unknown
from metaopt.graph import record
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskBatch, TaskSpec

RECORD_AFTER = 100
"""Calls of one kind after which `Traced` records it."""
RECORD_LOOP_AFTER = 400
"""Those after which `TracedLoop` does: it gains a tenth of a call, and recording takes as long as some ten calls."""
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
        return _mean_gradient(learner, parameters, *batch.tensors())


class Recorder:
    """Records what is called often, one way for each learner, method and shape."""

    def __init__(self) -> None:
        self.at_second = False
        """Whether it records what it sees for the second time."""
        self.seen: Counter[tuple[Any, ...]] = Counter()
        self.replays: dict[tuple[Any, ...], tuple[Callable[..., Sequence[Tensor]], list[str]]] = {}

    def patience(self) -> int:
        """Return the call of one kind at which it is recorded."""
        return 2 if self.at_second else self._patience()

    def sizes(self) -> int:
        """Return how many sizes of tasks were seen, by the kind of call that saw most."""
        return max(Counter(what for _, what, *_ in self.seen).values(), default=0)

    def soon(self) -> Self:
        """Return another that records at the second call, to tell how fast this one will be."""
        other = type(self)()
        other.at_second = True
        return other

    def _patience(self) -> int:
        return RECORD_AFTER

    def _recorded(
        self,
        learner: Learner,
        what: str,
        n_tasks: int,
        run: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        names: list[str],
    ) -> tuple[Callable[..., Sequence[Tensor]], list[str]] | None:
        """Return what replays `run(parameters by name, *tensors)`, given such tensors; None where there is none (yet).

        `names` are those of what it returns, and come with it.
        """
        parameters = trainable(learner)
        sizes = ((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        key = (learner, what, n_tasks, learner.training, tuple(parameters), *sizes)
        values = [parameter.detach() for parameter in parameters.values()]
        self.seen[key] += 1
        if self.seen[key] == self.patience() and learner.traceable:
            n = len(parameters)

            def flat(*inputs: Tensor) -> Sequence[Tensor]:
                return run(dict(zip(parameters, inputs[:n], strict=True)), *inputs[n:])

            devices = {tensor.device for tensor in tensors if tensor.is_cuda}
            try:
                with torch.random.fork_rng(devices):  # else what is recorded anew after a checkpoint drew twice
                    inputs = [*values, *tensors]
                    self.replays[key] = (graphed(record(flat, inputs), inputs), names)
            except Exception as error:  # tracing may fail in any way, and none of them is the user's concern
                reason = next(iter(str(error).splitlines()), "")
                log.info("%s of %s is not replayed (%s: %s)", what, learner.name, type(error).__name__, reason)
        if key not in self.replays:
            return None
        replay, names = self.replays[key]
        return torch.no_grad()(partial(replay, *values)), names

    def calls(self, learner: Learner) -> list[Any]:
        """Return as JSON how often each kind of call of this learner was seen, for `take_up`."""
        calls = []
        for key, n in self.seen.items():
            one, what, n_tasks, training, _, *sizes = key
            if one is learner:
                written = [[list(shape), str(dtype), str(device)] for shape, dtype, device in sizes]
                calls.append([what, n_tasks, training, written, n])
        return calls

    def take_up(self, learner: Learner, calls: list[Any]) -> None:
        """Record from the first call on what was replayed before: a replay may differ in the last bit."""
        names = tuple(trainable(learner))
        for what, n_tasks, training, sizes, n in calls:
            tensors = (
                (torch.Size(shape), getattr(torch, dtype.removeprefix("torch.")), torch.device(device))
                for shape, dtype, device in sizes
            )
            self.seen[learner, what, n_tasks, training, names, *tensors] = min(n, self.patience() - 1)


class Traced(Recorder, Executor):
    """The operators that `Vmap` runs, recorded once for each shape and then replayed without anything else.

    Recording takes a second, so it is worth it for what is called often: a call is recorded when its like was seen
    RECORD_AFTER times. What cannot be recorded goes on under `Vmap`.
    """

    name = "traced"

    def map(self, learner: Learner, method: str, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        names: list[str] = []  # of what the method returns, filled in while it is recorded; empty for one tensor

        def run(named: Parameters, *tensors: Tensor) -> Sequence[Tensor]:
            every = vmap(pure(learner, method), in_dims=(None, *(0 for _ in tensors)), randomness="different")
            return _listed(every(named, *tensors), names)

        recorded = self._recorded(learner, method, len(tensors[0]), run, tensors, names)
        if recorded is None:
            return Vmap().map(learner, method, *tensors)
        replay, names = recorded
        results = replay(*tensors)
        return dict(zip(names, results, strict=True)) if names else results[0]

    def gradient(self, learner: Learner, batch: TaskBatch) -> tuple[Tensor, Gradients]:
        names = list(trainable(learner))

        def run(named: Parameters, *tensors: Tensor) -> Sequence[Tensor]:
            loss, gradients = _mean_gradient(learner, named, *tensors)
            return [loss, *(gradients[name] for name in names)]

        recorded = self._recorded(learner, "gradient", len(batch), run, batch.tensors(), names)
        if recorded is None:
            return Vmap().gradient(learner, batch)
        replay, names = recorded
        loss, *gradients = replay(*batch.tensors())
        return loss, dict(zip(names, gradients, strict=True))


class TracedLoop(Recorder, Executor):
    """The operators that `Loop` runs on a task, recorded once for each shape and replayed task by task.

    It computes what the loop does, but for rounding, where gradients are added up in another order; which calls are
    recorded is a matter of their number, so that a repeated trial is the same to the last bit. Recording takes some
    seconds for many steps of second order.
    """

    name = "traced-loop"

    def _patience(self) -> int:
        return RECORD_LOOP_AFTER

    def map(self, learner: Learner, method: str, *tensors: Tensor) -> Tensor | dict[str, Tensor]:
        names: list[str] = []  # as in `Traced`

        def run(named: Parameters, *task: Tensor) -> Sequence[Tensor]:
            return _listed(pure(learner, method)(named, *task), names)

        tasks = list(zip(*tensors, strict=True))
        recorded = self._recorded(learner, method, 1, run, tasks[0], names)
        if recorded is None:
            return Loop().map(learner, method, *tensors)
        replay, names = recorded
        results = [torch.stack(of_tasks) for of_tasks in zip(*(replay(*task) for task in tasks), strict=True)]
        return dict(zip(names, results, strict=True)) if names else results[0]

    def gradient(self, learner: Learner, batch: TaskBatch) -> tuple[Tensor, Gradients]:
        names = list(trainable(learner))

        def run(named: Parameters, *task: Tensor) -> Sequence[Tensor]:
            def share(named: Parameters, *task: Tensor) -> tuple[Tensor, Tensor]:
                loss = pure(learner, "task_loss")(named, *task)
                assert isinstance(loss, Tensor)
                return loss / len(batch), loss

            gradients, (_, loss) = grad_and_value(share, has_aux=True)(named, *task)
            return [loss, *(gradients[name] for name in names)]

        tasks = list(zip(*batch.tensors(), strict=True))
        recorded = self._recorded(learner, "gradient", len(batch), run, tasks[0], names)
        if recorded is None:
            return Loop().gradient(learner, batch)
        replay, names = recorded
        total = [torch.zeros_like(parameter) for parameter in trainable(learner).values()]
        losses = []
        for task in tasks:
            loss, *gradients = replay(*task)
            torch._foreach_add_(total, list(gradients))
            losses.append(loss)
        return torch.stack(losses).mean(), dict(zip(names, total, strict=True))


def _listed(result: Tensor | dict[str, Tensor], names: list[str]) -> Sequence[Tensor]:
    """Return what a method returned as a list, and put the names, if any, into `names`."""
    if isinstance(result, Tensor):
        return [result]
    names[:] = result
    return list(result.values())


FASTEST = "fastest"
"""What stands for a name in a study file until it is measured (metaopt.study.fastest)."""
EXECUTORS: Mapping[str, type[Executor]] = {"loop": Loop, "traced-loop": TracedLoop, "vmap": Vmap, "traced": Traced}


def choose(name: str, spec: TaskSpec, device: str = "cpu") -> Executor:
    """Return the executor of that name; "auto" is `traced-loop` for pictures on a CPU, and `traced` otherwise.

    On a CPU vmap is some ten times faster than the loop on small networks, whose cost is dispatch, and replay three
    times faster again. For convolutions over more than about 30 pictures a task vmap is slower than the loop, because
    weights adapted to each task turn them into grouped convolutions. On CUDA launches are what takes time.
    """
    if name in ("auto", FASTEST):
        name = "traced" if len(spec.x_shape) == 1 or device == "cuda" else "traced-loop"
    if name not in EXECUTORS:
        raise UserError(unknown("executor", name, ["auto", FASTEST, *EXECUTORS]))
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


def _mean_gradient(learner: Learner, parameters: Parameters, *tensors: Tensor) -> tuple[Tensor, Gradients]:
    """Return the mean over tasks of `task_loss`, and its gradient by parameter name."""
    loss, in_dims = pure(learner, "task_loss"), (None, *(0 for _ in tensors))
    if learner.inner_gradients:
        gradients, losses = vmap(grad_and_value(loss), in_dims=in_dims, randomness="different")(parameters, *tensors)
        return losses.mean(), {name: gradient.mean(0) for name, gradient in gradients.items()}

    def mean(parameters: Parameters) -> Tensor:
        losses = vmap(loss, in_dims=in_dims, randomness="different")(parameters, *tensors)
        assert isinstance(losses, Tensor)
        return losses.mean()

    gradient, value = grad_and_value(mean)(parameters)
    return value, gradient


class _Call(nn.Module):
    """Calls any method of a learner through `forward`, the only door of `functional_call`."""

    def __init__(self, learner: Learner, method: str) -> None:
        super().__init__()
        self.learner = learner
        self.method = method

    def forward(self, *task: Tensor) -> Tensor | dict[str, Tensor]:
        result: Tensor | dict[str, Tensor] = getattr(self.learner, self.method)(*task)
        return result
