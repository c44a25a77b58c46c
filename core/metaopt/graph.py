"""Record the operators a function runs, clean the record, and replay it.

What is left out at a replay is all that a call costs beside its operators: Python code, modules, autograd and
`torch.func`'s transforms. For networks of a few thousand parameters that is most of the time.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, Node

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
ITS_OWN_INVERSE = (aten.t.default, aten.transpose.int, aten.neg.default)


def record(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return a function that replays what `function(*inputs)` does, for inputs of the same shapes and dtypes.

    The operators must not depend on the inputs' values. Whatever tracing raises comes through.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # brings in what takes seconds to import

    operators = make_fx(function)(*inputs)
    for node in operators.graph.nodes:
        if _sized_by_values(node):
            raise ValueError(f"the size of what {node.target} returns depends on the inputs' values")
    graph_module = make_fx(functionalize(operators))(*inputs)  # the first knows an operator's own derivatives, too
    clean(graph_module.graph)
    graph_module.recompile()
    replay: Callable[..., Sequence[Tensor]] = graph_module.forward
    return replay


def _sized_by_values(node: Node) -> bool:
    """Tell whether the shape of a result may change from call to call; of an index, where it is a mask."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not aten.index.Tensor:
        return True
    indices = node.args[1]
    assert isinstance(indices, Sequence)
    return any(isinstance(one, Node) and one.meta["val"].dtype in (torch.bool, torch.uint8) for one in indices)


def clean(graph: Graph) -> None:
    """Take out of a graph what changes nothing: repeated operators, views of the same shape, products with 1."""
    changed = True
    while changed:
        changed = False
        first: dict[Any, Node] = {}
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target is operator.getitem:
                continue
            same = _equal(node) or first.setdefault(_key(node), node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)
                changed = True
        graph.eliminate_dead_code()


def _key(node: Node) -> Any:
    """Return what two nodes that compute the same have in common; random numbers are never the same."""
    target = node.target
    if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
        return node
    return target, repr(node.args), repr(node.kwargs)


def _equal(node: Node) -> Node | None:
    """Return an earlier node that equals this one, if its operator changes nothing or undoes another one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or "val" not in source.meta:
        return None
    if node.target is aten.detach.default:
        return source
    if node.target in (*RESHAPES, aten.expand.default) and _layout(node) == _layout(source):
        return source
    if node.target is aten.mul.Scalar and node.args[1] == 1 and _layout(node) == _layout(source):
        return source
    if node.target in ITS_OWN_INVERSE and source.target is node.target and source.args[1:] == node.args[1:]:
        before = source.args[0]
        assert isinstance(before, Node)
        return before
    if node.target in RESHAPES and source.target in RESHAPES and isinstance(source.args[0], Node):
        node.args = (source.args[0], *node.args[1:])
        node.target = aten.reshape.default  # a view of a view need not be a view of the first
    return None


def _layout(node: Node) -> Any:
    value = node.meta["val"]
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else None
