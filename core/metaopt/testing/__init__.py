"""The conformance kit: what every learner, encoder, task sampler and meta-objective must do, as named checks.

    from metaopt.testing import parametrize_with_checks

    @parametrize_with_checks([MyLearner])
    def test_conformance(check):
        check()

`metaopt plugin check NAME` runs the same checks.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.objective import MetaObjective
from metaopt.task import TaskSampler
from metaopt.testing import encoders, learners, objectives, samplers
from metaopt.testing.setting import Skipped

__all__ = ["Skipped", "checks_for", "parametrize_with_checks"]

CHECKS: dict[type, list[Callable[[Any], None]]] = {
    Learner: learners.CHECKS,
    Encoder: encoders.CHECKS,
    TaskSampler: samplers.CHECKS,
    MetaObjective: objectives.CHECKS,
}


def checks_for(cls: type) -> dict[str, Callable[[], None]]:
    """Return the checks of a class by name.

    Each raises AssertionError with the law and the remedy where it fails, and Skipped where it does not apply.
    """
    for contract, checks in CHECKS.items():
        if issubclass(cls, contract):
            return {check.__name__: partial(check, cls) for check in checks}
    raise TypeError(f"{cls.__qualname__} is no learner, encoder, task sampler or meta-objective; derive it from one")


def parametrize_with_checks(classes: Iterable[type]) -> Any:
    """Return a pytest mark that runs a test, with the argument `check`, once for each check of each class."""
    import pytest

    cases = [
        pytest.param(_skipping(check), id=f"{cls.__name__}-{name}")
        for cls in classes
        for name, check in checks_for(cls).items()
    ]
    return pytest.mark.parametrize("check", cases)


def _skipping(check: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        import pytest

        try:
            check()
        except Skipped as reason:
            pytest.skip(str(reason))

    return run
