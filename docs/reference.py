"""Write docs/reference.md, the reference for plugin authors, from docstrings: `make readme`.

tests/test_docs.py fails where the file is not what the docstrings give.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from metaopt import hookspecs, tune
from metaopt.environment import Environments, Episodes, Outside, lived
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.objective import MetaObjective, Outcome
from metaopt.plugins import CONTRACTS
from metaopt.preprocessing import Given, Preprocessing
from metaopt.study.trial import TrialResult
from metaopt.task import ClassPool, Examples, TaskBatch, TaskSampler, TaskSpec
from metaopt.testing import CHECKS, CONTROL_CHECKS

FILE = Path(__file__).with_name("reference.md")
HEAD = """# Reference for plugin authors

Made from the docstrings by `make readme`. [plugins.md](plugins.md) is where to begin.
"""


def hooks() -> dict[str, Callable[..., Any]]:
    """Return the hooks by name."""
    return {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "metaopt_spec")}


def text() -> str:
    """Return the text of reference.md."""
    return "\n".join([HEAD, *_lines()])


def _lines() -> Iterator[str]:
    yield "## Hooks\n"
    yield f"{inspect.getdoc(hookspecs)}\n"
    for hook in hooks().values():
        yield from _function(hook)
    yield "## Contracts\n"
    for contract in (Learner, Encoder, TaskSampler, Environments, Outside, Preprocessing, MetaObjective):
        yield from _class(contract)
    yield "## Data\n"
    for data in (TaskSpec, TaskBatch, Examples, Episodes, ClassPool, Given, Outcome, TrialResult):
        yield from _class(data)
    yield "## Acting\n"
    yield from _function(lived)
    yield "## Hyperparameters\n"
    yield f"{_indented_as_code(inspect.getdoc(tune) or '')}\n"
    for declare in (tune.real, tune.integer, tune.choice):
        yield from _function(declare)
    yield "## Checks\n"
    yield "What `metaopt plugin check` and `metaopt.testing.parametrize_with_checks` check.\n"
    for noun, contract in CONTRACTS.values():
        yield f"### Of a {noun}\n".replace("a encoder", "an encoder")
        for check in CHECKS[contract]:
            yield f"- `{check.__name__}`: {_one_line(check)}"
        if contract in CONTROL_CHECKS:
            yield f'\nOf a {noun} of the kind "control":\n'
            for check in CONTROL_CHECKS[contract]:
                yield f"- `{check.__name__}`: {_one_line(check)}"
        yield ""


def _function(function: Callable[..., Any], level: str = "###") -> Iterator[str]:
    yield f"{level} `{function.__name__}{_signature(function)}`\n"
    yield re.sub(r"^    (\w+): ", r"- `\1`: ", inspect.getdoc(function) or "", flags=re.MULTILINE) + "\n"


def _class(cls: type) -> Iterator[str]:
    made_by = "" if is_dataclass(cls) or "__init__" not in vars(cls) else _signature(cls)
    yield f"### `{cls.__module__}.{cls.__name__}{made_by}`\n"
    yield f"{_indented_as_code(inspect.getdoc(cls) or '')}\n"
    attributes = list(_attributes(cls))
    yield from attributes
    if attributes:
        yield ""
    for name, method in vars(cls).items():
        if inspect.isfunction(method) and method.__doc__ and not name.startswith("_"):
            yield from _function(method, "####")


def _attributes(cls: type) -> Iterator[str]:
    """Yield an item for each annotated attribute, with the text that stands below or beside it."""
    source = textwrap.dedent(inspect.getsource(cls))
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for node, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            beside = source.splitlines()[node.lineno - 1].partition("  # ")[2]
            about = " ".join(str(said or beside).split())
            yield f"- `{ast.unparse(node)}`{': ' if about else ''}{about}"


def _signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    if inspect.isclass(function):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    text = re.sub(r"\b[A-Za-z_.]+\.(?=[A-Z])", "", str(signature))  # a type without its module
    return re.sub(r"'([A-Z][^']*)'", r"\1", text)  # nor quotes


def _one_line(documented: object) -> str:
    return " ".join((inspect.getdoc(documented) or "").split())


def _indented_as_code(text: str) -> str:
    """Return a docstring whose indented parts are blocks of Python, which Markdown then highlights."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        indented = line.startswith("    ") or (inside and not line)
        if indented != inside:
            lines.append("```python" if indented else "```\n")
        inside = indented
        lines.append(line.removeprefix("    ") if inside else line)
    return "\n".join(lines + ["```"] * inside).replace("\n\n```\n", "\n```\n")


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
