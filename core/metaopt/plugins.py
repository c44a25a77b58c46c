"""Load plugins, contain their failures, and look up by name what they provide.

A plugin is taken whole or not at all, and a broken one disturbs nothing but itself. For that each has a pluggy manager
of its own: what it registers cannot reach another, and who returned what needs no asking.
"""

import copy
import dataclasses
import inspect
import io
import logging
import os
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pluggy import PluginManager, PluginValidationError

from metaopt import __version__, hookspecs
from metaopt.errors import UserError, unknown
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.objective import MetaObjective
from metaopt.task import Kind, Supports, TaskSampler

if TYPE_CHECKING:
    from metaopt.study.trial import TrialResult

GROUP = "metaopt"
"""The group of entry points in which plugins are found."""
BUILT_IN = "metaopt-fewshot"
"""The distribution whose plugins load first, so that no other can take their names."""
NOT_INSTALLED = "(not installed)"
"""Ends the version of a plugin that is checked where it lies: whoever reads of it can mend it."""
SLOW = 1.0
"""Seconds, after which a third party's plugin is said to load slowly: everybody waits for it, whatever they do."""
LEAVE_OUT = "METAOPT_DISABLE_PLUGINS"
"""The environment variable that names, by comma, the entry points to leave out."""

CONTRACTS: Mapping[str, tuple[str, type]] = {
    "task_samplers": ("task sampler", TaskSampler),
    "encoders": ("encoder", Encoder),
    "learners": ("learner", Learner),
    "meta_objectives": ("meta-objective", MetaObjective),
}
"""What plugins provide: `register_<key>` returns subclasses of the contract, which messages call by its noun."""
OBSERVERS = ("trial_finished", "study_finished")
"""The hooks that observe."""

Class = TypeVar("Class", bound=type)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugin:
    """An installed plugin and what it provides, by name. A broken one provides nothing and says why in one line."""

    name: str
    """The name of its entry point."""
    distribution: str
    version: str
    status: Literal["ok", "broken"]
    error: str | None = None
    note: str | None = None
    """What its author should change though it works, in one line."""
    task_samplers: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    meta_objectives: tuple[str, ...] = ()
    observes: tuple[str, ...] = ()
    """The hooks by which it observes studies."""

    def __str__(self) -> str:
        return f"the plugin {self.name!r} of {self.distribution} {self.version}"


@dataclass(frozen=True, eq=False)
class Registry:
    """What the plugins provide, by name."""

    plugins: tuple[Plugin, ...]
    task_samplers: Mapping[str, type[TaskSampler]]
    encoders: Mapping[str, type[Encoder]]
    learners: Mapping[str, type[Learner]]
    meta_objectives: Mapping[str, type[MetaObjective]]
    _providers: Mapping[type, Plugin]
    _hooks: Mapping[Plugin, PluginManager]
    _failed_to_observe: set[Plugin] = field(default_factory=set)

    def task_sampler(self, name: str) -> type[TaskSampler]:
        """Return the task sampler of this name. UserError names the nearest one."""
        return self._find("task sampler", self.task_samplers, name)

    def encoder(self, name: str) -> type[Encoder]:
        """Return the encoder of this name. UserError names the nearest one."""
        return self._find("encoder", self.encoders, name)

    def learner(self, name: str) -> type[Learner]:
        """Return the learner of this name. UserError names the nearest one."""
        return self._find("learner", self.learners, name)

    def meta_objective(self, name: str) -> type[MetaObjective]:
        """Return the meta-objective of this name. UserError names the nearest one."""
        return self._find("meta-objective", self.meta_objectives, name)

    def _find(self, noun: str, provided: Mapping[str, Class], name: str) -> Class:
        if name in provided:
            return provided[name]
        broken = sum(plugin.status == "broken" for plugin in self.plugins)
        hint = f" (`metaopt plugin list` shows {broken} broken plugin{'s' * (broken > 1)})" if broken else ""
        raise UserError(unknown(noun, name, provided) + hint)

    def provider(self, provided: type) -> Plugin:
        """Return the plugin that provides a class of this registry. KeyError where none does."""
        return self._providers[provided]

    def about(self, plugin: Plugin) -> str:
        """Return what the module of a plugin says of itself; nothing of a broken one."""
        hooks = self._hooks.get(plugin)
        return inspect.getdoc(hooks.list_name_plugin()[0][1]) or "" if hooks else ""

    def trial_finished(self, result: "TrialResult", study: Mapping[str, Any], folder: Path) -> None:
        """Show a finished trial to every plugin."""
        self._show("trial_finished", result=result, study=study, folder=folder)

    def study_finished(self, leaderboard: Mapping[str, Any], study: Mapping[str, Any], folder: Path) -> None:
        """Show the leaderboard of a study that came to its end to every plugin."""
        self._show("study_finished", leaderboard=leaderboard, study=study, folder=folder)

    def _show(self, hook: str, **shown: Any) -> None:
        """Call a hook of every plugin, with copies. The first failure of a plugin is a warning, others are debug."""
        for plugin, hooks in self._hooks.items():
            if hook not in plugin.observes:
                continue
            try:
                with redirect_stdout(sys.stderr):
                    getattr(hooks.hook, hook)(**copy.deepcopy(shown))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: no observer ends a study
                level = logging.DEBUG if plugin in self._failed_to_observe else logging.WARNING
                self._failed_to_observe.add(plugin)
                module = hooks.list_name_plugin()[0][0]
                log.log(level, "%s failed in %s: %s", plugin, hook, _reason(error, module, plugin))


