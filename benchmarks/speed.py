"""How fast metaopt meta-trains and evaluates, beside learn2learn, higher, TorchOpt and easyfsl, in one run.

    make bench-speed

Every contender of a row runs in a process of its own, on the same tasks and from the same weights, and they take turns,
A B A B. First their gradients (or predictions) are compared in float64; a row whose contenders differ is an error. Then
each turn runs as many steps as take half a second; numbers are medians over turns of CPU time, and the ratio is that of
the fastest peer's to metaopt's; `wall` is the same ratio by the wall clock. `peak` is the share of the float32 matmul
peak of a core, measured in the same run, of the floating-point operations that the textbook network needs, as torch
counts them for the first peer. `MB` is what a contender's process had resident at most.

metaopt's steps are those of `metaopt study run`: `Learner.outer_step` or `train.predictions_of` under the executor that
a study takes. With pictures a step has 4 tasks, a study's default; more would change nothing, as all go task by task.

Rows "with data" draw the tasks of every step from PNG files of Omniglot's size, written for the run, and end with
Adam's step. Peers read them as their own examples do: learn2learn through `MetaDataset` and its transforms, with the
classes turned by quarters for MAML, easyfsl through `EasySet` and its `TaskSampler`; they decode a file each time it is
drawn, metaopt once, before the clock starts. Their steps are those of the row without data, which are compared; in
bfloat16 it is the float32 form of the same step that is compared.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.flop_counter import FlopCounterMode

from metaopt import executor as executors
from metaopt.augment import Augment
from metaopt.executor import Executor, Loop, choose
from metaopt.learner import Gradients, Learner
from metaopt.nn import Precision
from metaopt.process import on_one_core
from metaopt.task import TaskBatch
from metaopt.train import TASKS_A_CALL, draw_batch, predictions_of
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_gradient.anil import ANIL
from metaopt_gradient.maml import MAML
from metaopt_gradient.reptile import Reptile
from metaopt_memory.mann import MANN
from metaopt_metric.protonet import ProtoNet
from metaopt_optimizer.lstm_meta import LSTMMetaLearner
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.images import Images
from metaopt_tasks.sinusoid import Sinusoid
from peers import Draw, easyfsl_tasks, learn2learn_tasks, write_pictures

SECONDS, TURNS = 0.5, 5
WIDTH = 64
LR = 0.4
N_CLASSES, OMNIGLOT = 100, 105
CHECKED = 2
"""Tasks that contenders are compared on."""
Step = Callable[[TaskBatch], Sequence[Tensor]]
"""Does a step's work and returns what must be equal: gradients in the order of the parameters, or predictions."""
Built = tuple[nn.Module, Step]
"""The network whose parameters those are, and the step."""


@dataclass(frozen=True)
class Row:
    """The same work for everybody."""

    name: str
    target: float
    learner: type[Learner]
    config: Any
    peers: Mapping[str, Callable[["Row", Learner], Built]]
    encoder: Any = field(default_factory=lambda: Conv4.Config(width=WIDTH, pool="max", norm="batch"))
    size: tuple[int, int, int] = (5, 1, 15)
    n_tasks: int = 4
    evaluation: bool = False
    data: bool = False
    """Whether a step draws its tasks from files, and ends with Adam's."""
    turned: bool = False
    """Whether it turns classes by quarters."""
    precision: Precision = "float32"
    """metaopt's; peers compute in float32."""
    threads: int = 1

    def build(self, dtype: torch.dtype) -> tuple[Learner, TaskBatch]:
        """Return the learner with its weights, and the tasks."""
        draw = torch.Generator().manual_seed(0)
        pictures = isinstance(self.encoder, Conv4.Config)
        sampler = Glyphs(Glyphs.Config(train_classes=N_CLASSES)) if pictures else Sinusoid(Sinusoid.Config())
        spec = sampler.spec(*self.size)
        batch = sampler.draw("train", spec, self.n_tasks, draw)
        torch.manual_seed(0)
        encoder = (Conv4 if pictures else MLP)(spec.x_shape, self.encoder)
        learner = self.learner(spec, encoder, self.config).to(dtype)
        as_dtype = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in batch.tensors()]
        return learner.train(not self.evaluation), TaskBatch(*as_dtype)


