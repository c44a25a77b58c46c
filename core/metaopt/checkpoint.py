"""A long meta-training on disk, from which it goes on where its process died, as if that had not happened.

A checkpoint is one safetensors file: the tensors that meta-training changes, and beside them as JSON how far it is,
which job it belongs to, and a checksum. Reading one runs no pickle and allocates no more than the job itself needs.
"""

import json
import logging
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Generator, Tensor

from metaopt.executor import Executor, Recorder
from metaopt.files import whole
from metaopt.learner import Learner

log = logging.getLogger(__name__)

EVERY = 30.0
"""CPU seconds between checkpoints. A meta-training that takes less is not kept, and is begun anew."""
COST = 0.01
"""The share of a meta-training's time that they may take: where a disk is slow or a learner large, they are fewer."""
SPEED = 2**26
"""Bytes a second that are written, as long as none have been."""
STATES = 4
"""Times a learner's own size that its state has: weights, their average, and two moments of Adam."""
FORMAT = 1
MAX_HEADER = 2**24  # bytes
ASIDE = ".unusable"


class Place(Protocol):
    """Where a checkpoint is kept. It travels with a job to the process that runs it."""

    def write(self, content: bytes) -> None:
        """Keep this in the place of what was there, whole or not at all."""

    def opened(self) -> AbstractContextManager[Path | None]:
        """Return a file of what was kept, for as long as it is read; None where nothing was."""

    def put_aside(self) -> str:
        """Take away what cannot be used, and say what became of it."""

    def remove(self) -> None:
        """Remove what is there, if anything is."""


@dataclass(frozen=True)
class File:
    """A checkpoint in a file of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, content: bytes) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with whole(self.path) as temporary:
            temporary.write_bytes(content)

    @contextmanager
    def opened(self) -> Iterator[Path | None]:
        yield self.path if self.path.exists() else None

    def put_aside(self) -> str:
        aside = self.path.with_suffix(ASIDE)
        self.path.replace(aside)
        return f"it is kept as {aside.name}"

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Moving:
    """What meta-training changes from step to step. torch's own generators belong to it too."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    """By parameter name; empty where none is taken."""
    draw: Generator
    """From which training tasks are drawn."""
    executor: Executor