def load(entry_points: Iterable[metadata.EntryPoint] | None = None) -> Registry:
    """Load the plugins of these entry points, or of all that are installed, one by one.

    Whatever fails in a plugin makes that plugin broken and leaves the others as they are. What plugins print while they
    load goes to stderr, so that stdout holds results only.
    """
    plugins: list[Plugin] = []
    provided: dict[str, dict[str, type[Any]]] = {kind: {} for kind in CONTRACTS}
    providers: dict[type, Plugin] = {}
    managers: dict[Plugin, PluginManager] = {}
    for entry_point in _in_order(metadata.entry_points(group=GROUP) if entry_points is None else entry_points):
        plugin = Plugin(entry_point.name, *_distribution(entry_point), "ok")
        printed, began = _ToStderr(), time.monotonic()
        try:
            with redirect_stdout(printed):
                hooks = _hooks(entry_point)
                classes = {kind: _returned(hooks, kind) for kind in CONTRACTS}
            seconds = time.monotonic() - began
            _refuse_taken_names(plugin, classes, provided, providers)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: an import may call sys.exit
            reason = _reason(error, entry_point.value, plugin)
            plugins.append(dataclasses.replace(plugin, status="broken", error=reason))
            continue
        names: dict[str, Any] = {kind: tuple(named) for kind, named in classes.items()}
        observes = tuple(hook for hook in OBSERVERS if getattr(hooks.hook, hook).get_hookimpls())
        plugin = dataclasses.replace(plugin, note=_note(plugin, printed.said, seconds), observes=observes, **names)
        plugins.append(plugin)
        managers[plugin] = hooks
        for kind, named in classes.items():
            provided[kind] |= named
            providers |= dict.fromkeys(named.values(), plugin)
    return Registry(
        tuple(plugins),
        provided["task_samplers"],
        provided["encoders"],
        provided["learners"],
        provided["meta_objectives"],
        providers,
        managers,
    )