# metaopt


def metaopt(row: Row, learner: Learner, executor: Executor | None = None) -> Built:
    on_one_core()  # as a study's processes are set; peers' are as Python and torch leave them
    executor = executor or choose("auto", learner.spec)
    parameters = [name for name, _ in learner.named_parameters()]

    def train(batch: TaskBatch) -> Sequence[Tensor]:
        handed: list[Gradients] = []
        learner.outer_step(batch, executor, handed.append)
        return [handed[0][name] for name in parameters]

    def evaluate(batch: TaskBatch) -> Sequence[Tensor]:
        with torch.no_grad():
            return [
                predictions_of(learner, executor, TaskBatch(*(t[i : i + TASKS_A_CALL] for t in batch.tensors())))
                for i in range(0, len(batch), TASKS_A_CALL)
            ]

    return learner, evaluate if row.evaluation else train


def one_by_one(row: Row, learner: Learner) -> Built:
    return metaopt(row, learner, Loop())


# steps that draw their tasks from files, and take Adam's step


def with_data(net: nn.Module, step: Step, draw: Callable[[], TaskBatch]) -> Callable[[], None]:
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters)

    def run() -> None:
        for parameter, gradient in zip(parameters, step(draw()), strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return run


def my_tasks(row: Row, learner: Learner, root: Path) -> Callable[[], TaskBatch]:
    """As meta-training draws them."""
    sampler = Images(Images.Config(root=str(root), size=28, split=f"{N_CLASSES}/0/0", duplicates="keep"))
    learner.augment = Augment(turn="class" if row.turned else "none")
    draw = torch.Generator().manual_seed(0)

    def batch() -> TaskBatch:
        drawn = draw_batch(learner, learner.spec, sampler, row.n_tasks, draw)
        assert isinstance(drawn, TaskBatch)
        return drawn

    return batch


def their_tasks(row: Row, draw: Draw) -> Callable[[], TaskBatch]:
    return lambda: TaskBatch(*map(torch.stack, zip(*(draw() for _ in range(row.n_tasks)), strict=True)))


# the textbook network, and peers on it


def textbook(row: Row, learner: Learner, head: bool = True) -> nn.Sequential:
    """Return torch's own layers with the learner's weights, in the same order."""
    layers: list[nn.Module] = []
    if isinstance(row.encoder, Conv4.Config):
        n_in = learner.spec.x_shape[0]
        for _ in range(4):
            stride = row.encoder.pool == "stride"
            layers += [
                nn.Conv2d(n_in, WIDTH, 3, 2 if stride else 1, padding=1),
                nn.GroupNorm(1, WIDTH)
                if row.encoder.norm == "layer"
                else nn.BatchNorm2d(WIDTH, track_running_stats=False),
                nn.ReLU(),
                *([] if stride else [nn.MaxPool2d(2)]),
            ]
            n_in = WIDTH
        layers.append(nn.Flatten())
        n_features = WIDTH * (4 if row.encoder.pool == "stride" else 1)
    else:
        layers = [nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU()]
        n_features = 40
    if head:
        layers.append(nn.Linear(n_features, learner.spec.n_outputs))
    net = nn.Sequential(*layers).to(next(learner.parameters()).dtype)
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), learner.parameters(), strict=True):
            mine.copy_(theirs)
    return net


def loss_of(learner: Learner) -> Callable[[Tensor, Tensor], Tensor]:
    return cross_entropy if learner.spec.kind == "classification" else mse_loss


def gradients(net: nn.Module, batch: TaskBatch, task_loss: Callable[..., Tensor]) -> Sequence[Tensor]:
    """Return the mean of the tasks' gradients, as peers' examples take it: task by task."""
    net.zero_grad()
    for task in zip(*batch.tensors(), strict=True):
        (task_loss(*task) / len(batch)).backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def learn2learn_maml(row: Row, learner: Learner) -> Built:
    from peers import learn2learn as l2l

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    maml = l2l().algorithms.MAML(net, lr=config.inner_lr, first_order=config.first_order)

    def adapted(support_x: Tensor, support_y: Tensor) -> Any:
        one = maml.clone(first_order=row.evaluation or config.first_order)
        for _ in range(config.test_steps if row.evaluation else config.inner_steps):
            one.adapt(loss(one(support_x), support_y))
        return one

    def evaluate(batch: TaskBatch) -> Sequence[Tensor]:
        return [adapted(sx, sy)(qx).detach() for sx, sy, qx, _ in zip(*batch.tensors(), strict=True)]

    if row.evaluation:
        return net, evaluate
    return net, lambda batch: gradients(net, batch, lambda sx, sy, qx, qy: loss(adapted(sx, sy)(qx), qy))


