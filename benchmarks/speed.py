"""How fast metaopt meta-trains and evaluates, beside learn2learn, higher, TorchOpt and easyfsl, in one run.

    make bench-speed

Every contender of a row runs in a process of its own, on the same tasks and from the same weights, and they take turns,
A B A B. First their gradients (or predictions) are compared in float64; a row whose contenders differ is an error. Then
each turn runs as many steps as take half a second; numbers are medians over turns of CPU time (`--clock wall` for the
other; both are in the JSON file), and the ratio is that of the fastest peer's to metaopt's. `peak` is the share of the
float32 matmul peak of a core, measured in the same run, of the floating-point operations that the textbook network
needs, as torch counts them for the first peer. `MB` is what a contender's process had resident at most.

metaopt's steps are those of `metaopt study run`: `Learner.outer_step` or `train.predictions_of` under the executor that
a study takes. With pictures a step has 4 tasks, a study's default; more would change nothing, as all go task by task.
"""

import argparse
import copy
import json
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
from metaopt.executor import Executor, Loop, choose
from metaopt.learner import Gradients, Learner
from metaopt.task import TaskBatch
from metaopt.train import TASKS_A_CALL, predictions_of
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP
from metaopt_gradient.anil import ANIL
from metaopt_gradient.maml import MAML
from metaopt_gradient.reptile import Reptile
from metaopt_memory.mann import MANN
from metaopt_metric.protonet import ProtoNet
from metaopt_optimizer.lstm_meta import LSTMMetaLearner
from metaopt_tasks.glyphs import Glyphs
from metaopt_tasks.sinusoid import Sinusoid

SECONDS, TURNS = 0.5, 5
WIDTH = 64
LR = 0.4
Step = Callable[[], Sequence[Tensor]]
"""Does a step's work and returns what must be equal: gradients in the order of the parameters, or predictions."""


@dataclass(frozen=True)
class Row:
    """The same work for everybody."""

    name: str
    target: float
    learner: type[Learner]
    config: Any
    peers: Mapping[str, Callable[["Row", Learner, TaskBatch], Step]]
    encoder: Any = field(default_factory=lambda: Conv4.Config(width=WIDTH, pool="max", norm="batch"))
    size: tuple[int, int, int] = (5, 1, 15)
    n_tasks: int = 4
    evaluation: bool = False
    exact: bool = True
    """Whether contenders compute one result."""

    def build(self, dtype: torch.dtype) -> tuple[Learner, TaskBatch]:
        """Return the learner with its weights, and the tasks."""
        draw = torch.Generator().manual_seed(0)
        sampler = Glyphs(Glyphs.Config()) if isinstance(self.encoder, Conv4.Config) else Sinusoid(Sinusoid.Config())
        spec = sampler.spec(*self.size)
        batch = sampler.draw("train", spec, self.n_tasks, draw)
        torch.manual_seed(0)
        encoder = (Conv4 if isinstance(self.encoder, Conv4.Config) else MLP)(spec.x_shape, self.encoder)
        learner = self.learner(spec, encoder, self.config).to(dtype)
        as_dtype = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in batch.tensors()]
        return learner.train(not self.evaluation), TaskBatch(*as_dtype)


# metaopt


def metaopt(row: Row, learner: Learner, batch: TaskBatch, executor: Executor | None = None) -> Step:
    executor = executor or choose("auto", learner.spec)
    parameters = [name for name, _ in learner.named_parameters()]

    def train() -> Sequence[Tensor]:
        handed: list[Gradients] = []
        learner.outer_step(batch, executor, handed.append)
        return [handed[0][name] for name in parameters]

    def evaluate() -> Sequence[Tensor]:
        with torch.no_grad():
            return [
                predictions_of(learner, executor, TaskBatch(*(t[i : i + TASKS_A_CALL] for t in batch.tensors())))
                for i in range(0, len(batch), TASKS_A_CALL)
            ]

    return evaluate if row.evaluation else train


