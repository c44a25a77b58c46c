"""What is different on CUDA. On a CPU each of these does nothing, and nothing else of them has been run so far."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before a capture, in which libraries set themselves up; torch's documentation has as many."""
log = logging.getLogger(__name__)
Operators = Callable[..., Sequence[Tensor]]


def take_turn(device: torch.device, number: int) -> None:
    """Let this process compute on its CUDA device: processes, by their numbers, take turns among those there are."""
    if device.type == "cuda":
        torch.cuda.set_device(number % torch.cuda.device_count())


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from page-locked memory to CUDA, so that nobody waits for the copy."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def graphed(run: Operators, inputs: Sequence[Tensor]) -> Operators:
    """Return `run` captured in a CUDA graph, for inputs of these shapes: one launch for all of its operators.

    On a CPU, or where an operator cannot be captured, it is `run` itself.
    """
    if not inputs or not all(tensor.is_cuda for tensor in inputs):
        return run
    held = [tensor.clone() for tensor in inputs]  # a graph reads and writes where it was captured
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]  # torch has no types here
    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(*held)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            results = run(*held)
    except RuntimeError as error:
        log.info("not captured in a CUDA graph (%s)", next(iter(str(error).splitlines()), ""))
        return run

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        for place, tensor in zip(held, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return [result.clone() for result in results]

    return replay
