"""Plugins are loaded from real distributions, written into a temporary folder."""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from metaopt import __version__, plugins
from metaopt.errors import UserError
from metaopt.learner import Learner
from metaopt.plugins import CONTRACTS, LAWS, OBSERVERS, Plugin, Registry, load, violations
from metaopt.task import TaskSpec

THIRD_PARTY = Path(__file__).parents[1] / "third_party"

# A plugin's own source begins on line 9, after this.
PREAMBLE = """
from dataclasses import dataclass, field
from metaopt import tune
from metaopt.hookspecs import hookimpl
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.objective import MetaObjective
from metaopt.task import TaskSampler
"""

GOOD = """
class Good(Learner):
    name = "{name}"

    @dataclass(frozen=True)
    class Config:
        rate: float = tune.real(0.1, 1.0, default=0.5)
        root: str = ""

@hookimpl
def register_learners():
    return [Good]
"""


class Site:
    """A folder on Python's path into which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, name: str, source: str, *, distribution: str = "", version: str = "1.0", folder: str = "", value: str = ""
    ) -> None:
        """Install a distribution with one module `acme_<name>`, under the entry point `name`."""
        module = f"acme_{name}"
        distribution = distribution or f"acme-{name}"
        site = self.folder / folder
        (site / f"{module}.py").write_text(PREAMBLE + dedent(source))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        with (info / "entry_points.txt").open("a") as entry_points:
            entry_points.write(f"[metaopt]\n{name} = {value or module}\n")
        importlib.invalidate_caches()

    def entry_points(self, *folders: str) -> list[metadata.EntryPoint]:
        """Return what importlib finds in the site alone, whatever else is installed."""
        path = [str(self.folder / folder) for folder in folders or ("",)]
        return [found for distribution in metadata.distributions(path=path) for found in distribution.entry_points]

    def load(self) -> Registry:
        return load(self.entry_points())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("METAOPT_DISABLE_PLUGINS", raising=False)
    before = set(sys.modules)
    yield Site(tmp_path)
    for module in set(sys.modules) - before:
        if module.startswith("acme_"):
            del sys.modules[module]


def only(registry: Registry, name: str) -> Plugin:
    [plugin] = [plugin for plugin in registry.plugins if plugin.name == name]
    return plugin


def test_what_a_plugin_provides_is_found_by_name(site: Site) -> None:
    site.install("good", GOOD.format(name="good"), version="2.3")
    registry = site.load()
    assert registry.plugins == (Plugin("good", "acme-good", "2.3", "ok", learners=("good",)),)
    assert issubclass(registry.learner("good"), Learner)
    assert registry.provider(registry.learner("good")) == registry.plugins[0]


def test_installed_plugins_are_found_without_being_named(site: Site) -> None:
    site.install("good", GOOD.format(name="good"))
    assert only(load(), "good").status == "ok"


def test_a_plugin_may_provide_every_kind_and_several_of_one(site: Site) -> None:
    site.install(
        "all",
        """
        class Sines(TaskSampler):
            name, kind = "sines", "regression"
        class Flat(Encoder):
            name = "flat"
        class One(Learner):
            name = "one"
        class Two(One):
            name = "two"
            kinds = ("classification", "regression")
        class Loss(MetaObjective):
            name, direction, kinds, worst = "loss", "minimize", ("regression",), 9
        @hookimpl
        def register_task_samplers():
            return (Sines,)
        @hookimpl
        def register_encoders():
            yield Flat
        @hookimpl
        def register_learners():
            return [One, Two]
        @hookimpl
        def register_meta_objectives():
            return {Loss}
        """,
    )
    registry = site.load()
    assert [plugin.error for plugin in registry.plugins] == [None]
    assert registry.task_sampler("sines").__name__ == "Sines"
    assert registry.encoder("flat").__name__ == "Flat"
    assert [registry.learner(name).__name__ for name in ("one", "two")] == ["One", "Two"]
    assert registry.meta_objective("loss").__name__ == "Loss"
    assert {registry.provider(provided) for kind in CONTRACTS for provided in getattr(registry, kind).values()} == set(
        registry.plugins
    )


def learner(body: str = "", config: str = "@dataclass(frozen=True)\n    class Config:\n        pass") -> str:
    return f"""
class Mine(Learner):
    name = "mine"
    {config}
    {body}

@hookimpl
def register_learners():
    return [Mine]