def one_by_one(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    return metaopt(row, learner, batch, Loop())


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


def learn2learn_maml(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    from peers import learn2learn as l2l

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    maml = l2l().algorithms.MAML(net, lr=config.inner_lr, first_order=config.first_order)

    def adapted(support_x: Tensor, support_y: Tensor) -> Any:
        one = maml.clone(first_order=row.evaluation or config.first_order)
        for _ in range(config.test_steps if row.evaluation else config.inner_steps):
            one.adapt(loss(one(support_x), support_y))
        return one

    def evaluate() -> Sequence[Tensor]:
        return [adapted(sx, sy)(qx).detach() for sx, sy, qx, _ in zip(*batch.tensors(), strict=True)]

    if row.evaluation:
        return evaluate
    return lambda: gradients(net, batch, lambda sx, sy, qx, qy: loss(adapted(sx, sy)(qx), qy))


def higher_maml(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    import higher

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    inner = torch.optim.SGD(net.parameters(), lr=config.inner_lr)

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (one, optimizer):
            for _ in range(config.inner_steps):
                optimizer.step(loss(one(sx), sy))
            return loss(one(qx), qy)

    return lambda: gradients(net, batch, task_loss)


def torchopt_maml(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    import torchopt

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    inner = torchopt.MetaSGD(net, lr=config.inner_lr)

    def step() -> Sequence[Tensor]:
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

    return step


def learn2learn_anil(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    from peers import learn2learn as l2l

    net, loss, config = textbook(row, learner), loss_of(learner), learner.config
    body, head = net[:-1], l2l().algorithms.MAML(net[-1], lr=config.inner_lr)

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        features, one = body(sx), head.clone()
        for _ in range(config.inner_steps):
            one.adapt(loss(one(features), sy))
        return loss(one(body(qx)), qy)

    return lambda: gradients(net, batch, task_loss)


def learn2learn_reptile(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    """As in its example: a copy of the network, trained by an optimiser of torch's."""
    net, loss, config = textbook(row, learner), loss_of(learner), learner.config

    def step() -> Sequence[Tensor]:
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

    return step


def learn2learn_protonet(row: Row, learner: Learner, batch: TaskBatch) -> Step:
    from peers import learn2learn as l2l

    net = textbook(row, learner, head=False)

    def predictions(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
        classifier = l2l().nn.PrototypicalClassifier(net(sx), sy)
        answer: Tensor = classifier(net(qx))
        return answer

    def evaluate() -> Sequence[Tensor]:
        with torch.no_grad():
            return [predictions(sx, sy, qx) for sx, sy, qx, _ in zip(*batch.tensors(), strict=True)]

    if row.evaluation:
        return evaluate
    return lambda: gradients(net, batch, lambda sx, sy, qx, qy: cross_entropy(predictions(sx, sy, qx), qy))


def easyfsl_protonet(row: Row, learner: Learner, batch: TaskBatch) -> Step:
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

    def evaluate() -> Sequence[Tensor]:
        with torch.no_grad():
            return [predictions(sx, sy, qx) for sx, sy, qx, _ in zip(*batch.tensors(), strict=True)]

    if row.evaluation:
        return evaluate
    return lambda: gradients(net, batch, lambda sx, sy, qx, qy: cross_entropy(predictions(sx, sy, qx), qy))


STRIDES = Conv4.Config(width=WIDTH, pool="stride", norm="batch")
MAMLS = {"learn2learn": learn2learn_maml, "higher": higher_maml, "torchopt": torchopt_maml}
PROTONETS = {"learn2learn": learn2learn_protonet, "easyfsl": easyfsl_protonet}
SINUSOIDS: dict[str, Any] = {"encoder": MLP.Config(), "size": (1, 10, 10), "n_tasks": 25}
ROWS = {
    row.name: row
    for row in (
        Row("MAML, max-pool", 1.7, MAML, MAML.Config(inner_lr=LR), MAMLS),
        Row("MAML, strides", 1.25, MAML, MAML.Config(inner_lr=LR), MAMLS, STRIDES),
        Row("MAML, max-pool, layer norm", 1.7, MAML, MAML.Config(inner_lr=LR), MAMLS, Conv4.Config(width=WIDTH)),
        Row("FOMAML, 5 steps", 1.6, MAML, MAML.Config(inner_lr=0.1, inner_steps=5, first_order=True),
            {"learn2learn": learn2learn_maml}),
        Row("Reptile, 5 steps", 1.3, Reptile, Reptile.Config(), {"learn2learn": learn2learn_reptile}),
        Row("ANIL, 5 head steps", 1.8, ANIL, ANIL.Config(), {"learn2learn": learn2learn_anil}),
        Row("ProtoNet 5w1s", 1.6, ProtoNet, ProtoNet.Config(), PROTONETS),
        Row("ProtoNet 5w5s", 1.6, ProtoNet, ProtoNet.Config(), PROTONETS, size=(5, 5, 15)),
        Row("ProtoNet 20w1s", 1.6, ProtoNet, ProtoNet.Config(), PROTONETS, size=(20, 1, 15)),
        Row("ProtoNet 20w5s", 1.6, ProtoNet, ProtoNet.Config(), PROTONETS, size=(20, 5, 15)),
        Row("sinusoid MAML, 1 step", 15, MAML, MAML.Config(inner_lr=0.01), MAMLS, **SINUSOIDS),
        Row("sinusoid MAML, 5 steps", 15, MAML, MAML.Config(inner_lr=0.01, inner_steps=5), MAMLS, **SINUSOIDS),
        Row("evaluate ProtoNet 5w1s", 2.5, ProtoNet, ProtoNet.Config(), PROTONETS, n_tasks=16, evaluation=True),
        Row("evaluate MAML, 3 steps", 2.5, MAML, MAML.Config(inner_lr=LR), {"learn2learn": learn2learn_maml},
            n_tasks=16, evaluation=True),
        Row("MANN, batched", 8, MANN, MANN.Config(), {"one by one": one_by_one}, **SINUSOIDS),
        Row("LSTM meta-learner, batched", 8, LSTMMetaLearner, LSTMMetaLearner.Config(), {"one by one": one_by_one},
            **SINUSOIDS),
    )
}  # fmt: skip


# one contender's process


def work(row: Row, contender: str, threads: int) -> None:
    """Answer a parent's lines, in JSON: "check FILE", "flops", or a number of steps to take."""
    torch.set_num_threads(threads)
    if not row.evaluation:  # a study trains by hundreds of calls, and evaluates 600 tasks in 38 that it does not record
        executors.RECORD_AFTER = executors.RECORD_LOOP_AFTER = 2
    build = metaopt if contender == "metaopt" else row.peers[contender]
    step = build(row, *row.build(torch.float32))
    for line in sys.stdin:
        match line.split(maxsplit=1):
            case ["check", file]:
                learner, batch = row.build(torch.float64)
                few = TaskBatch(*(tensor[:4] for tensor in batch.tensors()))
                checked = build(row, learner, few)
                for _ in range(3):  # metaopt's second is recorded, its third replayed
                    result = list(checked())
                flat = [tensor.detach().reshape(-1) for tensor in result]
                torch.save(torch.cat(flat), file.strip())
                answer: dict[str, float] = {}
            case ["flops"]:
                with FlopCounterMode(display=False) as counter:
                    step()
                answer = {"flops": counter.get_total_flops()}
            case [number]:
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(int(number)):
                    step()
                answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            case _:
                raise ValueError(line)
        answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


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

    def __init__(self, row: Row, name: str, threads: int) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--work", row.name, name, "--threads", str(threads)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.name, self.process = name, subprocess.Popen(command, text=True, **pipes)
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
            raise SystemExit(f"{self.name} died; run it alone: {' '.join(map(str, self.process.args))}")
        result: dict[str, float] = json.loads(answer)
        return result

    def turn(self) -> None:
        answer = self.ask(str(self.steps))
        self.turns.append({clock: answer[clock] / self.steps for clock in ("wall", "cpu")} | answer_of(answer))

    def median(self, what: str) -> float:
        return statistics.median(turn[what] for turn in self.turns)


def answer_of(answer: dict[str, float]) -> dict[str, float]:
    return {"megabytes": answer["megabytes"]}


def measure(row: Row, threads: int, turns: int, scratch: Path) -> dict[str, Any]:
    """Run a row and return what came out."""
    contenders = [Contender(row, name, threads) for name in ("metaopt", *row.peers)]
    difference = compare(row, contenders, scratch)
    flops = contenders[1].ask("flops")["flops"]
    for contender in contenders:
        contender.ask("3")  # recording, and first calls
        contender.steps = max(1, round(SECONDS / contender.ask("1")["cpu"]))
    for _ in range(turns):
        for contender in contenders:
            contender.turn()
    for contender in contenders:
        assert contender.process.stdin is not None
        contender.process.stdin.close()
        contender.process.wait()
    return {
        "row": row.name,
        "target": row.target,
        "tasks": row.n_tasks,
        "flops": flops,
        "difference": difference,
        "contenders": {
            contender.name: {clock: contender.median(clock) for clock in ("wall", "cpu", "megabytes")}
            | {"turns": contender.turns}
            for contender in contenders
        },
    }


def compare(row: Row, contenders: Sequence[Contender], scratch: Path) -> float:
    """Return the largest relative difference between contenders in float64; too large a one is an error."""
    results = []
    for contender in contenders:
        file = scratch / "result.pt"
        contender.ask(f"check {file}")
        results.append(torch.load(file))
    mine, *theirs = results
    worst = max(float((mine - other).norm() / other.norm()) for other in theirs)
    if worst > 1e-6:
        raise SystemExit(f"{row.name}: contenders differ by {worst:.1e} in float64, so their times say nothing")
    return worst


def table(results: Sequence[dict[str, Any]], peak: float, clock: str, threads: int) -> str:
    lines = [
        f"{'ms a task of ' + clock + ' time, ' + str(threads) + ' thread' + 's' * (threads > 1):<42} "
        f"{'metaopt':>8} {'peer':>8} {'':<12} {'ratio':>6} {'target':>7} {'peak':>5} {'peers':>6} {'MB':>6} {'peer':>6}"
    ]
    for result in results:
        mine = result["contenders"]["metaopt"]
        others = {name: one for name, one in result["contenders"].items() if name != "metaopt"}
        best = min(others, key=lambda name: others[name][clock])
        share = [result["flops"] / one["cpu"] / peak for one in (mine, others[best])]
        ms = [1000 * one[clock] / result["tasks"] for one in (mine, others[best])]
        lines.append(
            f"{result['row']:<42} {ms[0]:>8.3f} {ms[1]:>8.3f} {best:<12} {ms[1] / ms[0]:>6.2f} {result['target']:>7} "
            f"{share[0]:>5.0%} {share[1]:>6.0%} {mine['megabytes']:>6.0f} {others[best]['megabytes']:>6.0f}"
        )
    lines.append(f"a core's float32 matmul peak: {peak / 1e9:.0f} GFLOP/s of CPU time")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure metaopt beside its peers.")
    parser.add_argument("rows", nargs="*", help="parts of names of rows; all if none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--work", nargs=2, metavar=("ROW", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(ROWS[arguments.work[0]], arguments.work[1], arguments.threads)
        return
    chosen = [row for name, row in ROWS.items() if not arguments.rows or any(one in name for one in arguments.rows)]
    if not chosen:
        parser.error(f"no row is called so; there are: {'; '.join(ROWS)}")
    peak = matmul_peak()
    whole: dict[str, Any] = {"peak": peak, "threads": arguments.threads, "torch": torch.__version__, "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        for row in chosen:
            whole["rows"].append(measure(row, arguments.threads, arguments.turns, Path(scratch)))
            print(table(whole["rows"][-1:], peak, arguments.clock, arguments.threads).splitlines()[1], flush=True)
            if arguments.json:  # after each row, as all of them take long
                arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print()
    print(table(whole["rows"], peak, arguments.clock, arguments.threads))


if __name__ == "__main__":
    main()