def higher_maml(row: Row, learner: Learner) -> Built:
    import higher

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    inner = torch.optim.SGD(net.parameters(), lr=config.inner_lr)

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (one, optimizer):
            for _ in range(config.inner_steps):
                optimizer.step(loss(one(sx), sy))
            return loss(one(qx), qy)

    return net, lambda batch: gradients(net, batch, task_loss)


def torchopt_maml(row: Row, learner: Learner) -> Built:
    import torchopt

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    inner = torchopt.MetaSGD(net, lr=config.inner_lr)

    def step(batch: TaskBatch) -> Sequence[Tensor]:
        parameters = list(net.parameters())
        net_state, inner_state = torchopt.extract_state_dict(net), torchopt.extract_state_dict(inner)
        for sx, sy, qx, qy in zip(*batch.tensors(), strict=True):
            for _ in range(config.inner_steps):
                inner.step(loss(net(sx), sy))
            (loss(net(qx), qy) / len(batch)).backward()
            torchopt.recover_state_dict(net, net_state)
            torchopt.recover_state_dict(inner, inner_state)
        result = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return [gradient for gradient in result if gradient is not None]

    return net, step


def learn2learn_anil(row: Row, learner: Learner) -> Built:
    from peers import learn2learn as l2l

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    body, head = net[:-1], l2l().algorithms.MAML(net[-1], lr=config.inner_lr)

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        features, one = body(sx), head.clone()
        for _ in range(config.inner_steps):
            one.adapt(loss(one(features), sy))
        return loss(one(body(qx)), qy)

    return net, lambda batch: gradients(net, batch, task_loss)


def learn2learn_reptile(row: Row, learner: Learner) -> Built:
    """As in its example: a copy of the network, trained by an optimiser of torch's."""
    net, loss, config = textbook(row, learner), loss_of(learner), learner.config

    def step(batch: TaskBatch) -> Sequence[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in net.parameters()]
        for sx, sy, qx, qy in zip(*batch.tensors(), strict=True):
            x, y, one = torch.cat([sx, qx]), torch.cat([sy, qy]), copy.deepcopy(net)
            inner = torch.optim.Adam(one.parameters(), lr=config.inner_lr, betas=(0.0, 0.999))
            for number in range(config.inner_steps):
                rows = [(number * config.inner_batch + i) % len(x) for i in range(config.inner_batch)]
                inner.zero_grad()
                loss(one(x[rows]), y[rows]).backward()
                inner.step()
            with torch.no_grad():
                moved = [start - end for start, end in zip(net.parameters(), one.parameters(), strict=True)]
            total = [so_far + one / len(batch) for so_far, one in zip(total, moved, strict=True)]
        return total

    return net, step


