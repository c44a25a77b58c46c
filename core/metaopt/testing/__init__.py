"""The conformance kit: what every learner, encoder, task sampler and meta-objective must do, as named checks.

    from metaopt.testing import parametrize_with_checks

    @parametrize_with_checks([MyLearner])
    def test_conformance(check):
        check()

`metaopt plugin check NAME` runs the same checks.
"""

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.objective import MetaObjective
from metaopt.task import TaskSampler
from metaopt.testing import control, encoders, learners, objectives, samplers
from metaopt.testing.setting import Skipped

if TYPE_CHECKING:
    import pytest

__all__ = ["Skipped", "Verdict", "checks_for", "parametrize_with_checks", "run_checks"]

CHECKS: Mapping[type, list[Callable[[Any], None]]] = {
    Learner: learners.CHECKS,
    Encoder: encoders.CHECKS,
    TaskSampler: samplers.CHECKS,
    MetaObjective: objectives.CHECKS,
}


CONTROL_CHECKS: Mapping[type, list[Callable[[Any], None]]] = {
    Learner: control.LEARNER_CHECKS,
    TaskSampler: control.SAMPLER_CHECKS,
}
"""Of those that act in environments, or give them."""


@dataclass(frozen=True)
class Verdict:
    """What came of one check."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    reason: str | None = None
    """Of a failed check the law and the remedy, of a skipped one why it does not apply."""


def checks_for(cls: type, settings: Mapping[str, Any] | None = None) -> dict[str, Callable[[], None]]:
    """Return the checks of a class by name.

    Each raises AssertionError with the law and the remedy where it fails, and Skipped where it does not apply. A task
    sampler is checked with its default settings, or with those given here: `checks_for(Omniglot, {"root": "data"})`.
    """
    for contract, checks in ({**CHECKS, **CONTROL_CHECKS} if _acts(cls) else CHECKS).items():
        if issubclass(cls, contract):
            if settings and contract is not TaskSampler:
                raise TypeError(f"{cls.__qualname__} is checked at all of its settings; only task samplers take some")
            subject: Any = samplers.Source(cls, settings or {}) if issubclass(cls, TaskSampler) else cls
            return {check.__name__: functools.partial(_one_thread, check, subject) for check in checks}
    raise TypeError(f"{cls.__qualname__} is no learner, encoder, task sampler or meta-objective; derive it from one")


def _acts(cls: type) -> bool:
    """Tell whether a learner acts in environments, or a sampler gives them."""
    return getattr(cls, "kind", None) == "control" or getattr(cls, "kinds", None) == ("control",)


def run_checks(cls: type, settings: Mapping[str, Any] | None = None) -> Iterator[Verdict]:
    """Run the checks of a class and yield what comes of each. Whatever its code raises is a failure of its own."""
    for name, check in checks_for(cls, settings).items():
        try:
            check()
        except Skipped as reason:
            yield Verdict(name, "skipped", str(reason))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too
            yield Verdict(name, "failed", _reason(error))
        else:
            yield Verdict(name, "ok")


def parametrize_with_checks(
    classes: Iterable[type], settings: Mapping[str, Any] | None = None
) -> "pytest.MarkDecorator":
    """Return a pytest mark that runs a test, with the argument `check`, once for each check of each class."""
    import pytest

    def skipping(check: Callable[[], None]) -> None:
        try:
            check()
        except Skipped as reason:
            pytest.skip(str(reason))

    cases = [
        pytest.param(functools.partial(skipping, check), id=f"{cls.__name__}-{name}")
        for cls in classes
        for name, check in checks_for(cls, settings).items()
    ]
    return pytest.mark.parametrize("check", cases)


def _one_thread(check: Callable[[Any], None], subject: Any) -> None:
    """Run a check on one thread: on tensors as small as these more are slower, many times so where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check(subject)
    finally:
        torch.set_num_threads(threads)


def _reason(error: BaseException) -> str:
    """Say in one line why a check failed: the law that the kit states, or what the plugin's own code raised, where."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    module = str(frame.f_globals.get("__name__"))
    if isinstance(error, AssertionError) and module.partition(".testing")[0] == "metaopt":
        return str(error)
    own = [
        f"{name}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not (name := str(frame.f_globals.get("__name__"))).startswith(("metaopt.", "torch."))
    ]
    message = " ".join(str(error).split())
    return f"it raised {type(error).__name__}: {message} ({own[-1] if own else f'{module}, line {line}'}); mend that"