"""


def objective(**attributes: Any) -> str:
    attributes = {"name": "mine", "direction": "maximize", "kinds": ("regression",)} | attributes
    return f"""
class Mine(MetaObjective):
    {"; ".join(f"{name} = {value!r}" for name, value in attributes.items())}

@hookimpl
def register_meta_objectives():
    return [Mine]
"""


def sampler(body: str) -> str:
    return f"""
class Mine(TaskSampler):
    name = "mine"
    {body}

@hookimpl
def register_task_samplers():
    return [Mine]
"""


def returning(expression: str, hook: str = "register_learners") -> str:
    return f"@hookimpl\ndef {hook}():\n    return {expression}\n"


BROKEN: dict[str, tuple[str, str]] = {
    "raises_at_import": ("raise OSError('no such disk')", "OSError: no such disk (acme_bad, line 9)"),
    "exits_at_import": ("import sys; sys.exit(3)", "SystemExit: 3 (acme_bad, line 9)"),
    "raises_no_exception_at_import": ("raise BaseException('odd')", "BaseException: odd (acme_bad, line 9)"),
    "raises_in_many_lines": (
        "raise ValueError('first\\n\\n   second')",
        "ValueError: first second (acme_bad, line 9)",
    ),
    "raises_what_cannot_be_shown": (
        "class Mute(Exception):\n    def __str__(self):\n        return 1 / 0\nraise Mute",
        "Mute: (an error that cannot say why) (acme_bad, line 12)",
    ),
    "lacks_a_library": (
        "import acme_absent",
        "ModuleNotFoundError: No module named 'acme_absent' (acme_bad, line 9); install what brings that module, ",
    ),
    "needs_a_module_of_another_metaopt": (
        "import metaopt.zzz",
        f"line 9); it was written for another metaopt than {__version__}: update metaopt-fewshot or acme-bad, or set ",
    ),
    "needs_a_name_of_another_metaopt": (
        "from metaopt.nn import zzz",
        f"line 9); it was written for another metaopt than {__version__}: update metaopt-fewshot or acme-bad, or set ",
    ),
    "is_no_python": ("def f(:", "SyntaxError: invalid syntax (acme_bad.py, line 9)"),
    "raises_in_its_own_function": ("def f():\n    raise OSError('deep')\nf()", "OSError: deep (acme_bad, line 10)"),
    "raises_in_a_library": ("import json\njson.loads('{')", "column 2 (char 1) (acme_bad, line 10)"),
    "tells_what_to_do": ("raise OSError", "; update or uninstall acme-bad, or set METAOPT_DISABLE_PLUGINS=bad"),
    "misspelt_hook": (
        returning("[]", "register_learner"),
        "no hook named 'register_learner'; did you mean 'register_l",
    ),
    "unknown_hook": (
        returning("[]", "zzz"),
        f"study_finished, trial_finished (or it needs a metaopt-fewshot newer than {__version__})",
    ),
    "no_hook": ("", "acme_bad registers nothing: mark its hooks with @metaopt.hookimpl"),
    "hook_without_mark": (
        returning("[]") + "def register_encoders():\n    return []",
        "register_encoders is not marked as a hook; write @metaopt.hookimpl above it",
    ),
    "unknown_argument": (
        "@hookimpl\ndef register_learners(config):\n    return []",
        "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec; it was written for",
    ),
    "hook_raises": (returning("1 / 0"), "ZeroDivisionError: division by zero (acme_bad, line 11)"),
    "hook_exits": (returning("exit(1)"), "SystemExit: 1 (acme_bad, line 11)"),
    "hook_yields_and_raises": (
        "@hookimpl\ndef register_learners():\n    yield from ()\n    raise OSError('late')",
        "OSError: late (acme_bad, line 12)",
    ),
    "returns_nothing": (returning("None"), "register_learners returned None; it must return a list of learner classes"),
    "returns_a_class": (returning("Learner"), "learner.Learner'>; it must return a list of learner classes"),
    "returns_names": (returning("['maml']"), "'maml' is not a subclass of metaopt.learner.Learner"),
    "returns_an_instance": (returning("[object()]"), "> is not a subclass of metaopt.learner.Learner"),
    "returns_another_contract": (
        returning("[MetaObjective]"),
        "<class 'metaopt.objective.MetaObjective'> is not a subclass of metaopt.learner.Learner",
    ),
    "no_name": (returning("[TaskSampler]", "register_task_samplers"), "TaskSampler.name is missing; it must be lower"),
    "name_is_no_text": (learner("name = 3"), "Mine.name is 3; it must be lower-case letters"),
    "name_with_a_capital": (learner("name = 'Mine'"), "Mine.name is 'Mine'; it must be lower-case letters"),
    "name_with_a_hyphen": (learner("name = 'my-own'"), "Mine.name is 'my-own'; it must be lower-case letters"),
    "name_with_a_newline": (learner("name = 'mine\\n'"), "Mine.name is 'mine\\n'; it must be lower-case letters"),
    "name_begins_with_a_digit": (learner("name = '1nn'"), "Mine.name is '1nn'; it must be lower-case letters"),
    "config_is_no_dataclass": (
        learner(config="class Config:\n        a = 1"),
        "Mine.Config'>; it must be a dataclass with @dataclass(frozen=True) above it",
    ),
    "config_is_no_class": (
        learner(config="Config = {}"),
        "Mine.Config is {}; it must be a dataclass with @dataclass(f",
    ),
    "config_is_not_frozen": (
        learner(config="@dataclass\n    class Config:\n        a: int = 1"),
        "Mine.Config'>; it must be a dataclass with @dataclass(frozen=True) above it",
    ),
    "config_inherits_and_is_not_marked": (
        learner(config="class Config(TaskSampler.Config):\n        a: int = 1"),
        "Mine.Config'>; it must be a dataclass with @dataclass(frozen=True) above it",
    ),
    "field_without_default": (
        learner(config="@dataclass(frozen=True)\n    class Config:\n        a: int"),
        "the default of Mine.Config.a is missing; it must be None, true or false, a number",
    ),
    "field_with_default_factory": (
        learner(config="@dataclass(frozen=True)\n    class Config:\n        a: list = field(default_factory=list)"),
        "the default of Mine.Config.a is missing; it must be None, true or false, a number",
    ),
    "field_with_mutable_default": (
        learner(config="@dataclass(frozen=True)\n    class Config:\n        a: list = []"),
        "ValueError: mutable default <class 'list'> for field a is not allowed",
    ),
    "field_with_list_in_tuple": (
        learner(config="@dataclass(frozen=True)\n    class Config:\n        b: int = 2\n        a: tuple = (1, [2])"),
        "the default of Mine.Config.a is (1, [2]); it must be None, true or false, a number",
    ),
    "default_outside_its_range": (
        learner(
            config="@dataclass(frozen=True)\n    class Config:\n        a: float = tune.real(1.0, 2.0, default=3.0)"
        ),
        "ValueError: 3.0 is outside the declared range (1 to 2)",
    ),
    "learner_kinds_is_a_text": (learner("kinds = ('regression')"), "Mine.kinds is 'regression'; it must be a tuple"),
    "learner_kinds_is_empty": (learner("kinds = ()"), "Mine.kinds is (); it must be a tuple such as"),
    "learner_kinds_unknown": (learner("kinds = ('ranking',)"), "Mine.kinds is ('ranking',); it must be a tuple such"),
    "learner_trains_on": (learner("trains_on = 'task'"), "Mine.trains_on is 'task'; it must be 'tasks', 'examples' or"),
    "learner_equal_shots": (learner("equal_shots = 1"), "Mine.equal_shots is 1; it must be True or False"),
    "learner_any_way": (learner("any_way = 'no'"), "Mine.any_way is 'no'; it must be True or False"),
    "learner_defaults": (learner("defaults = ['outer.lr']"), "Mine.defaults is ['outer.lr']; it must be a mapping"),
    "sampler_kind": (
        sampler("kind = 'ranking'"),
        "Mine.kind is 'ranking'; it must be 'classification', 'regression' or 'control'",
    ),
    "sampler_has_groups": (
        sampler("kind = 'classification'; has_groups = 1"),
        "Mine.has_groups is 1; it must be True or False",
    ),
    "sampler_has_sources": (
        sampler("kind = 'classification'; has_sources = 'yes'"),
        "Mine.has_sources is 'yes'; it must be True or False",
    ),
    "sampler_benchmarks": (
        sampler("kind = 'classification'; benchmarks = 'my-challenge'"),
        "Mine.benchmarks is 'my-challenge'; it must be a tuple of names",
    ),
    "sampler_kind_missing": (
        sampler(""),
        "Mine.kind is missing; it must be 'classification', 'regression' or 'control'",
    ),
    "sampler_supports": (
        sampler("kind = 'classification'; supports = 'pictures'"),
        "Mine.supports is 'pictures'; it must be 'examples' or 'descriptions'",
    ),
    "learner_supports": (learner("supports = 3"), "Mine.supports is 3; it must be 'examples' or 'descriptions'"),
    "objective_direction": (objective(direction="max"), "Mine.direction is 'max'; it must be 'maximize' or 'minimize'"),
    "objective_kinds": (objective(kinds="regression"), "Mine.kinds is 'regression'; it must be a tuple such as"),
    "objective_worst": (objective(worst=True), "Mine.worst is True; it must be a number or None"),
    "two_of_one_name": (
        learner("pass\nclass Other(Mine):\n    pass").replace("[Mine]", "[Mine, Other]"),
        "register_learners: Mine and Other are both named 'mine'; rename one of them",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_says_why_and_the_rest_loads(site: Site, source: str, reason: str) -> None:
    site.install("able", GOOD.format(name="able"))
    site.install("bad", source)
    site.install("zeal", GOOD.format(name="zeal"))
    registry = site.load()
    bad = only(registry, "bad")
    assert (bad.status, bad.distribution, bad.version) == ("broken", "acme-bad", "1.0")
    assert bad.error is not None
    assert reason in bad.error
    assert "\n" not in bad.error
    assert [bad.task_samplers, bad.encoders, bad.learners, bad.meta_objectives] == [()] * 4
    assert set(registry.learners) == {"able", "zeal"}
    assert [plugin.status for plugin in registry.plugins] == ["ok", "broken", "ok"]


def test_each_law_has_a_plugin_that_breaks_it() -> None:
    reasons = [reason for _, reason in BROKEN.values()]
    for law in LAWS:
        what = f"Mine.{law.attribute}".replace("*", "")
        assert any(what in reason for reason in reasons), law


def test_a_correct_class_breaks_no_law_and_every_break_is_told(site: Site) -> None:
    site.install("good", GOOD.format(name="good"))
    good = site.load().learner("good")
    assert list(violations(good, Learner)) == []
    worse = type("Worse", (good,), {"name": "", "kinds": [], "any_way": 1})
    assert [said.split(" is ")[0] for said in violations(worse, Learner)] == [
        "Worse.name",
        "Worse.kinds",
        "Worse.any_way",
    ]


def test_two_plugins_that_load_stand_between_two_that_do_not(site: Site) -> None:
    for name, source in (
        ("a", "raise OSError"),
        ("b", GOOD.format(name="b")),
        ("c", "exit()"),
        ("d", GOOD.format(name="d")),
    ):
        site.install(name, source)
    registry = site.load()
    assert [plugin.status for plugin in registry.plugins] == ["broken", "ok", "broken", "ok"]
    assert set(registry.learners) == {"b", "d"}


def test_an_entry_point_that_names_no_module_is_broken(site: Site) -> None:
    site.install("odd", GOOD.format(name="odd"), value="not a module")
    site.install("gone", GOOD.format(name="gone"), value="acme_gone:missing")
    site.install("good", GOOD.format(name="good"))
    registry = site.load()
    assert [plugin.status for plugin in registry.plugins] == ["broken", "ok", "broken"]
    assert "has no attribute 'missing'" in str(only(registry, "gone").error)


def test_one_provider_of_several_that_breaks_a_law_takes_the_whole_plugin_out(site: Site) -> None:
    site.install("half", GOOD.format(name="half") + returning("[Encoder]", "register_encoders"))
    registry = site.load()
    assert only(registry, "half").status == "broken"
    assert registry.learners == {}


def test_the_user_may_interrupt_loading(site: Site) -> None:
    site.install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.load()


def test_a_hook_of_a_later_version_may_be_declared_optional(site: Site) -> None:
    later = "@hookimpl(optionalhook=True)\ndef register_schedules():\n    return 1 / 0\n"
    site.install("good", GOOD.format(name="good") + later)
    assert site.load().plugins[0].error is None


def test_a_taken_name_is_refused_to_the_later_plugin_and_both_are_named(site: Site) -> None:
    site.install("first", GOOD.format(name="same"), version="1.1")
    site.install("second", GOOD.format(name="same"), version="2.2")
    registry = site.load()
    assert only(registry, "first").status == "ok"
    assert only(registry, "second").error == (
        "the learner 'same' of the plugin 'second' of acme-second 2.2 is already provided by the plugin 'first' of "
        "acme-first 1.1; rename one of them, or leave one plugin out by METAOPT_DISABLE_PLUGINS"
    )
    assert registry.provider(registry.learner("same")).name == "first"


def test_a_learner_and_an_encoder_may_share_a_name(site: Site) -> None:
    source = """
    class Same(Encoder):
        name = "same"
        @dataclass(frozen=True)
        class Config:
            pass
    @hookimpl
    def register_encoders():
        return [Same]
    """
    site.install("first", GOOD.format(name="same"))
    site.install("second", source)
    registry = site.load()
    assert registry.provider(registry.encoder("same")).name == "second"
    assert registry.provider(registry.learner("same")).name == "first"


def test_no_plugin_takes_a_name_from_the_built_ins(site: Site) -> None:
    site.install("aaa", GOOD.format(name="protonet"), distribution="AAA-first-by-letter")
    site.install("metric", GOOD.format(name="protonet"), distribution="MetaOpt_FewShot")
    registry = site.load()
    assert [(plugin.name, plugin.status) for plugin in registry.plugins] == [("metric", "ok"), ("aaa", "broken")]


def test_the_order_does_not_depend_on_how_plugins_are_found(site: Site) -> None:
    for name, distribution in (("z", "acme-1"), ("y", "acme-2"), ("x", "acme-2"), ("w", "metaopt-fewshot")):
        site.install(name, GOOD.format(name="same"), distribution=distribution)
    found = site.entry_points()
    assert len(found) == 4
    for entry_points in (found, found[::-1]):
        registry = load(entry_points)
        assert [plugin.name for plugin in registry.plugins] == ["w", "z", "x", "y"]
        assert [plugin.status for plugin in registry.plugins] == ["ok", "broken", "broken", "broken"]


def test_a_distribution_that_is_found_twice_is_loaded_once(site: Site) -> None:
    (site.folder / "behind").mkdir()
    site.install("good", GOOD.format(name="good"), version="2.0")
    site.install("good", "raise OSError", version="1.0", folder="behind")
    found = site.entry_points("", "behind")
    assert len(found) == 2
    assert [(plugin.version, plugin.status) for plugin in load(found).plugins] == [("2.0", "ok")]


def test_plugins_are_left_out_by_name_without_being_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        site.install(name, GOOD.format(name=name))
    monkeypatch.setenv("METAOPT_DISABLE_PLUGINS", "one, three,not_installed")
    registry = site.load()
    assert [plugin.name for plugin in registry.plugins] == ["two"]
    assert set(registry.learners) == {"two"}
    assert "acme_one" not in sys.modules
    assert "acme_two" in sys.modules


def test_what_plugins_print_leaves_stdout_clean(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    observer = "@hookimpl\ndef trial_finished(result):\n    print('seen', result)\n"
    site.install(
        "loud",
        "print('hello')\n" + GOOD.format(name="loud").replace("    return", "    print('hook'); return") + observer,
    )
    registry: Any = site.load()
    registry.trial_finished("a trial", {}, Path())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n") == ["hello", "hook", "seen a trial", ""]


def test_a_plugin_that_prints_while_it_loads_is_told_so(site: Site) -> None:
    site.install("loud", "print('hello', 'there')\nprint('x' * 99)\n" + GOOD.format(name="loud"))
    site.install("mute", GOOD.format(name="mute"))
    registry = site.load()
    assert only(registry, "loud").note == "it printed 'hello there …' while it loaded; let it log instead"
    assert [plugin.note for plugin in registry.plugins[1:]] == [None]


def test_a_plugin_that_loads_slowly_is_told_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "SLOW", 0.05)
    site.install("slow", "import time; time.sleep(0.06)\n" + GOOD.format(name="slow"))
    assert re.fullmatch(
        r"it took \d+\.\d s to load; let it import what is heavy in the functions that use it",
        str(only(site.load(), "slow").note),
    )


@pytest.mark.parametrize("noun", ["task sampler", "encoder", "learner", "meta-objective"])
def test_an_unknown_name_is_answered_with_its_kind(site: Site, noun: str) -> None:
    find: Callable[[str], type] = getattr(site.load(), noun.replace(" ", "_").replace("-", "_"))
    with pytest.raises(UserError, match=f"^no {noun} named 'nearst'; choose one of: \\(none\\)$"):
        find("nearst")


def test_an_unknown_name_is_answered_with_the_near_one_and_broken_plugins(site: Site) -> None:
    site.install("good", GOOD.format(name="nearest"))
    with pytest.raises(UserError, match=r"^no learner named 'nearst'; did you mean 'nearest'\?$"):
        site.load().learner("nearst")
    site.install("bad", "raise OSError")
    with pytest.raises(UserError, match=r"mean 'nearest'\? \(`metaopt plugin list` shows 1 broken plugin\)$"):
        site.load().learner("nearst")
    site.install("worse", "raise OSError")
    with pytest.raises(UserError, match=r"\(`metaopt plugin list` shows 2 broken plugins\)$"):
        site.load().learner("nearst")


def test_a_class_that_no_plugin_provides_has_no_provider(site: Site) -> None:
    with pytest.raises(KeyError):
        site.load().provider(Learner)


OBSERVER = """
seen = []
@hookimpl
def trial_finished(result, folder):
    seen.append((result, folder))
