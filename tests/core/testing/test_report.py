"""What is checked is chosen by name, and the report says what came of it."""

from typing import Any, Literal

import pytest

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.plugins import Plugin
from metaopt.testing import Verdict, report

REGISTRY = plugins.load()


def reports(name: str, *overrides: str) -> list[report.Report]:
    return list(report.check(REGISTRY, *report.named(REGISTRY, name), overrides))


def test_a_name_is_that_of_a_plugin_of_a_thing_or_of_both() -> None:
    names: dict[str, tuple[list[str], list[str]]] = {
        "objectives": (["objectives"], []),
        "mse": ([], ["MSE"]),
        "baseline": (["baseline"], ["Baseline"]),
    }
    for name, (of_plugins, of_things) in names.items():
        found, things = report.named(REGISTRY, name)
        assert [plugin.name for plugin in found] == of_plugins
        assert [thing.__name__ for thing in things] == of_things


def test_an_unknown_name_is_refused_with_the_nearest_of_plugins_and_things() -> None:
    for given, near in (("protonett", "protonet"), ("objectivs", "objectives")):
        with pytest.raises(
            UserError, match=f"no plugin or thing provided by one named '{given}'; did you mean '{near}"
        ):
            report.named(REGISTRY, given)


def test_a_plugin_is_checked_whole_and_each_thing_once() -> None:
    found, _ = report.named(REGISTRY, "objectives")
    [loads, *things] = report.check(REGISTRY, found, [REGISTRY.meta_objective("mse")], [])
    assert (loads.name, loads.kind, loads.checks) == ("objectives", "plugin", (Verdict("loads", "ok"),))
    assert sorted(thing.name for thing in things) == sorted(found[0].meta_objectives)
    for thing in things:
        assert (thing.kind, thing.plugin, thing.distribution) == ("meta-objective", "objectives", "metaopt-fewshot")
        assert "failed" not in {verdict.status for verdict in thing.checks}


def test_a_broken_plugin_fails_its_one_check_with_the_reason_why_it_did_not_load() -> None:
    broken = Plugin("torn", "acme-torn", "1.0", "broken", "it is torn; mend it")
    [only] = report.check(REGISTRY, [broken], [], [])
    assert only.checks == (Verdict("loads", "failed", "it is torn; mend it"),)


def test_a_task_sampler_is_checked_with_the_settings_given() -> None:
    [small] = reports("gaussian", "features=3", "spread=2")
    assert "failed" not in {verdict.status for verdict in small.checks}
    [nothing] = reports("gaussian", "features=0")
    assert "failed" in {verdict.status for verdict in nothing.checks}


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("gaussian", "feature=3", "--set: no setting of a task sampler that is checked named 'feature'; did you mean "),
        (
            "mse",
            "features=3",
            "--set: no setting of a task sampler that is checked named 'features'; choose one of: (n",
        ),
        ("gaussian", "features=many", "--set: gaussian.features: "),
        ("gaussian", "features", "--set 'features': write it as path.to.key=value"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        reports(name, override)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("status", ["ok", "broken"])
def test_nothing_is_checked_of_a_plugin_that_provides_nothing(status: Literal["ok", "broken"]) -> None:
    watches: Any = Plugin("watches", "acme", "1.0", status, None if status == "ok" else "why")
    [only] = report.check(REGISTRY, [watches], [], [])
    assert only.kind == "plugin"