class Checkpoint:
    """Where one meta-training is kept on its way, and what tells it from any other.

    `job` is JSON; a file of another job is not taken up. `notes` are the caller's, written and read with the rest.
    """

    def __init__(self, place: Place, job: Mapping[str, Any]) -> None:
        self.place, self.job = place, json.loads(json.dumps(job))
        self.notes: dict[str, Any] = {}
        self.earlier = 0.0
        """Seconds by the wall clock that it took before it was taken up."""
        self.began = time.monotonic()
        self.due: float | None = None
        """When the next is written, in CPU seconds of this process; None before meta-training has begun."""

    def keep(self, moving: Moving, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, where it is time for one. `progress` is JSON."""
        now = time.process_time()
        if self.due is None:
            self.due = now + max(EVERY, STATES * _size(moving.learner) / SPEED / COST)
        if now < self.due:
            return
        began = time.perf_counter()
        state = json.dumps(
            {
                "format": FORMAT,
                "job": self.job,
                "notes": self.notes,
                "seconds": self.earlier + time.monotonic() - self.began,
                "progress": progress,
                "calls": moving.executor.calls(moving.learner) if isinstance(moving.executor, Recorder) else [],
            }
        )
        tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                   for name, tensor in (_tensors(moving) | _random(moving)).items()}  # fmt: skip
        self.place.write(as_bytes(tensors, {"state": state, "crc": _crc(state, tensors)}))
        self.due = time.process_time() + max(EVERY, (time.perf_counter() - began) / COST)

    def resume(self, moving: Moving) -> dict[str, Any] | None:
        """Put what was kept in its place and return the progress; None where nothing was.

        What is damaged, or of another job, changes nothing and is put aside.
        """
        with self.place.opened() as path:
            if path is None:
                return None
            try:
                state, tensors = _read(path, MAX_HEADER + 2 * STATES * _size(moving.learner))
                if state["job"] != self.job:
                    raise ValueError("it is of another trial, or of other settings")
                _put(tensors, state["calls"], moving)
                self.earlier = float(state["seconds"])
                self.notes.update(state["notes"])
                progress: dict[str, Any] = state["progress"]
            except (
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                RuntimeError,
                RecursionError,
                SafetensorError,
            ) as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                log.warning("%s cannot be gone on from (%s): its trial begins anew; %s",
                            self.place, reason, self.place.put_aside())  # fmt: skip
                return None
        log.info("%s: goes on from %s", self.place, progress)
        return progress


def clear(folder: Path) -> None:
    """Remove the checkpoints in a folder, and the folder where nothing else is in it."""
    if folder.is_dir():
        for path in folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _tensors(moving: Moving) -> dict[str, Tensor]:
    """Return by name the numbers that steps change: the learner's, their average, the optimiser's."""
    learner, found = moving.learner, dict[str, Tensor]()
    for name, tensor in (*learner.named_parameters(), *learner.named_buffers()):
        found[f"learner.{name}"] = tensor
    for name, tensor in moving.average.items():
        found[f"average.{name}"] = tensor
    for index, values in moving.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if value is not None:
                assert isinstance(value, Tensor), f"{type(moving.optimizer).__name__} keeps {key}, which is no tensor"
                found[f"optimizer.{index}.{key}"] = value
    return found


def _random(moving: Moving) -> dict[str, Tensor]:
    """Return by name the states of generators."""
    found = {"random.draw": moving.draw.get_state(), "random.torch": torch.get_rng_state()}
    device = next((p.device for p in moving.learner.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        found["random.cuda"] = torch.cuda.get_rng_state(device)
    return found


def _put(tensors: dict[str, Tensor], calls: list[Any], moving: Moving) -> None:
    """Put all in its place. What does not fit raises before anything is changed."""
    here = _tensors(moving)  # of an optimiser that has not taken a step yet: nothing of its own
    random, states = _random(moving), dict[int, dict[str, Tensor]]()
    parameters = [p for group in moving.optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            if tensor.ndim and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"{name} has another shape")
            states.setdefault(int(index), {})[key] = tensor
            continue
        like = here.get(name, random.get(name))
        if like is None or like.shape != tensor.shape or like.dtype != tensor.dtype:
            raise ValueError(f"{name} is of another learner")
    if missing := (here.keys() | random.keys()) - tensors.keys():
        raise ValueError(f"it lacks {min(missing)}")
    Generator().set_state(tensors["random.draw"])  # which refuses what is no state
    Generator().set_state(tensors["random.torch"])
    if isinstance(moving.executor, Recorder):
        moving.executor.take_up(moving.learner, calls)
    moving.optimizer.load_state_dict({"state": states, "param_groups": moving.optimizer.state_dict()["param_groups"]})
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(tensors[name])
    moving.draw.set_state(tensors["random.draw"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], next(moving.learner.parameters()).device)


def _read(path: Path, largest: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state and the tensors in a file. Raises ValueError or SafetensorError where it is not as written."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > largest:
        raise ValueError("it is no plain file, or far too large")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(MAX_HEADER, found.st_size - 8):
        raise ValueError(f"it announces a header of {header:,} bytes")
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    if metadata["crc"] != _crc(metadata["state"], tensors):
        raise ValueError("it is not as it was written")
    state = json.loads(metadata["state"])
    if state["format"] != FORMAT:
        raise ValueError(f"it has the format {state['format']!r}, and this metaopt reads {FORMAT}")
    return state, tensors


def _size(learner: Learner) -> int:
    return sum(tensor.nbytes for tensor in (*learner.parameters(), *learner.buffers()))


def _crc(state: str, tensors: Mapping[str, Tensor]) -> str:
    crc = zlib.crc32(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