def _in_order(entry_points: Iterable[metadata.EntryPoint]) -> list[metadata.EntryPoint]:
    """Return each entry point once, those left out excepted: the built-ins, then by distribution and name.

    A distribution that lies on the path twice counts as the one that Python imports, the first.
    """
    left_out = {name.strip() for name in os.environ.get(LEAVE_OUT, "").split(",")}
    first: dict[tuple[bool, str, str], metadata.EntryPoint] = {}
    for entry_point in entry_points:
        distribution = re.sub(r"[-_.]+", "-", _distribution(entry_point)[0]).lower()  # one spelling of many
        first.setdefault((distribution != BUILT_IN, distribution, entry_point.name), entry_point)
    return [first[key] for key in sorted(first) if first[key].name not in left_out]


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that an entry point belongs to."""
    if entry_point.dist is None:  # made by hand
        return "unknown", "unknown"
    return entry_point.dist.name or "unknown", entry_point.dist.version or "unknown"


def _hooks(entry_point: metadata.EntryPoint) -> PluginManager:
    """Import a plugin and return the manager of its hooks. UserError where one is misspelt or not marked."""
    module = entry_point.load()
    manager = PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    known = list(vars(manager.hook))
    manager.register(module, entry_point.value)
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            raise UserError(
                f"{unknown('hook', caller.name, known)} (or it needs a {BUILT_IN} newer than {__version__})"
            )
    for name in known:
        if hasattr(module, name) and manager.parse_hookimpl_opts(module, name) is None:
            raise UserError(f"{name} is not marked as a hook; write @metaopt.hookimpl above it")
    if not callers:
        raise UserError(f"{entry_point.value} registers nothing: mark its hooks with @metaopt.hookimpl")
    return manager


def _returned(hooks: PluginManager, kind: str) -> dict[str, type[Any]]:
    """Return the classes of one kind that a plugin provides, by name. UserError says which law one of them breaks."""
    hook = f"register_{kind}"
    noun, contract = CONTRACTS[kind]
    classes: dict[str, type[Any]] = {}
    for impl in getattr(hooks.hook, hook).get_hookimpls():
        returned: object = impl.function()  # by hand: pluggy drops None, which a forgotten `return` gives
        if not isinstance(returned, Iterable):
            raise UserError(f"{hook} returned {returned!r}; it must return a list of {noun} classes")
        for provided in returned:
            if problem := next(violations(provided, contract), None):
                raise UserError(f"{hook}: {problem}")
            if (other := classes.setdefault(provided.name, provided)) is not provided:
                raise UserError(
                    f"{hook}: {other.__qualname__} and {provided.__qualname__} are both named {provided.name!r}; "
                    "rename one of them"
                )
    return classes


def _refuse_taken_names(
    claimant: Plugin,
    classes: Mapping[str, Mapping[str, type]],
    taken: Mapping[str, Mapping[str, type]],
    owners: Mapping[type, Plugin],
) -> None:
    for kind, named in classes.items():
        for name in named:
            if name in taken[kind]:
                raise UserError(
                    f"the {CONTRACTS[kind][0]} {name!r} of {claimant} is already provided by "
                    f"{owners[taken[kind][name]]}; rename one of them, or leave one plugin out by {LEAVE_OUT}"
                )


def _reason(error: BaseException, module: str, plugin: Plugin) -> str:
    """Say in one line what went wrong in a plugin, where in its own code, and what to do."""
    try:
        message = str(error)
    except Exception:
        message = "(an error that cannot say why)"
    if isinstance(error, UserError):
        return textwrap.shorten(message, 600, placeholder=" …")
    what = textwrap.shorten(f"{type(error).__name__}: {message}", 300, placeholder=" …")
    package = re.split(r"\W", module)[0]
    own = [
        f" ({name}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if (name := str(frame.f_globals.get("__name__"))).partition(".")[0] == package
    ]
    where = own[-1] if own else ""
    return f"{what}{where}; {_remedy(error, plugin)}"


def _remedy(error: BaseException, plugin: Plugin) -> str:
    """Say what the user of a broken plugin can do; where it is not installed, its author is the user."""
    own = plugin.version.endswith(NOT_INSTALLED)
    or_not = "" if own else f", or set {LEAVE_OUT}={plugin.name}"
    of_metaopt = isinstance(error, ImportError) and str(error.name).partition(".")[0] == GROUP
    if isinstance(error, PluginValidationError) or of_metaopt:
        return (
            f"it was written for another metaopt than {__version__}: update {BUILT_IN} or {plugin.distribution}{or_not}"
        )
    if own:
        return "mend that"
    if isinstance(error, ModuleNotFoundError):
        return f"install what brings that module, update or uninstall {plugin.distribution}{or_not}"
    return f"update or uninstall {plugin.distribution}{or_not}"


def _note(plugin: Plugin, said: str, seconds: float) -> str | None:
    """Say what should change about a plugin that loads."""
    notes = []
    if said:
        shown = textwrap.shorten(said, 40, placeholder=" …")
        notes.append(f"it printed {shown!r} while it loaded; let it log instead")
    if seconds > SLOW and plugin.distribution != BUILT_IN:
        notes.append(f"it took {seconds:.1f} s to load; let it import what is heavy in the functions that use it")
    return "; ".join(notes) or None


class _ToStderr(io.TextIOBase):
    """Stands in for stdout while a plugin loads."""

    said = ""

    def write(self, text: str) -> int:
        self.said += text
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@dataclass(frozen=True)
class Law:
    """What must hold for an attribute of every class that is, or inherits from, a contract."""

    contract: type
    attribute: str
    """`Config.*` stands for the default of each field of the Config."""
    must_be: str
    holds: Callable[[Any], bool]


def _is_frozen_dataclass(config: object) -> bool:
    parameters = vars(config).get("__dataclass_params__") if isinstance(config, type) else None  # its own, no parent's
    return parameters is not None and parameters.frozen


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _are_kinds(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and set(value) <= set(get_args(Kind))


KINDS_LAW = "a tuple such as ('classification',), of 'classification', 'regression' and 'control'"
SUPPORTS_LAW = "'examples' or 'descriptions'"
LAWS = (
    Law(
        object,
        "name",
        "lower-case letters, digits and underscores, beginning with a letter",
        lambda name: isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None,
    ),
    Law(object, "Config", "a dataclass with @dataclass(frozen=True) above it", _is_frozen_dataclass),
    Law(object, "Config.*", "None, true or false, a number, a text, or a tuple of these, given by `=`", _is_plain),
    Law(TaskSampler, "kind", "'classification', 'regression' or 'control'", lambda kind: kind in get_args(Kind)),
    Law(TaskSampler, "supports", SUPPORTS_LAW, lambda given: given in get_args(Supports)),
    Law(TaskSampler, "has_groups", "True or False", lambda has_groups: isinstance(has_groups, bool)),
    Law(TaskSampler, "has_sources", "True or False", lambda has_sources: isinstance(has_sources, bool)),
    Law(
        TaskSampler,
        "benchmarks",
        "a tuple of names such as ('my-challenge',)",
        lambda names: isinstance(names, tuple) and all(isinstance(name, str) for name in names),
    ),
    Law(Learner, "kinds", KINDS_LAW, _are_kinds),
    Law(Learner, "supports", SUPPORTS_LAW, lambda given: given in get_args(Supports)),
    Law(Learner, "trains_on", "'tasks', 'examples' or 'nothing'", lambda on: on in ("tasks", "examples", "nothing")),
    Law(Learner, "any_way", "True or False", lambda any_way: isinstance(any_way, bool)),
    Law(Learner, "equal_shots", "True or False", lambda equal_shots: isinstance(equal_shots, bool)),
    Law(Learner, "defaults", "a mapping such as {'outer.lr': 0.01}", lambda defaults: isinstance(defaults, Mapping)),
    Law(MetaObjective, "direction", "'maximize' or 'minimize'", lambda given: given in ("maximize", "minimize")),
    Law(MetaObjective, "kinds", KINDS_LAW, _are_kinds),
    Law(
        MetaObjective,
        "worst",
        "a number or None",
        lambda worst: worst is None or (isinstance(worst, int | float) and not isinstance(worst, bool)),
    ),
)
"""The laws of what plugins return, checked in this order."""


def violations(provided: object, contract: type) -> Iterator[str]:
    """Yield, in one line each, the laws of a contract that what a plugin provides breaks."""
    if not (isinstance(provided, type) and issubclass(provided, contract)):
        yield f"{provided!r} is not a subclass of {contract.__module__}.{contract.__name__}"
        return
    for law in LAWS:
        if issubclass(contract, law.contract):
            for what, value in _values(provided, law.attribute):
                if not law.holds(value):
                    shown = "missing" if value is dataclasses.MISSING else repr(value)
                    yield f"{what} is {shown}; it must be {law.must_be}"


def _values(provided: type, attribute: str) -> Iterator[tuple[str, object]]:
    """Yield what a law's attribute stands for, each with what to call it; MISSING where there is none."""
    if attribute != "Config.*":
        yield f"{provided.__qualname__}.{attribute}", getattr(provided, attribute, dataclasses.MISSING)
        return
    config: Any = getattr(provided, "Config", None)
    if _is_frozen_dataclass(config):  # where it is none, another law says so
        for setting in dataclasses.fields(config):
            yield f"the default of {provided.__qualname__}.Config.{setting.name}", setting.default
