"""On a CPU, what is for CUDA leaves everything as it is."""

import torch

from metaopt.cuda import graphed, moved, take_turn
from metaopt.graph import record


def test_a_process_that_computes_on_the_cpu_takes_no_turn() -> None:
    take_turn(torch.device("cpu"), 3)
    assert not torch.cuda.is_initialized()


def test_a_tensor_that_stays_on_the_cpu_is_itself() -> None:
    tensor = torch.ones(3)
    assert moved(tensor, torch.device("cpu")) is tensor


def test_on_a_cpu_what_was_recorded_is_replayed_as_it_is() -> None:
    inputs = [torch.arange(3.0), torch.ones(3)]
    replay = record(lambda x, y: (x * y + x,), inputs)
    assert graphed(replay, inputs) is replay
    assert graphed(replay, []) is replay
