"""An adapted learner as a program of torch alone: what answers queries, with all that was learned from the support set.

The program is recorded with the support set as constants, and what follows from constants alone, the adaptation, is
computed then and there: a query costs the encoder and a few operators.
"""

import json
import math
import operator
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from metaopt.augment import turned
from metaopt.errors import InputError
from metaopt.files import whole
from metaopt.learner import Learner
from metaopt.train import averaged

CLASSES = "classes.json"
"""The extra file in the program that holds the names of its columns."""
TOLERANCE = 1e-4
"""The most that a probability may differ from the learner's own."""


class _Answer(nn.Module):
    """Maps queries (n, *x_shape) to probabilities (n, n_way)."""

    support_x: Tensor

    def __init__(self, learner: Learner, support_x: Tensor, support_y: Tensor, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.learner = learner
        self.register_buffer("support_x", support_x)
        self.register_buffer("support_y", support_y)

    def forward(self, query_x: Tensor) -> Tensor:
        turns = range(self.learner.augment.test_turns)
        scores = [self.learner(turned(self.support_x, n), self.support_y, turned(query_x, n)) for n in turns]
        return (averaged(scores) / self.temperature).softmax(1)


def export(
    learner: Learner,
    support_x: Tensor,
    support_y: Tensor,
    classes: NDArray[np.generic],
    path: Path,
    temperature: float = 1.0,
) -> None:
    """Write the program, probabilities (n, n_way) of queries (n, *x_shape) float32, for any n; and the classes' names.

    Raises InputError where the learner's operators depend on the queries otherwise than by their values, as those of
    transductive learners and of scikit-learn's do, or where the program does not predict the same.
    """
    if learner.augment.test_copies > 1:
        raise InputError(
            f"the model averages over {learner.augment.test_copies} jittered views of a task, which no program "
            "repeats; use metaopt.load"
        )
    x_shape = learner.spec.x_shape
    answer = _Answer(learner, support_x, support_y, temperature).eval().requires_grad_(False)
    example = torch.linspace(0, 1, 3 * math.prod(x_shape)).view(3, *x_shape).to(support_x.device)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of its own inner workings
            program = _recorded(_folded(_recorded(answer, example).module()), example)
            for n in (1, 3):
                torch.testing.assert_close(program.module()(example[:n]), answer(example[:n]), rtol=0, atol=TOLERANCE)
    except Exception as error:  # torch raises a dozen kinds on what it cannot record
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{learner.name} cannot be exported as one program of torch ({reason[:200]}); use metaopt.load, or a "
            "metric learner such as protonet"
        ) from None
    names = json.dumps([str(name) for name in classes.tolist()])
    try:
        with whole(path) as temporary, temporary.open("wb") as file:
            torch.export.save(program, file, extra_files={CLASSES: names})
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give a file that you may write") from None


def _recorded(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    queries = torch.export.Dim("queries", min=1, max=2**20)
    return torch.export.export(module, (example,), dynamic_shapes=({0: queries},), strict=False)


def _folded(module: nn.Module) -> nn.Module:
    """Return a recorded module in which whatever does not depend on its input is a constant."""
    assert isinstance(module, GraphModule)
    graph, values = module.graph, dict[Node, Any]()
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(node.target)(module)
        elif node.op == "call_function" and all(one in values for one in node.all_input_nodes) and not _random(node):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(values.items()):
        if node.op == "call_function" and isinstance(value, Tensor) and not node.users.keys() <= values.keys():
            module.register_buffer(f"folded_{number}", value.detach().clone(memory_format=torch.contiguous_format))
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(f"folded_{number}"))
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