def learn2learn_protonet(row: Row, learner: Learner) -> Built:
    from peers import learn2learn as l2l

    net = textbook(row, learner, head=False)

    def predictions(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
        classifier = l2l().nn.PrototypicalClassifier(net(sx), sy)
        answer: Tensor = classifier(net(qx))
        return answer

    return net, scored(row, net, predictions)


def easyfsl_protonet(row: Row, learner: Learner) -> Built:
    """Its scores are distances that are not squared; they are squared here, so that it computes the same."""
    from peers import import_torchvision

    import_torchvision()
    from easyfsl.methods import PrototypicalNetworks

    net = textbook(row, learner, head=False)
    method = PrototypicalNetworks(net)

    def predictions(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
        method.process_support_set(sx, sy)
        answer: Tensor = -method(qx).square()
        return answer

    return net, scored(row, net, predictions)


def scored(row: Row, net: nn.Module, predictions: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    def evaluate(batch: TaskBatch) -> Sequence[Tensor]:
        with torch.no_grad():
            return [predictions(sx, sy, qx) for sx, sy, qx, _ in zip(*batch.tensors(), strict=True)]

    if row.evaluation:
        return evaluate
    return lambda batch: gradients(net, batch, lambda sx, sy, qx, qy: cross_entropy(predictions(sx, sy, qx), qy))


STRIDES = Conv4.Config(width=WIDTH, pool="stride", norm="batch")
L2L: dict[str, Any] = {"learn2learn": learn2learn_maml}
MAMLS = L2L | {"higher": higher_maml, "torchopt": torchopt_maml}
PROTONETS = {"learn2learn": learn2learn_protonet, "easyfsl": easyfsl_protonet}
SINUSOIDS: dict[str, Any] = {"encoder": MLP.Config(), "size": (1, 10, 10), "n_tasks": 25}
ONE_STEP, FIVE_STEPS = MAML.Config(inner_lr=LR), MAML.Config(inner_lr=0.1, inner_steps=5)
FIRST_ORDER = MAML.Config(inner_lr=0.1, inner_steps=5, first_order=True)


def protonet(name: str, target: float, size: tuple[int, int, int] = (5, 1, 15), **rest: Any) -> Row:
    return Row(f"ProtoNet {name}", target, ProtoNet, ProtoNet.Config(), PROTONETS, size=size, **rest)


ROWS = {
    row.name: row
    for row in (
        Row("MAML, max-pool", 1.7, MAML, ONE_STEP, MAMLS),
        Row("MAML, max-pool, with data and Adam", 2.1, MAML, ONE_STEP, L2L, data=True, turned=True),
        Row("MAML, strides", 1.25, MAML, ONE_STEP, MAMLS, STRIDES),
        Row("MAML, strides, with data and Adam", 2.4, MAML, ONE_STEP, L2L, STRIDES, data=True, turned=True),
        Row("MAML, max-pool, layer norm", 1.7, MAML, ONE_STEP, MAMLS, Conv4.Config(width=WIDTH)),
        Row("MAML, 5 steps, 16 tasks", 1.7, MAML, FIVE_STEPS, L2L, n_tasks=16),
        Row("FOMAML, 5 steps", 1.6, MAML, FIRST_ORDER, L2L),
        Row("Reptile, 5 steps", 1.3, Reptile, Reptile.Config(), {"learn2learn": learn2learn_reptile}),
        Row("ANIL, 5 head steps", 1.8, ANIL, ANIL.Config(), {"learn2learn": learn2learn_anil}),
        protonet("5w1s", 1.6),
        protonet("5w1s, with data and Adam", 1.9, data=True),
        protonet("5w5s, with data and Adam", 2.0, (5, 5, 15), data=True),
        protonet("20w1s, with data and Adam", 2.3, (20, 1, 15), data=True),
        protonet("20w5s, with data and Adam", 2.2, (20, 5, 15), data=True),
        protonet("5w1s, bfloat16, with data and Adam", 3.1, data=True, precision="bfloat16"),
        protonet("20w5s, bfloat16, with data and Adam", 3.1, (20, 5, 15), data=True, precision="bfloat16"),
        Row("sinusoid MAML, 1 step", 15, MAML, MAML.Config(inner_lr=0.01), MAMLS, **SINUSOIDS),
        Row("sinusoid MAML, 5 steps", 15, MAML, MAML.Config(inner_lr=0.01, inner_steps=5), MAMLS, **SINUSOIDS),
        Row("MANN, batched", 8, MANN, MANN.Config(), {"one by one": one_by_one}, **SINUSOIDS),
        Row("LSTM meta-learner, batched", 8, LSTMMetaLearner, LSTMMetaLearner.Config(), {"one by one": one_by_one},
            **SINUSOIDS),
        protonet("5w1s, evaluation", 2.5, n_tasks=16, evaluation=True),
        Row("MAML, 3 steps, evaluation", 2.5, MAML, ONE_STEP, L2L, n_tasks=16, evaluation=True),
        Row("MAML, max-pool, two threads", 1.7, MAML, ONE_STEP, L2L, threads=2),
        Row("MAML, strides, two threads", 1.25, MAML, ONE_STEP, L2L, STRIDES, threads=2),
        protonet("5w1s, two threads", 1.6, threads=2),
    )
}  # fmt: skip


# one contender's process


def work(row: Row, contender: str, root: Path) -> None:
    """Answer a parent's lines, in JSON: "check FILE", "flops", or a number of steps to take."""
    torch.set_num_threads(1)  # until clocks run: a child that is to check inherits no threads, and would wait for them
    if not row.evaluation:  # a study trains by hundreds of calls, and evaluates 600 tasks in 38 that it does not record
        executors.RECORD_AFTER = executors.RECORD_LOOP_AFTER = 2
    build = metaopt if contender == "metaopt" else row.peers[contender]
    learner, batch = row.build(torch.float32)
    if contender == "metaopt" and row.precision != "float32":
        learner.encoder.precision = row.precision
    net, step = build(row, learner)
    run: Callable[[], object] = lambda: step(batch)  # noqa: E731 - or what follows
    if row.data:
        match contender:
            case "metaopt":
                draw = my_tasks(row, learner, root)
            case "learn2learn":
                draw = their_tasks(row, learn2learn_tasks(root, *row.size, turned=row.turned))
            case _:
                draw = their_tasks(row, easyfsl_tasks(root, *row.size))
        run = with_data(net, step, draw)
    for line in sys.stdin:
        answer: dict[str, float] = {}
        match line.split(maxsplit=1):
            case ["check", file]:
                in_child(lambda: check(row, contender, build, Path(file.strip())))
            case ["flops"]:
                with FlopCounterMode(display=False) as counter:
                    step(batch)
                answer = {"flops": counter.get_total_flops()}
            case [number]:
                torch.set_num_threads(row.threads)
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(int(number)):
                    run()
                answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            case _:
                raise ValueError(line)
        answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


def check(row: Row, contender: str, build: Callable[..., Built], file: Path) -> None:
    """Write what the step gives in float64."""
    learner, batch = row.build(torch.float64)
    few = TaskBatch(*(tensor[:CHECKED] for tensor in batch.tensors()))
    _, step = build(row, learner)
    for _ in range(3 if contender == "metaopt" else 1):  # metaopt's second is recorded, its third replayed
        result = list(step(few))
    torch.save(torch.cat([tensor.detach().reshape(-1) for tensor in result]), file)


def in_child(call: Callable[[], None]) -> None:
    """Call it where the memory that it takes is not counted."""
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the check failed")


def matmul_peak() -> float:
    """Return float32 operations a second of CPU time that one thread reaches in products of large matrices."""
    torch.set_num_threads(1)
    n, best = 1536, 0.0
    a, b = torch.rand(n, n), torch.rand(n, n)
    for _ in range(10):
        started = time.process_time()
        a @ b
        best = max(best, 2 * n**3 / (time.process_time() - started))
    return best


# the run


class Contender:
    """A process, to which one speaks in lines."""

    def __init__(self, row: Row, name: str, root: Path) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--work", row.name, name, str(root)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        threads = {"OMP_NUM_THREADS": str(row.threads), "METAOPT_CACHE": f"{root}-cache"}
        self.name = name
        self.process = subprocess.Popen(command, text=True, env=os.environ | threads, **pipes)
        self.turns: list[dict[str, float]] = []
        self.steps = 1

    def ask(self, line: str) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        while answer and not answer.startswith("{"):  # what a peer prints
            answer = self.process.stdout.readline()
        if not answer:
            assert isinstance(self.process.args, list)
            raise SystemExit(
                f"{self.name} died at {line!r}; say that to it alone: {' '.join(map(repr, self.process.args))}"
            )
        result: dict[str, float] = json.loads(answer)
        return result

    def turn(self) -> None:
        answer = self.ask(str(self.steps))
        self.turns.append(
            {clock: answer[clock] / self.steps for clock in ("wall", "cpu")} | {"megabytes": answer["megabytes"]}
        )

    def median(self, what: str) -> float:
        return statistics.median(turn[what] for turn in self.turns)


def measure(row: Row, seconds: float, turns: int, root: Path) -> dict[str, Any]:
    """Run a row and return what came out."""
    contenders = [Contender(row, name, root) for name in ("metaopt", *row.peers)]
    difference = compare(row, contenders, root)
    for contender in contenders:
        contender.ask("3" if contender.name == "metaopt" else "1")  # recording, and first calls
        contender.steps = max(1, round(seconds / contender.ask("1")["cpu"]))
    for _ in range(turns):
        for contender in contenders:
            contender.turn()
    flops = contenders[1].ask("flops")["flops"]
    for contender in contenders:
        assert contender.process.stdin is not None
        contender.process.stdin.close()
        contender.process.wait()
    return {
        "row": row.name,
        "target": row.target,
        "tasks": row.n_tasks,
        "threads": row.threads,
        "flops": flops,
        "difference": difference,
        "contenders": {
            contender.name: {clock: contender.median(clock) for clock in ("wall", "cpu", "megabytes")}
            | {"turns": contender.turns}
            for contender in contenders
        },
    }


def compare(row: Row, contenders: Sequence[Contender], root: Path) -> float:
    """Return the largest relative difference between contenders in float64; too large a one is an error."""
    results = []
    for contender in contenders:
        file = root.with_suffix(".pt")
        contender.ask(f"check {file}")
        results.append(torch.load(file))
    mine, *theirs = results
    worst = max(float((mine - other).norm() / other.norm()) for other in theirs)
    if worst > 1e-6:
        raise SystemExit(f"{row.name}: contenders differ by {worst:.1e} in float64, so their times say nothing")
    return worst


HEADER = (
    f"{'tasks a second':<38} {'metaopt':>8} {'peer':>8} {'':<11} {'ratio':>5} {'wall':>5} {'target':>6} {'peak':>5} "
    f"{'peer':>5} {'MB':>5} {'peer':>5}"
)


def line(result: Mapping[str, Any]) -> str:
    """Return a row beside its fastest peer."""
    mine = result["contenders"]["metaopt"]
    others = {name: one for name, one in result["contenders"].items() if name != "metaopt"}
    best = min(others, key=lambda name: others[name]["cpu"])
    rates = [result["tasks"] / one["cpu"] for one in (mine, others[best])]
    shares = [result["flops"] / one["cpu"] / result["peak"] for one in (mine, others[best])]
    return (
        f"{result['row']:<38} {rates[0]:>8,.1f} {rates[1]:>8,.1f} {best:<11} {rates[0] / rates[1]:>5.2f} "
        f"{min(one['wall'] for one in others.values()) / mine['wall']:>5.2f} {result['target']:>6} {shares[0]:>5.0%} "
        f"{shares[1]:>5.0%} {mine['megabytes']:>5.0f} {others[best]['megabytes']:>5.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure metaopt beside its peers.")
    parser.add_argument("rows", nargs="*", help="parts of names of rows; all if none")
    parser.add_argument("--json", type=Path, help="where all that was measured is written")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each contender, %(default)s if not said")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn, %(default)s if not said")
    parser.add_argument("--work", nargs=3, metavar=("ROW", "CONTENDER", "PICTURES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        name, contender, root = arguments.work
        work(ROWS[name], contender, Path(root))
        return
    chosen = [row for name, row in ROWS.items() if not arguments.rows or any(one in name for one in arguments.rows)]
    if not chosen:
        parser.error(f"no row is called so; there are: {'; '.join(ROWS)}")
    rows: dict[str, Any] = {}
    if arguments.rows and arguments.json:  # the others stay as they were measured
        rows = {row["row"]: row for row in json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]}
    peak = matmul_peak()
    print(HEADER)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "pictures"
        if any(row.data for row in chosen):
            write_pictures(Glyphs(Glyphs.Config(train_classes=N_CLASSES, size=OMNIGLOT)).pools["train"], root)
        for row in chosen:
            rows[row.name] = {**measure(row, arguments.seconds, arguments.turns, root), "peak": peak}
            print(line(rows[row.name]), flush=True)
            if arguments.json:  # after each row, as all of them take long
                whole = {"torch": torch.__version__, "rows": list(rows.values())}
                arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"a core's float32 matmul peak: {peak / 1e9:.0f} GFLOP/s of CPU time")


if __name__ == "__main__":
    main()