@hookimpl
def study_finished(leaderboard, study):
    seen.append((leaderboard.pop("winner"), study))
"""


def test_observers_are_shown_trials_and_the_end_with_what_they_ask_for(site: Site) -> None:
    site.install("a", OBSERVER)
    registry: Any = site.load()
    assert registry.plugins[0].observes == ("trial_finished", "study_finished")
    registry.trial_finished("trial 0", {"name": "s"}, Path("runs"))
    leaderboard = {"winner": "maml"}
    registry.study_finished(leaderboard, {"name": "s"}, Path("runs"))
    assert sys.modules["acme_a"].seen == [("trial 0", Path("runs")), ("maml", {"name": "s"})]
    assert leaderboard == {"winner": "maml"}, "it was given a copy"


@pytest.mark.parametrize("failure", ["raise OSError('disk full')", "exit('disk full')"])
@pytest.mark.parametrize("hook", OBSERVERS)
def test_a_failing_observer_is_warned_of_once_and_the_others_observe(
    site: Site, caplog: pytest.LogCaptureFixture, hook: str, failure: str
) -> None:
    site.install("a", OBSERVER)
    site.install("b", f"@hookimpl\ndef {hook}():\n    {failure}\n")
    site.install("c", OBSERVER)
    registry: Any = site.load()
    assert [plugin.status for plugin in registry.plugins] == ["ok"] * 3
    with caplog.at_level(logging.DEBUG, logger="metaopt"):
        for _ in range(2):
            registry.trial_finished("trial", {}, Path())
            registry.study_finished({"winner": "maml"}, {}, Path())
    assert [len(sys.modules[f"acme_{name}"].seen) for name in "ac"] == [4, 4]
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]
    message = caplog.records[0].getMessage()
    assert message.startswith(f"the plugin 'b' of acme-b 1.0 failed in {hook}: ")
    assert ": disk full (acme_b, line 11); update or uninstall acme-b" in message


def test_the_user_may_interrupt_an_observer(site: Site) -> None:
    site.install("slow", "@hookimpl\ndef trial_finished(result):\n    raise KeyboardInterrupt\n")
    registry: Any = site.load()
    with pytest.raises(KeyboardInterrupt):
        registry.trial_finished("a trial", {}, Path())


@pytest.fixture
def nearest(site: Site) -> type[Learner]:
    """Return the learner of the third party's project, as its own entry point gives it."""
    source = (THIRD_PARTY / "metaopt-nearest" / "metaopt_nearest.py").read_text()
    site.install("nearest", source)
    return site.load().learner("nearest")


def test_the_third_partys_nearest_support_decides(nearest: type[Learner]) -> None:
    spec = TaskSpec("classification", (2,), n_way=3, n_shot=2, n_query=1)
    learner = nearest(spec, torch.nn.Identity(), nearest.Config())
    support_y = torch.tensor([2, 0, 1, 1, 0, 2])
    angles = torch.tensor([0.0, 10.0, 20.0, 100.0, 110.0, 120.0]).deg2rad()  # no class mean is near its examples
    support_x = torch.stack([angles.cos(), angles.sin()], dim=1)  # (6, 2)
    query_x = 7.0 * support_x  # lengths do not matter
    scores = learner(support_x, support_y, query_x)  # (6, 3)
    assert scores.shape == (6, 3)
    assert scores.argmax(1).tolist() == support_y.tolist()
    cosine = torch.tensor([10.0, 20.0, 0.0]).deg2rad().cos()  # of the query at 0° and the closest of each class
    torch.testing.assert_close(scores[0], cosine / learner.config.temperature)
